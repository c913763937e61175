# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the shape of masks."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalib_ddpm_st.synthesis.masks import (
    CENTRE_SIZE,
    WINDOW_AXES,
    Windows,
    close_holes,
    limit_masks,
    random_windows,
    soften,
)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6])
def test_close_holes_equals_scipy(density: float) -> None:
    """Away from the border it is scipy's closing; everywhere it only adds pixels next to those that are set."""
    masks = torch.rand(4, 1, 40, 30) < density
    closed = close_holes(masks)
    assert closed.dtype == torch.bool
    square = np.ones((3, 3), dtype=bool)
    for mask, result in zip(masks[:, 0].numpy(), closed[:, 0].numpy(), strict=True):
        expected = ndimage.binary_closing(mask, square)
        np.testing.assert_array_equal(result[1:-1, 1:-1], expected[1:-1, 1:-1])
        assert result[mask].all()
        assert not result[~ndimage.binary_dilation(mask, square)].any()


def test_close_holes_of_nothing_and_everything() -> None:
    """An empty mask stays empty, a full one full."""
    empty = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    assert not close_holes(empty).any()
    assert close_holes(~empty).all()


def windows_at(scores: torch.Tensor, axes: list[list[float]], angles: list[float], used: list[bool]) -> Windows:
    """Windows of known shape, none of them filled."""
    is_used = torch.tensor(used).reshape(-1, 1, 1, 1)
    return Windows(scores, torch.tensor(axes), torch.tensor(angles), is_used, torch.zeros_like(is_used))


@pytest.mark.parametrize("p_local", [0.0, 0.3, 1.0])
def test_random_windows(p_local: float, generator: torch.Generator) -> None:
    """Windows have the given probability, and small ones are as frequent as large ones."""
    windows = random_windows(2000, p_local, 0.5, generator)
    assert windows.used.shape == (2000, 1, 1, 1)
    assert windows.used.float().mean().item() == pytest.approx(p_local, abs=0.04 if 0 < p_local < 1 else 0)
    low, high = WINDOW_AXES
    assert windows.axes.shape == (2000, 2)
    assert low <= windows.axes.min() < 1.05 * low
    assert 0.95 * high < windows.axes.max() <= high
    assert windows.axes.median().item() == pytest.approx((low * high) ** 0.5, rel=0.1)
    assert (windows.axes[:, 0] != windows.axes[:, 1]).all()
    assert 0 <= windows.angles.min() < 0.05
    assert torch.pi - 0.05 < windows.angles.max() <= torch.pi


def test_random_windows_are_seeded() -> None:
    """Windows depend on the generator alone, and the global random state is not touched."""
    state = torch.get_rng_state()
    first, second, other = (random_windows(3, 0.5, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("scores", "axes", "angles"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (40, 33)])
def test_limit_masks_by_formula(size: tuple[int, int]) -> None:
    """Of the mask, the pixels in a rotated ellipse around the pixel with the largest score remain."""
    height, width = size
    scores = torch.rand(2, 1, CENTRE_SIZE, CENTRE_SIZE)
    scores[0, 0, 20, 40] = scores[1, 0, 50, 9] = 2
    axes, angles = [[0.3, 0.1], [0.05, 0.2]], [0.5, 2.0]
    masks = torch.ones(2, 1, height, width, dtype=torch.bool)
    masks[:, :, ::3, ::5] = False
    allowed = torch.ones_like(masks)
    allowed[:, :, :, width // 2 + 3 :: 4] = False
    result = limit_masks(masks, allowed, windows_at(scores, axes, angles, [True, True]))
    assert result.dtype == torch.bool
    for index, (row, column) in enumerate(((20, 40), (50, 9))):
        down = torch.arange(height)[:, None] + 0.5 - (row + 0.5) * height / CENTRE_SIZE
        right = torch.arange(width)[None, :] + 0.5 - (column + 0.5) * width / CENTRE_SIZE
        rotated = torch.complex(right.expand(size), down.expand(size)) * torch.polar(
            torch.tensor(1.0),
            torch.tensor(-angles[index]),
        )
        first, second = (max(axis * min(size), 1) for axis in axes[index])
        distance = (rotated.real / first) ** 2 + (rotated.imag / second) ** 2
        expected = masks[index, 0] & allowed[index, 0] & (distance <= 1)
        clear = (distance - 1).abs() > 1e-4
        assert torch.equal(result[index, 0][clear], expected[clear])
        assert 0 < expected.sum() < (masks & allowed)[index].sum()


def test_window_is_around_a_pixel_of_the_mask() -> None:
    """Only scores of the mask's own pixels count, so the result is never empty."""
    masks = torch.zeros(30, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 5:9, 50:60] = True
    masks[:, :, 60, 3] = True
    result = limit_masks(masks, torch.ones_like(masks), random_windows(30, 1.0, 0.0))
    assert not (result & ~masks).any()
    assert result.flatten(1).any(dim=1).all()


def test_unused_windows_leave_masks_alone() -> None:
    """Without a window the mask is limited to what is allowed."""
    masks, allowed = (torch.rand(4, 1, 32, 32) < 0.5 for _ in range(2))
    assert torch.equal(limit_masks(masks, allowed, random_windows(4, 0.0, 0.0)), masks & allowed)


def test_window_replaces_an_empty_mask() -> None:
    """If mask and object do not overlap, the window on the object is the mask; if nothing is allowed, it is empty."""
    masks = torch.zeros(20, 1, 64, 64, dtype=torch.bool)
    masks[:, :, :8] = True
    allowed = torch.zeros_like(masks)
    allowed[:, :, 30:40, 30:50] = True
    allowed[-1] = False
    for p_local in (0.0, 1.0):
        result = limit_masks(masks, allowed, random_windows(20, p_local, 0.0))
        assert result[:-1].flatten(1).any(dim=1).all()
        assert not (result & ~allowed).any()
        assert (result[:-1].flatten(1).sum(dim=1) < allowed[0].sum()).any()


def test_filled_windows_replace_masks() -> None:
    """A filled window around a pixel of the mask holds every allowed pixel; an unused one changes nothing."""
    masks = torch.zeros(40, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 30, 30] = True
    allowed = torch.ones_like(masks)
    allowed[:, :, :, 32:] = False
    filled = limit_masks(masks, allowed, random_windows(40, 1.0, 1.0))
    assert not (filled & ~allowed).any()
    assert filled[:, :, 30, 30].all()
    area = filled.flatten(1).sum(dim=1)
    assert area.min() > 1
    assert area.unique().numel() > 10
    assert torch.equal(limit_masks(masks, allowed, random_windows(40, 0.0, 1.0)), masks)
    fraction = random_windows(2000, 1.0, 0.3).filled.float().mean().item()
    assert fraction == pytest.approx(0.3, abs=0.04)


def test_limit_masks_writes_to_nothing() -> None:
    """The given masks are not changed."""
    masks, allowed = (torch.rand(4, 1, 32, 32) < 0.5 for _ in range(2))
    kept = masks.clone(), allowed.clone()
    limit_masks(masks, allowed, random_windows(4, 1.0, 0.0))
    assert torch.equal(masks, kept[0])
    assert torch.equal(allowed, kept[1])


def test_soften_is_a_gaussian() -> None:
    """The edge of a half-plane becomes the integral of a Gaussian of the given width; width 0 changes nothing."""
    masks = torch.zeros(3, 1, 100, 100, dtype=torch.bool)
    masks[..., :50] = True
    widths = torch.tensor([0.0, 0.02, 0.05])
    weights = soften(masks, widths)
    assert torch.equal(weights[0], masks[0].float())
    distance = torch.arange(100) + 0.5 - 50
    for index in (1, 2):
        expected = 0.5 * torch.erfc(distance / (100 * widths[index]) / 2**0.5)
        middle = weights[index, 0, 50]
        # Near the sides the mask is reflected.
        assert torch.allclose(middle[20:80], expected[20:80], atol=0.02)
    assert torch.all(weights.amax(dim=(1, 2, 3)) == 1)


def test_soften_keeps_the_peak_of_small_masks() -> None:
    """A small spot is not blurred away; an empty mask stays empty."""
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, 0, 20, 20] = True
    weights = soften(masks, torch.tensor([0.05, 0.05]))
    assert weights[0, 0, 20, 20] == 1
    assert weights[0].sum() > 20
    assert not weights[1].any()
    assert not soften(masks[1:], torch.tensor([0.05])).any()


@pytest.mark.parametrize("size", [(8, 8), (17, 33), (64, 40)])
def test_soften_images_of_any_size(size: tuple[int, int]) -> None:
    """Each mask is blurred as if it were alone."""
    masks = torch.rand(4, 1, *size) < 0.2
    widths = torch.tensor([0.05, 0.0, 0.005, 0.02])
    weights = soften(masks, widths)
    for index in range(4):
        assert torch.allclose(weights[index : index + 1], soften(masks[index : index + 1], widths[index : index + 1]))
