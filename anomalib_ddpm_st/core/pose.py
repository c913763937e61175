# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Pose of the part in front of a plain background; every operation can be exported."""

from typing import NamedTuple

import torch
from torch.nn import functional

# Side of the image that the pose is estimated on.
POSE_SIZE = 128
BORDER = 3
# Difference from the background, in units of the part's typical one, from which a pixel begins to belong to the part,
# and from which it wholly does; and the same for the pixels that tell what is typical.
PART_CONTRAST = (0.4, 0.7)
CERTAIN_CONTRAST = (0.6, 0.9)
# Brightness that is added before a logarithm, so that noise in the dark does not count.
DARKEST = 0.1
# Part of the neighbourhood that must belong to the part, too: specks do not count.
SPECK_SIZE = 5
SPECK_FRACTION = (0.2, 0.5)
# How far inside a pixel counts as being, in units of half the image's height and for each unit of weight below a half.
EXTENT_PENALTY = 4.0
# Smallest logarithm of a ratio of brightness that counts as a difference.
MIN_CONTRAST = 0.1
# Also a number in 16 bit, which constants of exported models may have.
TINY = 1e-6


class Pose(NamedTuple):
    """Pose of the part in each image.

    Coordinates have their origin at the centre of the image; half of its height is 1, and its width is measured in the
    same unit.

    Attributes:
        centre (torch.Tensor): Column and row of the centre of the part, of shape ``(B, 2)``.
        direction (torch.Tensor): Unit vector along the part, columns and rows, of shape ``(B, 2)``.
        length (torch.Tensor): Extent along this direction, of shape ``(B,)``.
        half_width (torch.Tensor): Largest distance of the part from the axis through its centre, of shape ``(B,)``.
        elongation (torch.Tensor): Standard deviation of the part's pixels along this direction, as a multiple of the
            one across it, of shape ``(B,)``.
        asymmetry (torch.Tensor): By how much the two ends differ, before the direction was chosen by it: third moment
            along the direction, with its sign changed, and difference in width; both without a unit, of shape
            ``(B, 2)``.
        fringe (torch.Tensor): Fraction of the border of the image that differs from the background, of shape ``(B,)``.
        area (torch.Tensor): Fraction of the image that the part covers, of shape ``(B,)``.
    """

    centre: torch.Tensor
    direction: torch.Tensor
    length: torch.Tensor
    half_width: torch.Tensor
    fringe: torch.Tensor
    elongation: torch.Tensor
    asymmetry: torch.Tensor
    area: torch.Tensor


def part_weights(images: torch.Tensor) -> torch.Tensor:
    """Find the part in front of a plain background; every operation can be exported.

    The brightness of the background may have a gradient, which the medians along the four sides of the image tell.
    A pixel belongs to the part if it differs from the background by a quarter to a half of what pixels of the part
    typically do, so that a change of exposure changes nothing.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Weights in [0, 1] of shape ``(B, S, S)``.
    """
    small = functional.interpolate(images, (POSE_SIZE, POSE_SIZE), mode="bilinear", align_corners=False)
    sides = (small[:, :, :, :BORDER], small[:, :, :, -BORDER:], small[:, :, :BORDER], small[:, :, -BORDER:])
    left, right, top, bottom = (_median(side.flatten(2))[:, :, None, None] for side in sides)
    columns, rows = pixel_coordinates(POSE_SIZE, POSE_SIZE, images)
    reach = 1 - BORDER / POSE_SIZE  # of the middle of a side
    background = (left + right + top + bottom) / 4 + ((right - left) * columns + (bottom - top) * rows) / (2 * reach)
    # Light multiplies: in logarithms it adds, and a shadow weighs no more on a bright background than on a dark one.
    difference = ((small.clamp_min(0) + DARKEST) / (background.clamp_min(0) + DARKEST)).log().abs().amax(dim=1)
    typical = difference.square().mean(dim=(1, 2)) / difference.mean(dim=(1, 2)).clamp_min(TINY)
    certain = _ramp(difference / typical.clamp_min(MIN_CONTRAST)[:, None, None], *CERTAIN_CONTRAST)
    typical = (difference * certain).mean(dim=(1, 2)) / certain.mean(dim=(1, 2)).clamp_min(TINY)
    weights = _ramp(difference / typical.clamp_min(MIN_CONTRAST)[:, None, None], *PART_CONTRAST)
    around = functional.avg_pool2d(weights[:, None], SPECK_SIZE, 1, SPECK_SIZE // 2, count_include_pad=False)[:, 0]
    return weights * _ramp(around, *SPECK_FRACTION)


def estimate_pose(images: torch.Tensor, aspect: float = 1.0, end: int | None = 1) -> Pose:
    """Estimate the pose of the part in each image from the moments of its area.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        aspect (float): Width over height of what the images show. Defaults to ``1.0``.
        end (int | None): What tells the two ends of the part apart: ``0`` for the third moment along the part, ``1``
            for its width. ``None`` if nothing does; then the part is turned by a quarter at most. Defaults to ``1``.

    Returns:
        Pose: Poses.
    """
    weights = part_weights(images)
    columns, rows = pixel_coordinates(POSE_SIZE, POSE_SIZE, images)
    columns = columns * aspect

    def mean(values: torch.Tensor) -> torch.Tensor:
        return ((values * weights).sum(dim=(1, 2)) / mass)[:, None, None]

    mass = weights.sum(dim=(1, 2)).clamp_min(TINY)
    right, down = columns - mean(columns.expand_as(weights)), rows - mean(rows.expand_as(weights))
    xx, yy, xy = (mean(product)[:, 0, 0] for product in (right * right, down * down, right * down))
    direction, variances = _principal_axis(xx, yy, xy)
    cosine, sine = direction[:, 0, None, None], direction[:, 1, None, None]
    along, across = right * cosine + down * sine, down * cosine - right * sine
    # Not a threshold, so that a rounding error cannot move the extent by a pixel.
    penalty = EXTENT_PENALTY * (0.5 - weights).clamp_min(0)
    (last, first), (lower, upper) = (
        ((axis - penalty).amax(dim=(1, 2)), (axis + penalty).amin(dim=(1, 2))) for axis in (along, across)
    )
    half = ((last + first) / 2)[:, None, None]
    # Soft halves: the width on either side of the middle.
    side = ((along - half) / ((last - first)[:, None, None] / 2).clamp_min(TINY)).clamp(-1, 1)
    # The heavier end is nearer to the centroid: positive if it comes last.
    skewness = -mean(along**3)[:, 0, 0] / variances[:, 0].clamp_min(TINY) ** 1.5
    widening = mean(across**2 * side)[:, 0, 0] / variances[:, 1].clamp_min(TINY)
    asymmetry = torch.stack([skewness, widening], dim=1)
    if end is not None:
        turn = torch.where(asymmetry[:, end] < 0, -1.0, 1.0).to(direction.dtype)[:, None]
    centroid = torch.stack([mean(columns.expand_as(weights)), mean(rows.expand_as(weights))], dim=1)[:, :, 0, 0]
    return Pose(
        centre=centroid + direction * (last + first)[:, None] / 2,
        direction=direction if end is None else direction * turn,
        length=last - first,
        half_width=torch.maximum(lower, -upper),
        fringe=_fringe(weights),
        elongation=(variances[:, 0] / variances[:, 1].clamp_min(TINY)).sqrt(),
        asymmetry=asymmetry,
        area=mass / weights[0].numel(),
    )


def _principal_axis(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Direction of shape ``(B, 2)`` and variances along and across it, of shape ``(B, 2)``, of second moments."""
    difference = xx - yy
    # Where there is no axis, the part stays as it is.
    certain = difference.abs() + TINY
    # Scaled, as some runtimes take the square root of a tiny number for 0.
    largest = torch.maximum(certain, 2 * xy.abs())
    spread = largest * ((certain / largest).square() + (2 * xy / largest).square()).sqrt()
    larger = ((1 + certain / spread) / 2).sqrt()  # at least sqrt(0.5), so that the division is exact
    smaller = xy.abs() / (spread * larger)
    sign = torch.where(xy < 0, -1.0, 1.0).to(xy.dtype)
    lies = difference >= 0
    cosine, sine = torch.where(lies, larger, smaller), torch.where(lies, smaller, larger) * sign
    total = xx + yy
    return torch.stack([cosine, sine], dim=1), torch.stack([(total + spread) / 2, (total - spread) / 2], dim=1)


def _fringe(weights: torch.Tensor) -> torch.Tensor:
    """Mean weight along the border of the image, of shape ``(B,)``."""
    sides = (weights[:, :BORDER], weights[:, -BORDER:], weights[:, :, :BORDER], weights[:, :, -BORDER:])
    return torch.cat([side.flatten(1) for side in sides], dim=1).mean(dim=1)


def pixel_coordinates(height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns and rows of the pixels' centres.

    Args:
        height (int): Height in pixels.
        width (int): Width in pixels.
        like (torch.Tensor): Tensor of the type and on the device that the result will have.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Values in [-1, 1], of shapes ``(1, 1, W)`` and ``(1, H, 1)``.
    """
    columns, rows = (
        (2 * torch.arange(length, device=like.device, dtype=like.dtype) + 1) / length - 1 for length in (width, height)
    )
    return columns[None, None, :], rows[None, :, None]


def _median(values: torch.Tensor) -> torch.Tensor:
    """Median over the last dimension; unlike ``torch.median``, it can be exported."""
    return values.topk(values.shape[-1] // 2, dim=-1).values[..., -1]


def _ramp(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Linear from 0 to 1 between two values."""
    return ((values - low) / (high - low)).clamp(0, 1)
