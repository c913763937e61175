# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of how much of an image is to be seen after transforms."""

import pytest
import torch
from torchvision.transforms.v2 import CenterCrop, Compose, Pad, Resize, Transform

from anomalib_ddpm_st.core.extent import shown_extent

SIZE = (60, 80)


@pytest.mark.parametrize(
    ("transform", "extent"),
    [
        (CenterCrop((30, 40)), (30, 40)),
        (Resize((32, 32), antialias=False), (60, 80)),
        (Compose([Resize((30, 40), antialias=False), CenterCrop(20)]), (40, 40)),
        (Pad((10, 0)), (60, 100)),
    ],
)
def test_extent(transform: Transform, extent: tuple[float, float]) -> None:
    """In pixels of the image before the transforms."""
    assert shown_extent(transform, SIZE) == pytest.approx(extent, rel=0.02)


def test_nothing_to_see() -> None:
    assert shown_extent(torch.zeros_like, SIZE) is None
