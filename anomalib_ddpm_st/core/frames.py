# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Frames of one colour around images, as padding makes them."""

from collections.abc import Iterator
from itertools import starmap

import torch

# Smallest difference in brightness between an image and a frame around it.
MIN_CONTRAST = 0.08
# A frame has one colour, up to the rounding of eight bits.
FRAME_TOLERANCE = 1.5 / 255
# Steps between columns for a first look.
SPARSE = 16
# Rows in which a resize blurs the end of a frame.
FRAME_BLUR = 4
# Part of its length along which the content differs visibly at one side of a frame at least, and at all at the others.
MIN_VISIBLE = 0.8
MIN_DIFFERENT = 0.5
# Growth of the difference from the frame, from one row to the next, above which a row is mixed of frame and content.
MIXED = 0.25


def fill_frames(images: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Continue images into their frames by reflection, so that textures made of them show no padding.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``.
        frames (torch.Tensor): Frames, see :func:`find_frames`, integers of shape ``(B, 4)``.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    if not frames.any():
        return images
    filled = torch.empty_like(images)
    for chosen, rows, columns in framed_contents(images, frames):
        indices = list(starmap(_reflect, zip((rows, columns), images.shape[-2:], strict=True)))
        filled[chosen] = images[chosen][..., indices[0], :][..., indices[1]]
    return filled


def restore_frames(images: torch.Tensor, originals: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Put frames back that an augmentation has moved or made brighter, since padding is the same in every image.

    Args:
        images (torch.Tensor): Changed images of shape ``(B, C, H, W)``.
        originals (torch.Tensor): The images as they were.
        frames (torch.Tensor): Frames of these, see :func:`find_frames`, integers of shape ``(B, 4)``.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    if not frames.any():
        return images
    restored = originals.clone()
    for chosen, rows, columns in framed_contents(images, frames):
        part = restored[chosen]
        part[..., rows, columns] = images[chosen][..., rows, columns].to(part.dtype)
        restored[chosen] = part
    return restored


def framed_contents(images: torch.Tensor, frames: torch.Tensor) -> Iterator[tuple[torch.Tensor, slice, slice]]:
    """Go through the different frames of a batch.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``.
        frames (torch.Tensor): Frames, see :func:`find_frames`, integers of shape ``(B, 4)``.

    Yields:
        tuple[torch.Tensor, slice, slice]: Images with the same frame, boolean of shape ``(B,)``; rows and columns of
        what lies within it.
    """
    for frame in frames.unique(dim=0):
        top, bottom, left, right = frame.tolist()
        rows, columns = slice(top, images.shape[-2] - bottom), slice(left, images.shape[-1] - right)
        yield (frames == frame).all(dim=1), rows, columns


def _reflect(inside: slice, length: int) -> torch.Tensor:
    """Indices within a slice for each index of an axis, as a reflection at both ends of the slice gives them."""
    size = inside.stop - inside.start
    offset = (torch.arange(length) - inside.start) % (2 * size)
    return inside.start + torch.minimum(offset, 2 * size - 1 - offset)


def find_frames(images: torch.Tensor) -> torch.Tensor:
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
    frames = _find_outer_frames(images)
    for index in frames.any(dim=1).nonzero().flatten().tolist():
        top, bottom, left, right = frames[index].tolist()
        content = images[index : index + 1, :, top : images.shape[2] - bottom, left : images.shape[3] - right]
        if _find_outer_frames(content).any():
            frames[index] = 0
    return frames


def _find_outer_frames(images: torch.Tensor) -> torch.Tensor:
    """Widths of frames, as :func:`find_frames` returns them, whatever lies within them."""
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
    count = torch.tensor(images.shape[2])
    # A few columns tell how many rows at most need to be looked at as a whole.
    for step in (SPARSE, 1):
        lowest, highest = images[:, :, : int(count.max()), ::step].aminmax(dim=3)
        differs = torch.maximum(highest - colour, colour - lowest).amax(dim=1) > FRAME_TOLERANCE
        count = differs.cumsum(dim=1).eq(0).sum(dim=1)
    return count


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
