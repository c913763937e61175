# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Foreground: an object on a plain background, or the whole surface. Every function works on whole batches."""

from typing import NamedTuple

import torch
from torch.nn import functional

from anomalib_ddpm_st.core.frames import find_frames, framed_contents

from .masks import dilate

FOREGROUND_SIZE = 64
HISTOGRAM_BINS = 64
# Smallest difference in brightness between an object, or an image, and what surrounds it.
MIN_CONTRAST = 0.08


class Foreground(NamedTuple):
    """Where images show the object, or the surface.

    Attributes:
        mask (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        is_surface (torch.Tensor): Whether an image shows only a surface, and no object on a plain background; boolean
            of shape ``(B,)``.
        frames (torch.Tensor): Frames around images, integers of shape ``(B, 4)``, see
            :func:`~anomalib_ddpm_st.core.frames.find_frames`.
    """

    mask: torch.Tensor
    is_surface: torch.Tensor
    frames: torch.Tensor


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
        Foreground: Masks, which images are surfaces, and frames.
    """
    frames = find_frames(images)
    if not frames.any():
        return Foreground(*_find_foreground(images), frames)
    mask = torch.zeros_like(images[:, :1], dtype=torch.bool)
    is_surface = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for chosen, rows, columns in framed_contents(images, frames):
        inside, is_surface[chosen] = _find_foreground(images[chosen][..., rows, columns])
        framed = torch.zeros_like(mask[chosen])
        framed[..., rows, columns] = inside
        mask[chosen] = framed
    return Foreground(mask, is_surface, frames)


def _find_foreground(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks, and which images are surfaces, for images without a frame."""
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
    return foreground, ~has_background.flatten()


def _border(device: torch.device) -> torch.Tensor:
    """Boolean mask of shape ``(S, S)`` of the outermost pixels of the small image."""
    border = torch.ones(FOREGROUND_SIZE, FOREGROUND_SIZE, dtype=torch.bool, device=device)
    border[2:-2, 2:-2] = False
    return border
