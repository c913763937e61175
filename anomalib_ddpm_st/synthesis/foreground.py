# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Foreground: an object on a plain background, or the whole surface. Every function works on whole batches."""

from typing import NamedTuple

import torch
from torch.nn import functional

from .masks import dilate

FOREGROUND_SIZE = 64
HISTOGRAM_BINS = 64
# Smallest difference in brightness between an object, or an image, and what surrounds it.
MIN_CONTRAST = 0.08
# A frame has one colour, up to the rounding of eight bits.
FRAME_TOLERANCE = 1.5 / 255
# Rows in which a resize blurs the end of a frame.
FRAME_BLUR = 4
# Part of its length along which the content differs visibly at one side of a frame at least, and at all at the others.
MIN_VISIBLE = 0.8
MIN_DIFFERENT = 0.5
# Growth of the difference from the frame, from one row to the next, above which a row is mixed of frame and content.
MIXED = 0.25


class Foreground(NamedTuple):
    """Where images show the object, or the surface.

    Attributes:
        mask (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        is_surface (torch.Tensor): Whether an image shows only a surface, and no object on a plain background; boolean
            of shape ``(B,)``.
    """

    mask: torch.Tensor
    is_surface: torch.Tensor


def otsu_threshold(values: torch.Tensor) -> torch.Tensor:
    """Threshold of Otsu (1979) for each row.

    Args:
        values (torch.Tensor): Values in [0, 1] of shape ``(B, N)``.

    Returns:
        torch.Tensor: Thresholds of shape ``(B,)``; values above it belong to the upper class.
    """
    bins = (values * HISTOGRAM_BINS).long().clamp(0, HISTOGRAM_BINS - 1)
    histogram = torch.zeros(values.shape[0], HISTOGRAM_BINS, device=values.device)
    histogram = histogram.scatter_add_(1, bins, torch.ones_like(values)) / values.shape[1]
    centres = (torch.arange(HISTOGRAM_BINS, device=values.device) + 0.5) / HISTOGRAM_BINS
    weight = histogram.cumsum(1)
    mean = (histogram * centres).cumsum(1)
    between = (mean[:, -1:] * weight - mean) ** 2 / (weight * (1 - weight)).clamp_min(1e-8)
    # Between two distant classes every threshold is equally good: take the middle one.
    best = between >= between.amax(dim=1, keepdim=True) * (1 - 1e-4)
    return ((best * centres).sum(1) / best.sum(1)) + 0.5 / HISTOGRAM_BINS


def find_foreground(images: torch.Tensor) -> Foreground:
    """Find the object on a plain background; without a plain background, the whole image is foreground.

    The background is connected to the border and has its colour. An image counts as a surface, which is all foreground,
    if its border has several colours or if almost nothing, or everything, would remain. A frame of one colour around an
    image, as padding makes it, is never foreground, and what lies within it is treated as if there were no frame.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        Foreground: Masks, and which images are surfaces.
    """
    areas = find_framed_areas(images)
    if not areas.any():
        return _find_foreground(images)
    mask = torch.zeros_like(images[:, :1], dtype=torch.bool)
    is_surface = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    height, width = images.shape[-2:]
    for area in areas.unique(dim=0):
        chosen = (areas == area).all(dim=1)
        top, bottom, left, right = area.tolist()
        rows, columns = slice(top, height - bottom), slice(left, width - right)
        inside = _find_foreground(images[chosen][..., rows, columns])
        framed = torch.zeros_like(mask[chosen])
        framed[..., rows, columns] = inside.mask
        mask[chosen], is_surface[chosen] = framed, inside.is_surface
    return Foreground(mask, is_surface)


def find_framed_areas(images: torch.Tensor) -> torch.Tensor:
    """Find frames of one colour around images, as padding makes them.

    Each side of a frame is straight, has exactly one colour and ends abruptly along most of its length, within the few
    pixels that a resize blurs. A plain background, even a saturated one, ends so only at a part that fills its width.
    Frames in a frame are bands of a pattern, and none of them is a frame.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Rows at the top and at the bottom and columns at the left and at the right that belong to a frame,
        integers of shape ``(B, 4)``.
    """
    areas = _find_outer_frames(images)
    for index in areas.any(dim=1).nonzero().flatten().tolist():
        top, bottom, left, right = areas[index].tolist()
        content = images[index : index + 1, :, top : images.shape[2] - bottom, left : images.shape[3] - right]
        if _find_outer_frames(content).any():
            areas[index] = 0
    return areas


def _find_outer_frames(images: torch.Tensor) -> torch.Tensor:
    """Widths of frames, as :func:`find_framed_areas` returns them, whatever lies within them."""
    # Every side as the first row of an image.
    sides = (images, images.flip(2), images.transpose(2, 3), images.transpose(2, 3).flip(2))
    constant = torch.stack([_count_constant_rows(side) for side in sides], dim=1)
    framed = torch.zeros_like(constant)
    for index, rows in enumerate(constant.tolist()):
        ends, is_visible = [0, 0, 0, 0], False
        for number, side in enumerate(sides):
            before, after = (rows[2], rows[3]) if number < 2 else (rows[0], rows[1])
            across = side[index, :, :, before : side.shape[3] - after]
            if 0 < rows[number] < side.shape[2] // 2 and across.shape[2] > 0:
                ends[number], visible = _frame_end(across, rows[number])
                is_visible |= visible
        # Every side of one colour must end as a frame does. One side may do so by chance: the flat end of a part.
        if is_visible and [end > 0 for end in ends] == [count > 0 for count in rows]:
            framed[index] = torch.tensor(ends)
    return framed


def _count_constant_rows(images: torch.Tensor) -> torch.Tensor:
    """Number of rows from the first one on that have the colour of the first pixel everywhere, of shape ``(B,)``."""
    colour = images[:, :, :1, 0]
    if not (images[:, :, 0] - colour).abs().amax(dim=(1, 2)).le(FRAME_TOLERANCE).any():
        return torch.zeros(len(images), dtype=torch.long, device=images.device)
    lowest, highest = images.aminmax(dim=3)
    differs = torch.maximum(highest - colour, colour - lowest).amax(dim=1) > FRAME_TOLERANCE
    return differs.cumsum(dim=1).eq(0).sum(dim=1)


def _frame_end(image: torch.Tensor, rows: int) -> tuple[int, bool]:
    """End of a frame at the top of an image.

    Args:
        image (torch.Tensor): Image of shape ``(3, H, W)``.
        rows (int): First rows, of one colour.

    Returns:
        tuple[int, bool]: Number of rows of the frame, 0 if it does not end along most of its length; and whether the
        content differs visibly.
    """
    following = image[:, rows : rows + FRAME_BLUR + 1]
    difference = (following - image[:, :1, :1]).abs().amax(dim=0)
    level = difference.mean(dim=1)
    # Rows that a resize has mixed of frame and content differ less from the frame than the next one does.
    is_settled = level.diff() < MIXED * level[:-1]
    for threshold, part in ((MIN_CONTRAST, MIN_VISIBLE), (FRAME_TOLERANCE, MIN_DIFFERENT)):
        ends = ((difference[:-1] > threshold).float().mean(dim=1) > part) & is_settled
        if ends.any():
            return rows + int(ends.float().argmax()), threshold == MIN_CONTRAST
    return 0, False


def _find_foreground(images: torch.Tensor) -> Foreground:
    """Find the object, or the surface, in images without a frame."""
    small = functional.interpolate(images, (FOREGROUND_SIZE, FOREGROUND_SIZE), mode="bilinear", antialias=True)
    border = _border(small.device)
    border_colour = small[:, :, border].median(dim=2).values[:, :, None, None]
    distance = (small - border_colour).abs().amax(dim=1, keepdim=True)
    threshold = otsu_threshold(distance.flatten(1))[:, None, None, None]
    plain = distance <= threshold

    # Flood fill from the border through plain pixels, so that bright spots inside the object stay foreground.
    background = plain & border
    for _ in range(2 * FOREGROUND_SIZE):
        grown = dilate(background) & plain
        if torch.equal(grown, background):
            break
        background = grown
    foreground = dilate(~background).float()

    inside = distance[:, :, ~border].mean(dim=2)[:, :, None, None]
    plain_border = plain[:, :, border].float().mean(dim=2)[:, :, None, None] > 0.8
    contrast = distance[:, :, border].median(dim=2).values[:, :, None, None] < 0.25 * inside
    area = foreground.mean(dim=(1, 2, 3), keepdim=True)
    has_background = plain_border & contrast & (threshold > MIN_CONTRAST) & (area > 0.02) & (area < 0.95)
    foreground = torch.where(has_background, foreground, torch.ones_like(foreground))
    foreground = functional.interpolate(foreground, images.shape[-2:], mode="nearest").bool()
    return Foreground(foreground, ~has_background.flatten())


def _border(device: torch.device) -> torch.Tensor:
    """Boolean mask of shape ``(S, S)`` of the outermost pixels of the small image."""
    border = torch.ones(FOREGROUND_SIZE, FOREGROUND_SIZE, dtype=torch.bool, device=device)
    border[2:-2, 2:-2] = False
    return border
