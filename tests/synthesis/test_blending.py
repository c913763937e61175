# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the blend and the rule for the mask."""

import math

import numpy as np
import pytest
import torch

from anomalib_ddpm_st.synthesis.blending import (
    blend,
    changed_mask,
    changed_pixels,
    exaggeration,
    largest_change,
    surface_contrast,
)


def test_largest_change() -> None:
    """The largest difference counts, in any channel, up or down, but only within the mask."""
    before = torch.full((3, 2, 4, 4), 0.5)
    after = before.clone()
    after[0, 1, 1, 1] = 0.25
    after[0, 0, 3, 3] = 1.0
    after[1, 0, 2, 0] = 0.875
    masks = torch.ones(3, 1, 4, 4, dtype=torch.bool)
    masks[0, :, 3] = False
    masks[2] = False
    assert largest_change(before, after, masks).flatten().tolist() == [0.25, 0.375, 0.0]


def test_changed_pixels() -> None:
    """A pixel counts if one channel changed by more than the threshold, up or down."""
    before = torch.full((2, 3, 2, 2), 0.5)
    after = before.clone()
    after[0, 1, 0, 0] += 0.125
    after[0, 2, 0, 1] -= 0.125
    after[0, :, 1, 0] += 0.0625
    after[1, 0, 1, 1] += 0.1
    expected = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    expected[0, 0, 0, 0] = expected[0, 0, 0, 1] = expected[1, 0, 1, 1] = True
    assert torch.equal(changed_pixels(before, after, 0.0625), expected)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (33, 40)])
def test_surface_contrast_against_blocks(size: tuple[int, int]) -> None:
    """Geometric mean of the standard deviations of blocks, weighted by how much of each is allowed."""
    images = torch.rand(2, 3, *size) * torch.tensor([0.1, 1.0])[:, None, None, None]
    allowed = torch.rand(2, 1, *size) < 0.5
    side = max(2, round(min(size) / 16))
    for image, mask, found in zip(images.double(), allowed, surface_contrast(images, allowed).flatten(), strict=True):
        logarithms, weights = [], []
        for top in range(0, size[0] - side + 1, side):
            for left in range(0, size[1] - side + 1, side):
                block = (..., slice(top, top + side), slice(left, left + side))
                logarithms.append(math.log(max(0.02, image.mean(0)[block].std(correction=0).item())))
                weights.append(max(1e-6, mask[block].double().mean().item()))
        assert found.item() == pytest.approx(math.exp(np.average(logarithms, weights=weights)), rel=1e-3)


def test_surface_contrast_of_an_object_is_not_that_of_its_background() -> None:
    """A plain background and the object's edge hardly count; a blank image has the contrast that is just visible."""
    images = torch.full((2, 3, 64, 64), 0.9)
    images[0, :, 16:48, 16:48] = 0.3
    images[0, :, 16:48:2, 16:48] = 0.4
    allowed = images[:, :1] < 0.8
    allowed[1] = True
    contrast = surface_contrast(images, allowed).flatten()
    assert contrast.tolist() == pytest.approx([0.05, 0.02], abs=1e-4)


def striped(count: int, spread: float) -> torch.Tensor:
    """Surfaces with a standard deviation of ``spread`` in every block: alternating dark and bright rows of pixels."""
    rows = torch.full((32,), 0.5)
    rows[::2] -= spread
    rows[1::2] += spread
    return rows[:, None].expand(count, 3, 32, 32).clone()


def column(*values: float) -> torch.Tensor:
    """One number for each image, of shape ``(B, 1, 1, 1)``."""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_blend_formula(size: tuple[int, int]) -> None:
    """Equation (2) pixel by pixel; without contrast nothing is exaggerated."""
    images, textures = torch.rand(3, 3, *size), torch.rand(3, 3, *size)
    weights, opacity = torch.rand(3, 1, *size), column(0.25, 0.7, 1.0)
    blended = blend(images, textures, weights, opacity, column(0, 0, 0), torch.ones_like(weights).bool())
    torch.testing.assert_close(blended, (1 - opacity * weights) * images + opacity * weights * textures)


def test_contrast_exaggerates_small_changes() -> None:
    """The largest change in the mask reaches the contrast, by a factor of at most eight, and never shrinks."""
    spread = 0.05
    images = striped(5, spread)
    change = torch.linspace(0, 0.2, 32)
    masks = torch.zeros(5, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 5:15, :16] = True  # the largest change lies outside
    masks[4] = False
    masks[4, :, 5:15, 1:4] = True
    contrast = column(0.0, 1.0, 4.0, 6.0, 16.0)
    opacity, allowed = column(1.0, 1.0, 1.0, 1.0, 1.0), torch.ones_like(masks)
    blended = blend(images, (images + change).clamp(0, 1), masks.float(), opacity, contrast, allowed)
    largest, narrow = change[15].item(), change[3].item()
    assert spread < largest < 4 * spread
    assert 8 * narrow < 16 * spread
    for index, scale in enumerate((1.0, 1.0, 4 * spread / largest, 6 * spread / largest, 8.0)):
        expected = torch.where(masks[index], images[index] + scale * change, images[index]).clamp(0, 1)
        torch.testing.assert_close(blended[index], expected, atol=1e-5, rtol=0)
    assert (blended[3] - images[3]).max().item() == pytest.approx(6 * spread, abs=1e-4)
    assert changed_mask(images, blended, masks).flatten(1).any(dim=1).all()


def test_exaggeration() -> None:
    """The factor from the largest change to the visible one, between 1 and 8; nothing is larger than 1."""
    largest = torch.tensor([0.2, 0.1, 0.1, 0.01, 0.5, 0.0])
    visible = torch.tensor([0.1, 0.1, 0.3, 0.3, 3.0, 0.0])
    torch.testing.assert_close(exaggeration(largest, visible), torch.tensor([1.0, 1.0, 3.0, 8.0, 2.0, 1.0]))


def test_exaggeration_stays_in_range() -> None:
    """Values stay in [0, 1], and reach the end towards which the texture changes them."""
    masks = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    images = column(0.1, 0.9).expand(2, 3, 16, 16)
    textures = column(10 / 255, 245 / 255).expand(2, 3, 16, 16)
    blended = blend(images, textures, masks.float(), column(1, 1), column(30.0, 30.0), masks)
    assert changed_mask(images, blended, masks).all()
    assert torch.equal(blended[0], torch.zeros(3, 16, 16))
    assert torch.equal(blended[1], torch.ones(3, 16, 16))


@pytest.mark.parametrize(
    ("step", "marked"),
    [(0.03, [0.012, 0.015, 0.03]), (0.012, [0.012]), (0.3, [0.06, 0.12, 0.15, 0.3])],
)
def test_masks_of_faint_defects(step: float, marked: list[float]) -> None:
    """Equation (3): a third of the largest change counts, but at least 0.01 and at most 0.04."""
    changes = torch.tensor([0.0, 0.004, 0.1 * step, 0.2 * step, 0.4 * step, 0.5 * step, step, 0.0])
    images = torch.full((1, 3, 32, 32), 0.4)
    blended = images + changes.repeat_interleave(4)
    result = changed_mask(images, blended, torch.ones(1, 1, 32, 32, dtype=torch.bool))
    found = (blended - images)[:, :1][result].unique()
    found = found[torch.cat([torch.tensor([True]), found.diff() > 1e-5])]
    torch.testing.assert_close(found, torch.tensor(marked), atol=1e-5, rtol=0)


def test_mask_lies_within_the_weights() -> None:
    """A change outside of them is not marked, nor does it raise the threshold; holes are closed."""
    images = torch.full((1, 3, 32, 32), 0.4)
    blended = images.clone()
    blended[..., 4:12, 4:12] += 0.03
    blended[..., 7, 7] -= 0.03
    blended[..., 20:, 20:] += 0.5
    allowed = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    allowed[..., :16, :16] = True
    expected = torch.zeros_like(allowed)
    expected[..., 4:12, 4:12] = True
    assert torch.equal(changed_mask(images, blended, allowed), expected)


@pytest.mark.parametrize(("count", "is_kept"), [(1, False), (2, True)])
def test_tiny_masks_become_empty(count: int, is_kept: bool) -> None:
    """Less than 0.04 % of the image is not a defect."""
    images = torch.zeros(1, 3, 64, 64)
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 7, 5 : 5 + count] = True
    assert torch.equal(changed_mask(images, images + masks, masks), masks & is_kept)
