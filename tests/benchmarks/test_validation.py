# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the validation set of drawn defects."""

from collections import Counter
from itertools import starmap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import validation
from validation import (
    CHANGE_THRESHOLD,
    DEFECTS_PER_IMAGE,
    DISPLACED,
    FAMILIES,
    FAMILY_OF,
    KINDS,
    MIN_CONTRAST,
    draw,
    draw_sized,
    split,
    whole_parts,
    write_validation_set,
)

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


def test_images_of_one_part_stay_together() -> None:
    """Photographs of a tile in several exposures, whose numbers follow each other, are on one side."""
    numbers = {"exp5": (100, 900, 5000, 7000, 9000, 9500), "exp1": (40, 1020, 4870, 9100), "exp6": (190, 8000)}
    paths = [f"good/{series}_num_{number}.png" for series, values in numbers.items() for number in values]
    parts = whole_parts(paths)
    found = [[int(Path(path).stem.rpartition("_")[2]) for path in part] for part in parts]
    assert found == [[40, 100, 190], [900, 1020], [4870, 5000], [7000], [8000], [9000, 9100], [9500]]
    train, held_out = split(paths)
    assert set(held_out) == {*parts[0], *parts[5]}
    assert sorted(train + held_out) == sorted(paths)
    assert split(paths[::-1]) == (train, held_out)


def test_numbers_alone_are_no_series() -> None:
    """Images that are merely numbered count as parts of their own."""
    assert whole_parts(["001.png", "000.png", "part_num_7.png"]) == [["000.png"], ["001.png"], ["part_num_7.png"]]


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (5, 1), (6, 2), (209, 42)])
def test_number_of_images_held_out(count: int, expected: int) -> None:
    """No image is lost and none is on both sides."""
    paths = [f"{index:03d}" for index in range(count)]
    train, held_out = split(paths)
    assert len(held_out) == expected
    assert sorted(train + held_out) == paths


# ---------------------------------------------------------------------------------------------------------------------
# Drawing a given size


@pytest.mark.parametrize("size", [4, 8, 16, 32])
@pytest.mark.parametrize("make", [surface, part])
def test_size_of_defects(make: Any, size: int) -> None:  # noqa: ANN401
    """Of every kind that can be so small; the mask is what changed, on the object only."""
    rng = np.random.default_rng(size)
    seen: Counter[str] = Counter()
    for attempt in range(24):
        image = make(attempt)
        kind = list(KINDS)[attempt % 6]
        result = draw_sized(image, kind, size, rng)
        if result is None:
            continue
        seen[kind] += 1
        defect, mask = result
        assert defect.shape == image.shape
        assert defect.dtype == mask.dtype == np.uint8
        change = np.abs(defect.astype(int) - image).max(axis=2)
        assert np.array_equal(mask > 0, change > CHANGE_THRESHOLD)
        assert change[mask > 0].mean() >= MIN_CONTRAST
        rows, columns = np.nonzero(mask)
        assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - size) <= max(1, 0.25 * size)
        if make is part:
            object_area = np.zeros(mask.shape, bool)
            object_area[28:72, 20:80] = True
            assert not change[~grow(object_area, 3)].any()
    assert len(seen) >= 2
    assert sum(seen.values()) >= 5


def test_seed_decides_defects_of_a_size() -> None:
    first, second, other = (draw_sized(surface(0), "spot", 12, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first is not None
    assert second is not None
    assert np.array_equal(first[0], second[0])
    assert other is None or not np.array_equal(first[0], other[0])


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
        if make is part and kind not in DISPLACED:
            object_area = np.zeros_like(outline)
            object_area[28:72, 20:80] = True
            outline &= grow(object_area, 3)
        # Blurred by a kernel of 5 x 5 pixels: two away nothing is left.
        assert not change[~grow(outline, 2)].any()
        assert not (mask[~grow(outline, 2)] > 0).any()
        # Within, what changed is marked, and what is marked changed or closes a hole between pixels that did.
        inside = grow(mask, 0) if kind in DISPLACED else ~grow(~outline, 2)
        assert not (change > CHANGE_THRESHOLD)[~grow(mask, 2)].any()
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


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_on_each_kind(kind: str) -> None:
    """The same seed draws the same defect, another one another."""

    def first_visible(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        results = (draw(surface(), kind, rng) for _ in range(100))
        return next(result for result in results if result is not None)

    first, second, other = (first_visible(seed) for seed in (1, 1, 2))
    assert all(starmap(np.array_equal, zip(first, second, strict=True)))
    assert not np.array_equal(first[0], other[0])


def drawn_on(kind: str, image: np.ndarray, count: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
    """Changes of shape ``(H, W, 3)`` and boolean masks of visible defects."""
    rng = np.random.default_rng(5)
    results = [draw(image, kind, rng) for _ in range(count)]
    return [(result[0].astype(int) - image, result[1] > 0) for result in results if result is not None]


def test_families_differ_in_size() -> None:
    """There are thin lines, small spots, areas and more than a quarter of the image."""
    image = surface()
    areas = {kind: np.median([mask.mean() for _, mask in drawn_on(kind, image)]) for kind in KINDS}
    assert max(areas["scratch"], areas["crack"], areas["spot"]) < 0.01
    assert min(areas["tint"], areas["shade"], areas["gone"], areas["ribbed"]) > 0.02
    assert max(mask.mean() for _, mask in drawn_on("slipped", image)) > 0.25
    widths = {
        kind: np.median([cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3).max() for _, mask in found])
        for kind, found in ((kind, drawn_on(kind, image)) for kind in ("scratch", "spot", "shade"))
    }
    assert widths["scratch"] < widths["spot"] < widths["shade"]


def test_colour_keeps_lightness_and_structure() -> None:
    """Colour images change in colour alone, grey ones in tone."""
    image = surface()
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB).astype(int)
    for change, mask in drawn_on("tint", image):
        after = cv2.cvtColor((image + change).astype(np.uint8), cv2.COLOR_BGR2LAB).astype(int)
        difference = np.abs(after - lab)[mask].mean(axis=0)
        assert difference[1:].max() > 4 * difference[0]
    grey = surface(colour=False)
    for change, mask in drawn_on("tint", grey):
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        before, after = grey[inner][:, 0].astype(float), (grey + change)[inner][:, 0]
        assert np.corrcoef(before, after)[0, 1] > 0.95


def test_shading_has_no_edge() -> None:
    """Neighbouring pixels change nearly alike, unlike those at the edge of a spot."""
    image = np.full((SIZE, SIZE, 3), 120, np.uint8)
    steps = {
        kind: np.median([np.abs(np.diff(change[..., 0], axis=0)).max() for change, _ in drawn_on(kind, image)])
        for kind in ("shade", "spot")
    }
    assert 4 * steps["shade"] < steps["spot"]


def test_gone_shows_the_background() -> None:
    """In place of a missing piece of a part its background is seen."""
    for change, mask in drawn_on("gone", part()):
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        if inner.any():
            assert abs((part() + change)[inner].mean() - 245) < 5


def test_moved_piece_is_found_elsewhere() -> None:
    """Half of the image has the pixels of a place along the cut; a whole part elsewhere is no defect."""
    image = part()
    found = drawn_on("slipped", image, 40)
    assert len(found) >= 10
    object_area = np.zeros((SIZE, SIZE), bool)
    object_area[28:72, 20:80] = True
    assert all(mask[object_area].mean() < 0.9 for _, mask in found)
    assert any(mask[~grow(object_area, 2)].any() for _, mask in found)


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
    """Nothing is drawn on the background but what has moved there, and defects are not all in one place."""
    rng = np.random.default_rng(4)
    background = np.ones((SIZE, SIZE), bool)
    background[24:76, 16:84] = False
    centres = set()
    for attempt in range(100):
        kind = list(KINDS)[attempt % len(KINDS)]
        result = draw(part(), kind, rng)
        if result is not None:
            change = np.abs(result[0].astype(int) - part()).max(axis=2)
            if kind in DISPLACED:
                assert change[background & ~grow(result[1], 2)].max() <= CHANGE_THRESHOLD
            else:
                assert not change[background].any()
                assert not result[1][background].any()
            centres.add(tuple(np.argwhere(result[1]).mean(axis=0).round().astype(int) // 8))
    assert len(centres) > 8


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def test_write_validation_set(tmp_path: Path) -> None:
    """One normal image and five defects of each image held out, with masks of the same name, family after family."""
    images = [surface(seed) for seed in range(8)]
    folder = tmp_path / "set"
    write_validation_set(save_images(tmp_path / "images", images), folder)
    assert {path.name for path in folder.iterdir()} == {"good", "defect", "mask"}
    assert [path.name for path in sorted((folder / "good").iterdir())] == [f"{index:03d}.png" for index in range(8)]
    names = [path.name for path in sorted((folder / "defect").iterdir())]
    assert names == [path.name for path in sorted((folder / "mask").iterdir())]
    kinds = [Path(name).stem.partition("_")[2] for name in names]
    assert names == [f"{index:03d}_{kind}.png" for index, kind in enumerate(kinds)]
    assert [FAMILY_OF[kind] for kind in kinds] == 5 * list(FAMILIES)
    assert set(kinds) == set(KINDS)
    for index, image in enumerate(images):
        good = cv2.imread(str(folder / "good" / f"{index:03d}.png"))
        assert np.array_equal(good, image)
        for name in names[DEFECTS_PER_IMAGE * index : DEFECTS_PER_IMAGE * (index + 1)]:
            defect = cv2.imread(str(folder / "defect" / name))
            mask = cv2.imread(str(folder / "mask" / name), cv2.IMREAD_UNCHANGED)
            assert mask.shape == image.shape[:2]
            assert set(np.unique(mask)) == {0, 255}
            change = np.abs(defect.astype(int) - good).max(axis=2)
            assert change[mask == 255].mean() >= MIN_CONTRAST
            assert change[mask == 255].mean() > 4 * change[mask == 0].mean()


def test_family_of_every_kind() -> None:
    """Eight families, and each kind in one of them."""
    assert len(FAMILIES) == 8
    assert sum(len(kinds) for kinds in FAMILIES.values()) == len(KINDS) == len(FAMILY_OF)
    # Otherwise some family would not be drawn on some images.
    assert np.gcd(DEFECTS_PER_IMAGE, len(FAMILIES)) == 1


def test_next_kind_in_place_of_one_that_cannot_be_seen(tmp_path: Path) -> None:
    """Plain surfaces get the same number of defects, of the kinds that show on them."""
    images = [np.full((SIZE, SIZE, 3), 100 + 10 * index, np.uint8) for index in range(3)]
    write_validation_set(save_images(tmp_path / "images", images), tmp_path / "set")
    names = [path.stem for path in sorted((tmp_path / "set" / "defect").iterdir())]
    kinds = ["scratch", "spot", "ribbed", *3 * ["tint"], "tint", "shade"]
    kinds += ["crack", "stain", "ribbed", *4 * ["tint"]]
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
        normal = cv2.imread(
            str(tmp_path / "plain" / "good" / f"{int(path.name[:3]) // DEFECTS_PER_IMAGE:03d}.png")
        ).astype(int)
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
