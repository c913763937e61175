# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of geometric transforms."""

import pytest
import torch

from anomalib_ddpm_st.core.geometry import flip_rotate, random_affine, shift_and_flip, warp


def test_warp_of_nothing() -> None:
    """No rotation, size 1 and no shift give the image back."""
    images = torch.rand(2, 3, 12, 20)
    for shifts in (None, torch.zeros(2, 2)):
        torch.testing.assert_close(warp(images, torch.zeros(2), torch.ones(2), shifts), images, atol=1e-4, rtol=0)


def test_warp_rotates_enlarges_and_moves() -> None:
    """Each image by its own numbers: quarter turns, a dot that moves, an area that grows with the square."""
    images = torch.rand(2, 3, 15, 15)
    turned = warp(images, torch.tensor([90.0, 180.0]), torch.ones(2))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[1], images[1].rot90(2, (1, 2)), atol=1e-4, rtol=0)
    dot = torch.zeros(1, 1, 12, 20)
    dot[..., 4, 9] = 1
    moved = warp(dot, torch.zeros(1), torch.ones(1), torch.tensor([[5.0, -2.0]]))
    assert divmod(int(moved.argmax()), 20) == (2, 14)
    square = torch.zeros(2, 1, 64, 64)
    square[..., 24:40, 24:40] = 1
    # Beyond the middle a shrunk image is mirrored.
    zoomed = warp(square, torch.tensor([0.0, 30.0]), torch.tensor([2.0, 0.5]))
    area = torch.stack([zoomed[0].sum(), zoomed[1, :, 20:44, 20:44].sum()]) / square[0].sum()
    torch.testing.assert_close(area, torch.tensor([4.0, 0.25]), atol=0.15, rtol=0.05)


def test_warp_mirrors_what_is_missing() -> None:
    """A flat image stays flat: no black corners."""
    images = torch.full((1, 3, 16, 24), 0.7)
    result = warp(images, torch.tensor([40.0]), torch.tensor([0.5]), torch.tensor([[6.0, 3.0]]))
    torch.testing.assert_close(result, images)


def test_random_affine_stay_in_their_limits() -> None:
    """Each image gets its own pose: areas, angles and places of a bar spread over the whole of the range."""
    bar = torch.zeros(1, 1, 64, 96)
    bar[..., 28:36, 36:60] = 1
    count, scale, shift = 200, 0.2, 0.1
    posed = random_affine(bar.expand(count, -1, -1, -1), 30.0, scale, shift)[:, 0]
    area = posed.sum(dim=(1, 2))
    rows, columns = torch.arange(64.0)[:, None], torch.arange(96.0)
    down, right = ((posed * place).sum(dim=(1, 2)) / area for place in (rows, columns))
    spread = [
        (posed * offsets).sum(dim=(1, 2))
        for offsets in (
            (rows - down[:, None, None]) ** 2,
            (columns - right[:, None, None]) ** 2,
            (rows - down[:, None, None]) * (columns - right[:, None, None]),
        )
    ]
    angles = torch.rad2deg(0.5 * torch.atan2(2 * spread[2], spread[1] - spread[0]))
    for values, limit in (
        ((area / bar.sum()).log() / 2, scale),
        (angles, 30.0),
        ((right - 47.5) / 96, shift),
        ((down - 31.5) / 64, shift),
    ):
        assert values.abs().max() < 1.1 * limit + 0.01
        assert values.min() < -0.8 * limit
        assert values.max() > 0.8 * limit


def test_random_affine_within_autocast() -> None:
    """They are computed in 32 bit, where half the precision would shift pixels."""
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posed = random_affine(images, 0.0, 0.0, 0.0)
    torch.testing.assert_close(posed, images, atol=1e-4, rtol=0)


def test_shift_and_flip_against_roll_and_flip() -> None:
    """Each image is flipped and shifted by its own numbers."""
    images = torch.rand(4, 3, 6, 5)
    shifts = torch.tensor([[0, 0], [2, 0], [1, 3], [5, 4]])
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    moved = shift_and_flip(images, shifts, flips)
    for image, shift, flip, result in zip(images, shifts.tolist(), flips.tolist(), moved, strict=True):
        dims = [axis + 1 for axis in range(2) if flip[axis]]
        assert torch.equal(result, image.flip(dims).roll(shift, dims=(1, 2)))


ELEMENTS = torch.tensor(
    [[transpose, rows, columns] for transpose in (0, 1) for rows in (0, 1) for columns in (0, 1)],
    dtype=torch.bool,
)


def test_flip_rotate_by_its_own_element() -> None:
    """First transposed, then rows are flipped, then columns; each image by its own element."""
    images = torch.rand(8, 2, 6, 6)
    turned = flip_rotate(images, ELEMENTS)
    for image, result, (transpose, flip_rows, flip_columns) in zip(images, turned, ELEMENTS.tolist(), strict=True):
        expected = image.transpose(-1, -2) if transpose else image
        expected = expected.flip(-2) if flip_rows else expected
        expected = expected.flip(-1) if flip_columns else expected
        assert torch.equal(result, expected)
    assert torch.equal(flip_rotate(images, ELEMENTS[:1].expand(8, -1)), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_flip_rotate_images_that_are_not_square(dtype: torch.dtype) -> None:
    """They are flipped, but not transposed."""
    images = (torch.rand(4, 1, 3, 5) * 2).to(dtype)
    turned = flip_rotate(images, ELEMENTS[[2, 1, 4, 7]])
    assert turned.dtype == dtype
    expected = [images[0].flip(-2), images[1].flip(-1), images[2], images[3].flip(-2).flip(-1)]
    assert torch.equal(turned, torch.stack(expected))


def test_image_and_mask_turn_alike() -> None:
    """A mask marks the same pixels before and after."""
    images = torch.rand(8, 3, 7, 7)
    masks = (images[:, :1] > 0.7).float()
    assert torch.equal(flip_rotate(masks, ELEMENTS), (flip_rotate(images, ELEMENTS)[:, :1] > 0.7).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_shift_and_flip_wraps_around(dtype: torch.dtype) -> None:
    """Negative shifts and shifts beyond the side wrap around; the type is kept."""
    images = (torch.rand(2, 1, 4, 7) * 3).to(dtype)
    shifts = torch.tensor([[-1, 9], [5, -8]])
    shifted = shift_and_flip(images, shifts, torch.zeros(2, 2, dtype=torch.bool))
    assert shifted.dtype == dtype
    for image, shift, result in zip(images, shifts.tolist(), shifted, strict=True):
        assert torch.equal(result, image.roll(shift, dims=(1, 2)))


def test_flip_rotate_is_the_symmetry_group_of_the_square() -> None:
    """Eight different images: the quarter turns of the image and of its mirror image."""
    image = torch.rand(1, 3, 5, 5)
    posed = flip_rotate(image.expand(8, -1, -1, -1), ELEMENTS)
    expected = [torch.rot90(one, times, (-2, -1)) for one in (image[0], image[0].flip(-1)) for times in range(4)]
    as_sets = [{tuple(one.flatten().tolist()) for one in images} for images in (posed, expected)]
    assert as_sets[0] == as_sets[1]
    assert len(as_sets[0]) == 8
