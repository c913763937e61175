# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the validation set of drawn defects."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import validation
from validation import CHANGE_THRESHOLD, KINDS, MIN_CONTRAST, draw, split, write_validation_set

SIZE = 96


def surface(seed: int = 0, colour: bool = True) -> np.ndarray:
    """Surface without a background: smooth blots of random colour, neither dark nor bright, with a grain."""
    rng = np.random.default_rng(seed)
    blots = rng.uniform(90, 160, (12, 12, 3 if colour else 1))
    image = cv2.resize(blots, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).reshape(SIZE, SIZE, -1)
    image = image + rng.uniform(-20, 20, (SIZE, SIZE, 1))
    return np.broadcast_to(image, (SIZE, SIZE, 3)).round().clip(0, 255).astype(np.uint8)


def part(seed: int = 0) -> np.ndarray:
    """Rough part in the middle of a plain white background."""
    # With a little noise: a rectangle in exactly one colour would be padding.
    image = np.random.default_rng(seed).integers(240, 250, (SIZE, SIZE, 3), dtype=np.uint8)
    image[28:72, 20:80] = surface(seed)[28:72, 20:80]
    return image


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Mask with every pixel that is no further than the radius along either axis."""
    size = 2 * radius + 1
    return cv2.dilate((mask > 0).astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def save_images(folder: Path, images: list[np.ndarray]) -> list[str]:
    """Write images to a folder and return their paths."""
    folder.mkdir()
    paths = [str(folder / f"{index}.png") for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(path, image)
    return paths


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# Hold-out


def test_split() -> None:
    """Every fifth of the sorted images is held out, whatever order they came in."""
    paths = [f"{index:03d}.png" for index in range(12)]
    train, held_out = split(paths[::-1])
    assert held_out == ["000.png", "005.png", "010.png"]
    assert train == [path for path in paths if path not in held_out]
    assert split(paths) == (train, held_out)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (5, 1), (6, 2), (209, 42)])
def test_number_of_images_held_out(count: int, expected: int) -> None:
    """No image is lost and none is on both sides."""
    paths = [f"{index:03d}" for index in range(count)]
    train, held_out = split(paths)
    assert len(held_out) == expected
    assert sorted(train + held_out) == paths


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [surface, part])
def test_mask_is_what_changed(kind: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """The mask holds the pixels that changed; beyond the soft edge of what was drawn nothing did."""
    drawn: list[np.ndarray] = []
    original = KINDS[kind]

    def spy(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        changed, mask = original(*arguments)
        drawn.append(mask.copy())
        return changed, mask

    monkeypatch.setitem(KINDS, kind, spy)
    rng = np.random.default_rng(1)
    seen = 0
    for attempt in range(40):
        image = make(attempt)
        kept = image.copy()
        result = draw(image, kind, rng)
        assert np.array_equal(image, kept), "the image was written to"
        if result is None:
            continue
        seen += 1
        defect, mask = result
        assert defect.shape == image.shape
        assert defect.dtype == mask.dtype == np.uint8
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) == {0, 255}
        change = np.abs(defect.astype(int) - image).max(axis=2)
        outline = drawn[-1] > 0
        if make is part:
            object_area = np.zeros_like(outline)
            object_area[28:72, 20:80] = True
            outline &= grow(object_area, 3)
        # Blurred by a kernel of 5 x 5 pixels: two away nothing is left.
        assert not change[~grow(outline, 2)].any()
        assert not (mask[~grow(outline, 2)] > 0).any()
        # Within, what changed is marked, and what is marked changed or closes a hole between pixels that did.
        inside = ~grow(~outline, 2)
        assert (mask[inside & (change > CHANGE_THRESHOLD)] == 255).all()
        assert not ((mask > 0) & ~grow(change > CHANGE_THRESHOLD, 1)).any()
        assert change[mask > 0].mean() >= MIN_CONTRAST
        assert (mask > 0).sum() >= 2
    assert seen >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_grey_images_stay_grey(kind: str) -> None:
    """A grey camera sees no coloured defects."""
    rng = np.random.default_rng(2)
    results = [draw(surface(attempt, colour=False), kind, rng) for attempt in range(40)]
    images = [result[0] for result in results if result is not None]
    assert len(images) >= 3
    assert all(np.ptp(image.astype(int), axis=2).max() == 0 for image in images)


@pytest.mark.parametrize("kind", ["scratch", "spot", "stain"])
def test_some_defects_of_coloured_images_are_coloured(kind: str) -> None:
    """On other images some change the channels by unlike amounts, and some do not."""
    rng = np.random.default_rng(3)
    image = np.full((SIZE, SIZE, 3), (120, 128, 136), np.uint8)
    spreads = []
    for _ in range(60):
        result = draw(image, kind, rng)
        if result is not None:
            defect, mask = result
            change = (defect.astype(int) - image)[mask == 255]
            shade = np.ptp(defect.astype(int)[mask == 255], axis=1)
            spreads.append((np.ptp(change, axis=1) if kind != "stain" else abs(shade - 16)).max())
    assert max(spreads) > 20
    assert min(spreads) < 16


@pytest.mark.parametrize("kind", ["dent", "missing"])
def test_what_cannot_be_seen_is_not_drawn(kind: str) -> None:
    """A plain surface that is twisted or filled in from its surroundings is still plain."""
    image = np.full((SIZE, SIZE, 3), 120, np.uint8)
    rng = np.random.default_rng(0)
    assert all(draw(image, kind, rng) is None for _ in range(10))


def test_faint_defects_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither too faint nor hardly changing anything of what was drawn: each is on one side of its limit."""
    image = surface()

    def draw_square(change: float, fraction: float = 1.0) -> tuple[np.ndarray, np.ndarray] | None:
        def square(given: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[20:60, 20:60] = 255
            changed = given.copy()
            changed[20 : 20 + round(40 * fraction), 20:60] += change
            return changed, mask

        monkeypatch.setitem(KINDS, "square", square)
        return draw(image, "square", np.random.default_rng(0))

    assert draw_square(MIN_CONTRAST + 3) is not None
    assert draw_square(MIN_CONTRAST - 2) is None
    assert draw_square(40, fraction=0.8) is not None
    assert draw_square(40, fraction=0.4) is None


def test_defects_are_on_the_object() -> None:
    """Nothing is drawn on the background, and defects are not all in one place."""
    rng = np.random.default_rng(4)
    background = np.ones((SIZE, SIZE), bool)
    background[24:76, 16:84] = False
    centres = set()
    for attempt in range(60):
        result = draw(part(), list(KINDS)[attempt % len(KINDS)], rng)
        if result is not None:
            assert np.array_equal(result[0][background], part()[background])
            assert not result[1][background].any()
            centres.add(tuple(np.argwhere(result[1]).mean(axis=0).round().astype(int) // 8))
    assert len(centres) > 8


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def test_write_validation_set(tmp_path: Path) -> None:
    """One normal image and two defects of each image held out, with masks of the same name, kind after kind."""
    images = [surface(seed) for seed in range(8)]
    folder = tmp_path / "set"
    write_validation_set(save_images(tmp_path / "images", images), folder)
    assert {path.name for path in folder.iterdir()} == {"good", "defect", "mask"}
    assert [path.name for path in sorted((folder / "good").iterdir())] == [f"{index:03d}.png" for index in range(8)]
    names = [path.name for path in sorted((folder / "defect").iterdir())]
    assert names == [path.name for path in sorted((folder / "mask").iterdir())]
    assert names == [f"{index:03d}_{list(KINDS)[index % len(KINDS)]}.png" for index in range(16)]
    for index, image in enumerate(images):
        good = cv2.imread(str(folder / "good" / f"{index:03d}.png"))
        assert np.array_equal(good, image)
        for name in names[2 * index : 2 * index + 2]:
            defect = cv2.imread(str(folder / "defect" / name))
            mask = cv2.imread(str(folder / "mask" / name), cv2.IMREAD_UNCHANGED)
            assert mask.shape == image.shape[:2]
            assert set(np.unique(mask)) == {0, 255}
            change = np.abs(defect.astype(int) - good).max(axis=2)
            assert change[mask == 255].mean() >= MIN_CONTRAST
            assert change[mask == 255].mean() > 4 * change[mask == 0].mean()


def test_next_kind_in_place_of_one_that_cannot_be_seen(tmp_path: Path) -> None:
    """Plain surfaces get the same number of defects, of the kinds that show on them."""
    images = [np.full((SIZE, SIZE, 3), 100 + 10 * index, np.uint8) for index in range(3)]
    write_validation_set(save_images(tmp_path / "images", images), tmp_path / "set")
    names = [path.stem for path in sorted((tmp_path / "set" / "defect").iterdir())]
    kinds = ["scratch", "crack", "spot", "stain", "shade", "shade"]
    assert names == [f"{index:03d}_{kind}" for index, kind in enumerate(kinds)]


def test_seed_decides(tmp_path: Path) -> None:
    """The same images and seed give the same files, another seed gives others."""
    paths = save_images(tmp_path / "images", [surface(seed) for seed in range(2)])
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        write_validation_set(paths, tmp_path / name, seed)
    first, second, other = (files(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert set(first) == set(other)
    for name, content in first.items():
        assert (other[name] == content) == name.startswith("good")


def test_faint_defects_are_the_same_with_less_change(tmp_path: Path) -> None:
    """In the same places; a third of the change is left."""
    paths = save_images(tmp_path / "images", [surface(seed) for seed in range(2)])
    write_validation_set(paths, tmp_path / "plain")
    write_validation_set(paths, tmp_path / "faint", visibility=0.35)
    plain, faint = (files(tmp_path / name) for name in ("plain", "faint"))
    assert set(plain) == set(faint)
    for name in plain:
        assert (plain[name] == faint[name]) == (not name.startswith("defect"))
    for path in (tmp_path / "plain" / "defect").iterdir():
        normal = cv2.imread(str(tmp_path / "plain" / "good" / f"{int(path.name[:3]) // 2:03d}.png")).astype(int)
        full, part = (cv2.imread(str(tmp_path / name / "defect" / path.name)) - normal for name in ("plain", "faint"))
        assert np.abs(part - 0.35 * full).max() <= 0.5 + 1e-6


def test_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that is there is left as it is."""
    paths = save_images(tmp_path / "images", [surface(seed) for seed in range(2)])
    folder = tmp_path / "set"
    write_validation_set(paths[:1], folder)
    before = files(folder)
    monkeypatch.setattr(validation, "draw", lambda *_: pytest.fail("a defect was drawn"))
    write_validation_set(paths, folder, seed=5)
    assert files(folder) == before


def test_interrupted_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An incomplete set is not mistaken for a complete one: it is written again, without what is left of it."""
    paths = save_images(tmp_path / "images", [surface(seed) for seed in range(3)])
    write_validation_set(paths, tmp_path / "whole")
    folder = tmp_path / "set"

    def interrupted(image: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray] | None:  # noqa: ANN401
        if np.array_equal(image, surface(1)):
            raise KeyboardInterrupt
        return draw(image, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_validation_set(paths, folder)
    assert not folder.exists()
    (left,) = tmp_path.glob("set*")
    (left / "good" / "junk.png").write_bytes(b"")
    write_validation_set(paths, folder)
    assert files(folder) == files(tmp_path / "whole")
    assert [path.name for path in tmp_path.glob("set*")] == ["set"]
