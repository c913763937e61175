# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the foreground."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu
from torchvision.transforms.v2 import InterpolationMode, Pad, Resize

from anomalib_ddpm_st.core.frames import find_frames
from anomalib_ddpm_st.synthesis.foreground import (
    HISTOGRAM_BINS,
    find_foreground,
    otsu_threshold,
)


def between(values: np.ndarray, threshold: float) -> float:
    """Variance between the two classes of a threshold; Otsu's threshold has the largest."""
    upper = values > threshold
    return upper.mean() * (1 - upper.mean()) * (values[upper].mean() - values[~upper].mean()) ** 2


@pytest.mark.parametrize("seed", range(6))
def test_otsu_equals_skimage(seed: int) -> None:
    """Thresholds of mixtures of two classes agree within one bin or are equally good."""
    source = np.random.default_rng(seed)
    low, high, fraction = source.uniform(0.1, 0.4), source.uniform(0.55, 0.9), source.uniform(0.2, 0.8)
    upper = source.random((3, 4000)) < fraction
    values = np.where(upper, source.normal(high, 0.05, upper.shape), source.normal(low, 0.04, upper.shape))
    values = np.clip(values, 0, 1)
    values[:, :2] = 0, 1  # so that the histograms of both implementations have the same range
    result = otsu_threshold(torch.from_numpy(values).float())
    assert result.shape == (3,)
    for row, threshold in zip(range(3), result.tolist(), strict=True):
        expected = threshold_otsu(values[row], nbins=HISTOGRAM_BINS)
        # Between two distant classes many thresholds are equally good.
        near = abs(threshold - expected) <= 1.01 / HISTOGRAM_BINS
        assert near or between(values[row], threshold) >= 0.999 * between(values[row], expected)
        assert ((values[row] > threshold) == upper[row]).mean() > 0.97


def test_otsu_separates_two_values() -> None:
    """Two values end up on different sides, even if one is rare."""
    values = torch.zeros(3, 1000)
    values[0, :500], values[1, :20], values[2, :990] = 1.0, 0.6, 0.3
    threshold = otsu_threshold(values)
    assert (threshold > 0).all()
    assert (threshold < torch.tensor([1.0, 0.6, 0.3])).all()


def test_otsu_of_one_value_is_finite() -> None:
    """A flat image has only one class, and gives no NaN."""
    assert otsu_threshold(torch.full((2, 100), 0.5)).isfinite().all()


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> torch.Tensor:
    """Boolean disc of shape ``(H, W)``."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def draw_object(
    size: tuple[int, int] = (128, 128),
    background: float = 0.9,
    colour: float = 0.25,
    hole: float = 0.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ring on a plain background with a little noise."""
    body = disc(size, (size[0] / 2, size[1] / 2), min(size) * 0.32)
    inside = disc(size, (size[0] / 2, size[1] / 2), min(size) * 0.1)
    image = torch.full(size, background)
    image[body] = colour
    image[inside] = hole
    image = (image + 0.01 * torch.randn(3, *size)).clamp(0, 1)
    return image, body


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (64, 64), (130, 70)])
@pytest.mark.parametrize(("background", "colour"), [(0.9, 0.25), (0.05, 0.7)])
def test_foreground_of_an_object(size: tuple[int, int], background: float, colour: float) -> None:
    """The whole object is found, with its hole filled, up to the resolution of the small image."""
    image, body = draw_object(size, background, colour, background)
    mask, is_surface, _ = find_foreground(image[None])
    assert not is_surface
    assert mask.shape == (1, 1, *size)
    assert mask.dtype == torch.bool
    found = mask[0, 0].numpy()
    grain = 3 * math.ceil(max(size) / 64)
    near = ndimage.binary_dilation(body.numpy(), iterations=grain)
    assert found[body.numpy()].all()
    assert not found[~near].any()


def test_foreground_of_a_surface() -> None:
    """Without a plain background everything is foreground."""
    noise = torch.rand(1, 3, 96, 96)
    gradient = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    stripes = (torch.arange(96) // 8 % 2).float().expand(1, 3, 96, 96)
    flat = torch.full((1, 3, 96, 96), 0.4)
    for image in (noise, gradient, stripes, flat):
        mask, is_surface, _ = find_foreground(image)
        assert mask.all()
        assert is_surface


def test_foreground_of_a_batch() -> None:
    """Objects and surfaces in one batch give the same masks as one by one."""
    images = torch.stack([draw_object()[0], torch.rand(3, 128, 128), draw_object(background=0.1, colour=0.8)[0]])
    together, is_surface, _ = find_foreground(images)
    for index in range(len(images)):
        assert torch.equal(together[index], find_foreground(images[index : index + 1]).mask[0])
    assert together[1].all()
    assert not together[0].all()
    assert not together[2].all()
    assert is_surface.tolist() == [False, True, False]


FRAMES = {
    "padding": [16, 16, 16, 16],
    "letterbox": [0, 30, 0, 30],
    "right and bottom": [0, 0, 25, 40],
    "one pixel": [1, 1, 1, 1],
}


def pad(images: torch.Tensor, margins: list[int], fill: float) -> torch.Tensor:
    """Add a frame of left, top, right and bottom margins."""
    return Pad(margins, fill=fill)(images)


@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("margins", FRAMES.values(), ids=FRAMES.keys())
def test_frame_is_never_foreground(margins: list[int], fill: float) -> None:
    """Objects and surfaces have the same foreground with a frame as without, and nothing in the frame."""
    images = torch.stack([draw_object()[0], torch.rand(3, 128, 128), draw_object(background=0.1, colour=0.8)[0]])
    expected = find_foreground(images)
    left, top, right, bottom = margins
    mask, is_surface, _ = find_foreground(pad(images, margins, fill))
    assert torch.equal(is_surface, expected.is_surface)
    content = mask[..., top : mask.shape[-2] - bottom, left : mask.shape[-1] - right]
    assert torch.equal(content, expected.mask)
    assert mask.sum() == content.sum()


def test_frames_of_a_batch() -> None:
    """Images with other frames, and without one, in a batch give the same masks as one by one."""
    image = draw_object((160, 160))[0][None]
    images = torch.cat([image, pad(image[..., 32:], [10, 0, 22, 0], 0.0), pad(image[..., 32:, :], [0, 16, 0, 16], 0.5)])
    assert find_frames(images).tolist() == [[0, 0, 0, 0], [0, 0, 10, 22], [16, 16, 0, 0]]
    together, is_surface, _ = find_foreground(images)
    for index in range(len(images)):
        alone = find_foreground(images[index : index + 1])
        assert torch.equal(together[index], alone.mask[0])
        assert is_surface[index] == alone.is_surface[0]


@pytest.mark.parametrize("interpolation", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
@pytest.mark.parametrize("size", [(200, 144), (96, 96), (128, 200)])
@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
def test_frame_that_was_resized(size: tuple[int, int], fill: float, interpolation: InterpolationMode) -> None:
    """Pixels mixed of frame and image belong to the frame; the object is found as before."""
    images = torch.stack([draw_object()[0], draw_object(background=0.1, colour=0.8)[0], torch.rand(3, 128, 128)])
    resize = Resize(size, interpolation=interpolation, antialias=True)
    framed = resize(pad(images, [20, 20, 20, 20], fill)).clamp(0, 1)
    expected = pad(find_foreground(images).mask.float(), [20, 20, 20, 20], 0.0)
    expected = Resize(size, interpolation=InterpolationMode.NEAREST)(expected).bool()
    mask, is_surface, _ = find_foreground(framed)
    assert is_surface.tolist() == [False, False, True]
    differs = (mask != expected).float().mean(dim=(1, 2, 3))
    assert (differs < 0.06).all(), differs
