# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the segmentation head."""

import pytest
import torch
from torch.nn import functional

from anomalib_ddpm_st.detector.head import SegmentationHead


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_logits_at_the_finest_resolution(size: tuple[int, int]) -> None:
    """From levels of any number of channels, at odd sizes, too."""
    head = SegmentationHead([6, 10, 12], width=8).eval()
    products = [
        torch.randn(2, dim, *(max(1, side // factor) for side in size)) for dim, factor in ((6, 1), (10, 2), (12, 4))
    ]
    logits = head(products)
    assert logits.shape == (2, 1, *size)
    assert logits.std() > 0


def test_every_level_and_the_whole_image_count() -> None:
    """A change of any level changes the logits, also far away: the mean over the image is part of the context."""
    head = SegmentationHead([6, 10], width=8).eval()
    products = [torch.randn(1, 6, 32, 32), torch.randn(1, 10, 16, 16)]
    with torch.no_grad():
        before = head(products)
        for level in range(2):
            changed = [product.clone() for product in products]
            changed[level][..., 0, 0] += 20
            difference = (head(changed) - before).abs()
            assert difference[..., 0, 0] > 0
            assert difference[..., -1, -1] > 0


def test_levels_are_reduced_before_they_are_upsampled() -> None:
    """Both are linear, so the order does not change the result."""
    head = SegmentationHead([4, 6], width=5).eval()
    products = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    large = functional.interpolate(products[1], size=(8, 8), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(head(products), head([products[0], large]), atol=1e-5, rtol=0)


def test_channels_are_spread_over_places() -> None:
    """Finer logits than levels: what one place holds makes different logits within it."""
    head = SegmentationHead([6, 6], width=8, scale=2).eval()
    products = [torch.randn(1, 6, 1, 1).expand(1, 6, 5, 7) for _ in range(2)]
    with torch.no_grad():
        logits = head(products)
    assert logits.shape == (1, 1, 10, 14)
    inner = logits[0, 0, 4:6, 6:8]
    assert inner.unique().numel() > 1
