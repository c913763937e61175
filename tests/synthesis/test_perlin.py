# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of Perlin noise and its masks."""

import math

import numpy as np
import pytest
import torch

from anomalib_ddpm_st.synthesis import perlin
from anomalib_ddpm_st.synthesis.perlin import perlin_noise, random_perlin_masks


def naive_perlin(scale: tuple[int, int], angles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Perlin noise one pixel at a time, as in the textbook."""

    def fade(offset: float) -> float:
        return 6 * offset**5 - 15 * offset**4 + 10 * offset**3

    noise = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = row * scale[0] / size[0], column * scale[1] / size[1]
            corners = {}
            for down in (0, 1):
                for right in (0, 1):
                    angle = angles[math.floor(y) + down, math.floor(x) + right]
                    gradient = math.sin(angle), math.cos(angle)
                    offset = y - math.floor(y) - down, x - math.floor(x) - right
                    corners[down, right] = gradient[0] * offset[0] + gradient[1] * offset[1]
            weight_y, weight_x = fade(y % 1), fade(x % 1)
            top = corners[0, 0] + weight_x * (corners[0, 1] - corners[0, 0])
            bottom = corners[1, 0] + weight_x * (corners[1, 1] - corners[1, 0])
            noise[row, column] = math.sqrt(2) * (top + weight_y * (bottom - top))
    return noise


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (17, 9)])
def test_perlin_noise_equals_naive(size: tuple[int, int], generator: torch.Generator) -> None:
    """A batch, each image with its own scale along each axis, equals the loop."""
    scales = torch.tensor([[1, 1], [4, 2], [8, 1], [3, 8]])
    angles = torch.rand(4, 9, 9, generator=generator) * 2 * torch.pi
    noise = perlin_noise(scales, angles, size)
    assert noise.shape == (4, 1, *size)
    for index in range(4):
        expected = naive_perlin(tuple(scales[index].tolist()), angles[index].numpy(), size)
        np.testing.assert_allclose(noise[index, 0].numpy(), expected, atol=2e-5)


def test_perlin_noise_properties(generator: torch.Generator) -> None:
    """Noise stays in [-1, 1] and is zero at the lattice nodes."""
    angles = torch.rand(32, 9, 9, generator=generator) * 2 * torch.pi
    noise = perlin_noise(torch.full((32, 2), 8), angles, (64, 64))
    assert noise.abs().max() <= 1
    assert noise.abs().max() > 0.5
    assert noise[..., ::8, ::8].abs().max() == 0


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (65, 33)])
def test_perlin_masks(size: tuple[int, int]) -> None:
    """Masks are boolean, have the requested size, depend on the generator alone, and differ within a batch."""
    masks = random_perlin_masks(16, size, generator=torch.Generator().manual_seed(2))
    assert masks.shape == (16, 1, *size)
    assert masks.dtype == torch.bool
    assert torch.equal(masks, random_perlin_masks(16, size, generator=torch.Generator().manual_seed(2)))
    assert not torch.equal(masks, random_perlin_masks(16, size, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(masks[:8], masks[8:])
    assert not masks.flatten(1).all(dim=1).any()


def test_perlin_masks_are_not_empty(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse noise gives a mask, too; only a rotation can move it out of the image, and rarely does."""
    for size in ((64, 64), (48, 96)):
        masks = random_perlin_masks(300, size, generator)
        assert masks.flatten(1).any(dim=1).float().mean() > 0.9
    monkeypatch.setattr(perlin, "ROTATION", 0.0)
    masks = random_perlin_masks(300, (64, 64), generator)
    assert masks.flatten(1).any(dim=1).all()


def test_perlin_masks_leave_global_random_state(generator: torch.Generator) -> None:
    """With a generator, the global random state is not touched."""
    state = torch.get_rng_state()
    random_perlin_masks(4, (32, 32), generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
