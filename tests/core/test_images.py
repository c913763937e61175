# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the reading and the warping of normal images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_ddpm_st.images import load_normal_images, native_aspect, randomly_posed, warp

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = PIXELS, mode: str | None = None) -> Path:
    """Write pixels to a file, converted to another mode if asked for."""
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_rgb(tmp_path: Path) -> None:
    """At their own size, images come out as they were written, in their order."""
    paths = [save(tmp_path / "b.png"), save(tmp_path / "a.png", 255 - PIXELS)]
    images = load_normal_images(paths, (12, 20))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 3, 12, 20)
    assert torch.equal(images[0], torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert torch.equal(images[1], 255 - images[0])


def test_strings_and_mixed_sizes(tmp_path: Path) -> None:
    """Images of any size are brought to one size, height first."""
    tall = np.zeros((60, 30, 3), dtype=np.uint8)
    tall[:30] = 200
    paths = [str(save(tmp_path / "tall.png", tall)), str(save(tmp_path / "wide.jpg"))]
    images = load_normal_images(paths, (16, 8))
    assert images.shape == (2, 3, 16, 8)
    assert (images[0, :, :7] == 200).all()
    assert (images[0, :, 9:] == 0).all()


def test_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    """The same folder gives the same cache key on any number of cores."""
    rng = np.random.default_rng(0)
    paths = [save(tmp_path / f"{index}.png", rng.integers(0, 256, (300, 410, 3), dtype=np.uint8)) for index in range(2)]
    threads = torch.get_num_threads()
    try:
        loaded = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loaded.append(load_normal_images(paths, (256, 256)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(loaded[0], loaded[1])
    assert torch.equal(loaded[0], loaded[2])


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_modes(mode: str, tmp_path: Path) -> None:
    """Every mode of 8 bits becomes what PIL makes of it in RGB."""
    suffix = ".tif" if mode == "CMYK" else ".png"
    paths = [save(tmp_path / f"{index}{suffix}", mode=mode) for index in range(2)]
    images = load_normal_images(paths, (12, 20))
    with Image.open(paths[0]) as image:
        expected = torch.from_numpy(np.asarray(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(images[0], expected)
    if mode in {"L", "LA", "1"}:
        assert torch.equal(images[0, 0], images[0, 2])


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    """The alpha channel is left out."""
    pixels = np.concatenate([PIXELS, np.zeros((12, 20, 1), dtype=np.uint8)], axis=2)
    paths = [save(tmp_path / f"{index}.png", pixels) for index in range(2)]
    assert torch.equal(load_normal_images(paths, (12, 20))[0], torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_images_are_not_saturated(suffix: str, tmp_path: Path) -> None:
    """Grey images of 16 bits are read right or refused by name, but not turned white in silence."""
    ramp = np.linspace(0, 65535, 12 * 20).reshape(12, 20).astype(np.uint16)
    paths = [save(tmp_path / f"{index}{suffix}", ramp) for index in range(2)]
    try:
        images = load_normal_images(paths, (12, 20))
    except ValueError as error:
        assert paths[0].name in str(error)  # ruff: ignore[pytest-assert-in-except]
    else:
        torch.testing.assert_close(
            images[0, 0].float(), torch.from_numpy(ramp.astype(np.float32)) / 257, atol=1.0, rtol=0
        )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_truncated_file(suffix: str, kept: float, tmp_path: Path) -> None:
    """The message names the file, whatever is missing of it."""
    good = save(tmp_path / f"good{suffix}", np.kron(PIXELS, np.ones((8, 8, 1), dtype=np.uint8)))
    content = good.read_bytes()
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(ValueError, match=rf"bad{suffix} cannot be read"):
        load_normal_images([good, bad], (12, 20))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    """A file that is not there, is no image, or is a folder is named."""
    good = save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    for name in ("nowhere.png", "text.png", "folder.png"):
        with pytest.raises(ValueError, match=name):
            load_normal_images([good, tmp_path / name], (12, 20))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(count: int, tmp_path: Path) -> None:
    """The message says how many there are and how many are needed."""
    with pytest.raises(ValueError, match=rf"at least 2.*{count}"):
        load_normal_images([save(tmp_path / "one.png")] * count, (12, 20))


def test_one_image_where_that_will_do(tmp_path: Path) -> None:
    """Said by who asks; none is never enough."""
    Image.new("RGB", (8, 8)).save(tmp_path / "only.png")
    assert load_normal_images([tmp_path / "only.png"], (4, 4), min_images=1).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="at least 1 normal image, but found 0"):
        load_normal_images([], (4, 4), min_images=1)


def test_native_aspect(tmp_path: Path) -> None:
    """The median, of images as they are in their files."""
    paths = [tmp_path / f"{width}.png" for width in (10, 20, 80)]
    for path in paths:
        Image.new("L", (int(path.stem), 10)).save(path)
    assert native_aspect(paths) == pytest.approx(2.0)
    assert native_aspect(paths[:1]) == pytest.approx(1.0)


@pytest.mark.parametrize(("count", "limit"), [(10, 4), (7, 7), (9, 8), (5, 50)])
def test_max_images(count: int, limit: int, tmp_path: Path) -> None:
    """Of more images, evenly spaced ones are taken, each once and in order."""
    paths = [save(tmp_path / f"{index}.png", np.full((4, 4, 3), index, dtype=np.uint8)) for index in range(count)]
    taken = load_normal_images(paths, (4, 4), max_images=limit)[:, 0, 0, 0].tolist()
    assert len(taken) == min(count, limit)
    assert taken == sorted(set(taken))
    gaps = np.diff(taken)
    assert gaps.max() - gaps.min() <= 1
    assert (taken[0], taken[-1]) == (0, count - 1)


def test_warp_of_nothing() -> None:
    """No rotation, size 1 and no shift give the image back."""
    images = torch.rand(2, 3, 12, 20)
    for shifts in (None, torch.zeros(2, 2)):
        torch.testing.assert_close(warp(images, torch.zeros(2), torch.ones(2), shifts), images, atol=1e-4, rtol=0)


def test_warp_rotates_enlarges_and_moves() -> None:
    """Each image by its own numbers: quarter turns, a dot that moves, an area that grows with the square."""
    images = torch.rand(2, 3, 15, 15)
    turned = warp(images, torch.tensor([90.0, 180.0]), torch.ones(2))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[1], images[1].rot90(2, (1, 2)), atol=1e-4, rtol=0)
    dot = torch.zeros(1, 1, 12, 20)
    dot[..., 4, 9] = 1
    moved = warp(dot, torch.zeros(1), torch.ones(1), torch.tensor([[5.0, -2.0]]))
    assert divmod(int(moved.argmax()), 20) == (2, 14)
    square = torch.zeros(2, 1, 64, 64)
    square[..., 24:40, 24:40] = 1
    # Beyond the middle a shrunk image is mirrored.
    zoomed = warp(square, torch.tensor([0.0, 30.0]), torch.tensor([2.0, 0.5]))
    area = torch.stack([zoomed[0].sum(), zoomed[1, :, 20:44, 20:44].sum()]) / square[0].sum()
    torch.testing.assert_close(area, torch.tensor([4.0, 0.25]), atol=0.15, rtol=0.05)


def test_warp_mirrors_what_is_missing() -> None:
    """A flat image stays flat: no black corners."""
    images = torch.full((1, 3, 16, 24), 0.7)
    result = warp(images, torch.tensor([40.0]), torch.tensor([0.5]), torch.tensor([[6.0, 3.0]]))
    torch.testing.assert_close(result, images)


def test_random_poses_stay_in_their_limits() -> None:
    """Each image gets its own pose: areas, angles and places of a bar spread over the whole of the range."""
    bar = torch.zeros(1, 1, 64, 96)
    bar[..., 28:36, 36:60] = 1
    count, scale, shift = 200, 0.2, 0.1
    posed = randomly_posed(bar.expand(count, -1, -1, -1), 30.0, scale, shift)[:, 0]
    area = posed.sum(dim=(1, 2))
    rows, columns = torch.arange(64.0)[:, None], torch.arange(96.0)
    down, right = ((posed * place).sum(dim=(1, 2)) / area for place in (rows, columns))
    spread = [
        (posed * offsets).sum(dim=(1, 2))
        for offsets in (
            (rows - down[:, None, None]) ** 2,
            (columns - right[:, None, None]) ** 2,
            (rows - down[:, None, None]) * (columns - right[:, None, None]),
        )
    ]
    angles = torch.rad2deg(0.5 * torch.atan2(2 * spread[2], spread[1] - spread[0]))
    for values, limit in (
        ((area / bar.sum()).log() / 2, scale),
        (angles, 30.0),
        ((right - 47.5) / 96, shift),
        ((down - 31.5) / 64, shift),
    ):
        assert values.abs().max() < 1.1 * limit + 0.01
        assert values.min() < -0.8 * limit
        assert values.max() > 0.8 * limit


def test_random_poses_within_autocast() -> None:
    """They are computed in 32 bit, where half the precision would shift pixels."""
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posed = randomly_posed(images, 0.0, 0.0, 0.0)
    torch.testing.assert_close(posed, images, atol=1e-4, rtol=0)
