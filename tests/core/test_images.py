# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the reading of normal images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_ddpm_st.core.images import evenly_spaced, find_transform, load_image, load_normal_images, native_aspect

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
    """Grey images of 16 bits are read correctly or refused by name, but not silently turned white."""
    ramp = np.linspace(0, 65535, 12 * 20).reshape(12, 20).astype(np.uint16)
    paths = [save(tmp_path / f"{index}{suffix}", ramp) for index in range(2)]
    try:
        images = load_normal_images(paths, (12, 20))
    except ValueError as error:
        assert paths[0].name in str(error)  # noqa: PT017
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


@pytest.mark.parametrize(("count", "most", "expected"), [(5, 5, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]), (1, 9, [0])])
def test_evenly_spaced(count: int, most: int, expected: list[int]) -> None:
    """First and last item are chosen, and the gaps are equal."""
    assert evenly_spaced(count, most).tolist() == expected


def test_find_transform() -> None:
    """However deeply it is nested; ``None`` if there is none."""
    crop = CenterCrop(8)
    nested = Compose([Resize(16), Compose([crop, CenterCrop(4)])])
    assert find_transform(nested, CenterCrop) is crop
    assert find_transform(crop, CenterCrop) is crop
    assert find_transform(nested, Normalize) is None
    assert find_transform(None, Resize) is None


def test_load_image(tmp_path: Path) -> None:
    """Without a size the pixels are those of the file; with one, those of ``load_normal_images``."""
    path = save(tmp_path / "image.png")
    image = load_image(path)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert torch.equal(load_image(path, (6, 5)), load_normal_images([path], (6, 5), min_images=1)[0])
