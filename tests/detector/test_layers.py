# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the blocks of student and head."""

import pytest
import torch
from torch.nn import functional

from anomalib_ddpm_st.detector.layers import ResidualBlock, conv_block, resize, resize_map


@pytest.mark.parametrize("width", [3, 16])
def test_residual_block(width: int) -> None:
    """The skip connection spans both convolutions and ends in a ReLU."""
    block = ResidualBlock(width).eval()
    hidden = torch.randn(2, width, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(block(hidden), (hidden + block.layers(hidden)).relu())
        block.layers[-1].weight.zero_()
        torch.testing.assert_close(block(hidden), hidden.relu())


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3)])
def test_conv_block_keeps_or_halves_the_size(stride: int, dilation: int) -> None:
    """Whatever the dilation; values are not negative."""
    output = conv_block(3, 5, stride, dilation)(torch.randn(2, 3, 8, 12))
    assert output.shape == (2, 5, 8 // stride, 12 // stride)
    assert output.min() >= 0


def test_resize_is_bilinear() -> None:
    """Without aligned corners, as everywhere in the detector."""
    maps = torch.rand(1, 2, 3, 4)
    expected = functional.interpolate(maps, size=(7, 9), mode="bilinear", align_corners=False)
    assert torch.equal(resize(maps, torch.Size((7, 9))), expected)


@pytest.mark.parametrize("size", [(5, 7), (20, 28), (37, 9), (3, 4), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_are_resized_alike(size: tuple[int, int], dtype: torch.dtype) -> None:
    """By matrix products as by interpolation: enlarged, reduced and at the borders."""
    maps = torch.rand(2, 1, 5, 7, dtype=dtype)
    resized = resize_map(maps, torch.Size(size))
    assert resized.dtype == dtype
    torch.testing.assert_close(resized, resize(maps, torch.Size(size)), rtol=0, atol=1e-6)


def test_maps_are_resized_in_full_precision() -> None:
    """Mixed precision would round the ranks of pixels away."""
    maps = torch.rand(1, 1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resized = resize_map(maps, torch.Size((64, 64)))
    torch.testing.assert_close(resized, resize(maps, torch.Size((64, 64))), rtol=0, atol=1e-6)
