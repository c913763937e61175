# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the blocks of student and head."""

import pytest
import torch
from torch.nn import functional

from anomalib_ddpm_st.detector.layers import ResidualBlock, conv_block, resize


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
