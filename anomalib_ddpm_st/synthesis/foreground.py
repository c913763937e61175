# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Foreground: an object on a plain background, or the whole surface. Every function works on whole batches."""

import torch
from torch.nn import functional

from .masks import dilate

FOREGROUND_SIZE = 64
HISTOGRAM_BINS = 64


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


def foreground_mask(images: torch.Tensor) -> torch.Tensor:
    """Find the object on a plain background; without a plain background, the whole image is foreground.

    The background is connected to the border and has its colour. An image counts as a surface, which is all foreground,
    if its border has several colours or if almost nothing, or everything, would remain.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
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
    has_background = plain_border & contrast & (threshold > 0.08) & (area > 0.02) & (area < 0.95)
    foreground = torch.where(has_background, foreground, torch.ones_like(foreground))
    return functional.interpolate(foreground, images.shape[-2:], mode="nearest").bool()


def is_surface(foreground: torch.Tensor) -> torch.Tensor:
    """Whether images show only a surface, and no object on a plain background.

    Args:
        foreground (torch.Tensor): Masks of :func:`foreground_mask`, boolean of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Boolean of shape ``(B,)``.
    """
    return foreground.flatten(1).all(dim=1)


def _border(device: torch.device) -> torch.Tensor:
    """Boolean mask of shape ``(S, S)`` of the outermost pixels of the small image."""
    border = torch.ones(FOREGROUND_SIZE, FOREGROUND_SIZE, dtype=torch.bool, device=device)
    border[2:-2, 2:-2] = False
    return border
