# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the weight of the position in the memory bank."""

import pytest
import torch

from anomalib_ddpm_st.detector.position import ALIKE, ANYWHERE, SURFACE, choose_position_weight, explained_by_place

DIMS = (16, 32)


def features(count: int, shared: float) -> list[torch.Tensor]:
    """Features of images that are alike by some degree; each place has its own."""
    levels = []
    for index, dim in enumerate(DIMS):
        shape = (dim, 16 >> index, 16 >> index)
        levels.append(shared * torch.randn(shape) + (1 - shared**2) ** 0.5 * torch.randn(count, *shape))
    return levels


def test_position_explains_nothing_of_noise() -> None:
    """Not even that part which the mean of a few images keeps by chance."""
    assert explained_by_place([features(6, 0.0)]) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("shared", [0.5, 0.9])
def test_explained_variance(shared: float) -> None:
    """The square of the correlation of two images at the same place, whatever the length of features."""
    images = [level * (1 + torch.rand(len(level), 1, 1, 1)) for level in features(40, shared)]
    assert explained_by_place([images]) == pytest.approx(shared**2, abs=0.05)


def test_equal_images_are_explained_in_full() -> None:
    """Also if there is no variance at all."""
    alike = [level[:1].expand(5, -1, -1, -1) for level in features(1, 0.0)]
    assert explained_by_place([alike]) == pytest.approx(1)
    flat = [torch.ones(5, dim, 4, 4) for dim in DIMS]
    assert explained_by_place([flat]) == pytest.approx(1, abs=0.1)


def test_batches_make_no_difference() -> None:
    """Only all images together count."""
    images = features(9, 0.7)
    parts = [[level[:4] for level in images], [level[4:] for level in images]]
    assert explained_by_place(parts) == pytest.approx(explained_by_place([images]))


def test_weights() -> None:
    """Parts that lie alike, surfaces, and parts that lie anywhere."""
    assert choose_position_weight(0.7, is_surface=False) == ALIKE
    assert choose_position_weight(0.7, is_surface=True) == ALIKE
    assert choose_position_weight(0.3, is_surface=True) == SURFACE
    assert choose_position_weight(0.3, is_surface=False) == ANYWHERE
