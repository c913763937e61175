# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what is known of transforms."""

import torch
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_ddpm_st.core.transforms import find_transform, flatten_transform, make_resize


def test_find_transform() -> None:
    """However deeply it is nested; ``None`` if there is none."""
    crop = CenterCrop(8)
    nested = Compose([Resize(16), Compose([crop, CenterCrop(4)])])
    assert find_transform(nested, CenterCrop) is crop
    assert find_transform(crop, CenterCrop) is crop
    assert find_transform(nested, Normalize) is None
    assert find_transform(None, Resize) is None


def test_flatten_transform() -> None:
    """In the order in which they are applied."""
    steps = [Resize(16), CenterCrop(8), CenterCrop(4)]
    assert flatten_transform(Compose([steps[0], Compose(steps[1:])])) == steps
    assert flatten_transform(steps[0]) == steps[:1]
    assert flatten_transform(None) == []


def test_make_resize() -> None:
    """It resizes as the default pre-processor does, or there is none."""
    assert make_resize((8, 12)).transform(torch.rand(3, 20, 20)).shape == (3, 8, 12)
    assert not make_resize((8, 12)).transform.antialias
    assert make_resize(None) is None
