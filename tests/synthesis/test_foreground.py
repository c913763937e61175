# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the foreground."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu

from anomalib_ddpm_st.synthesis.foreground import HISTOGRAM_BINS, foreground_mask, is_surface, otsu_threshold


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
    mask = foreground_mask(image[None])
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
        assert foreground_mask(image).all()


def test_foreground_of_a_batch() -> None:
    """Objects and surfaces in one batch give the same masks as one by one."""
    images = torch.stack([draw_object()[0], torch.rand(3, 128, 128), draw_object(background=0.1, colour=0.8)[0]])
    together = foreground_mask(images)
    for index in range(len(images)):
        assert torch.equal(together[index], foreground_mask(images[index : index + 1])[0])
    assert together[1].all()
    assert not together[0].all()
    assert not together[2].all()
    assert is_surface(together).tolist() == [False, True, False]
