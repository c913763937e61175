# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tiles of large images: the memory of the network does not grow with the image."""

import math
from itertools import product

import torch
from diffusers import UNet2DModel

from .unet import denoise, position_encoding

# Smallest overlap of neighbouring tiles, as a fraction of their side.
TILE_OVERLAP = 0.25


def denoise_tiles(unet: UNet2DModel, sample: torch.Tensor, timesteps: torch.Tensor, tile: int) -> torch.Tensor:
    """Predict the clean sample tile by tile.

    Tiles overlap by at least a quarter, and predictions fade into each other there (Bar-Tal et al., 2023).

    Args:
        unet (UNet2DModel): Network of :func:`build_unet`.
        sample (torch.Tensor): Noisy patchified images of shape ``(B, 3 * p * p, h, w)``.
        timesteps (torch.Tensor): Timesteps of shape ``(B,)`` or ``()``.
        tile (int): Side of a tile in patches.

    Returns:
        torch.Tensor: Prediction of the shape of the sample.
    """
    height, width = sample.shape[-2:]
    position = position_encoding(height, width, sample.device)
    rows, columns = (_fade(min(side, tile), sample.device) for side in (height, width))
    fade = rows[:, None] * columns[None, :]
    prediction, weight = torch.zeros_like(sample), sample.new_zeros(height, width)
    for top, left in product(tile_starts(height, tile), tile_starts(width, tile)):
        part = (..., slice(top, top + tile), slice(left, left + tile))
        prediction[part] += fade * denoise(unet, sample[part], timesteps, position[part]).to(sample.dtype)
        weight[part] += fade
    return prediction / weight


def tile_starts(length: int, tile: int) -> list[int]:
    """Start positions of evenly spaced, overlapping tiles that cover a length.

    Args:
        length (int): Length to cover.
        tile (int): Length of a tile.

    Returns:
        list[int]: Start positions, ``[0]`` if one tile is enough.
    """
    count = 1 + max(0, math.ceil((length - tile) / (tile * (1 - TILE_OVERLAP))))
    return torch.linspace(0, max(0, length - tile), count).round().int().tolist()


def _fade(length: int, device: torch.device) -> torch.Tensor:
    """Weights that fall from the middle of a tile to its ends, but never to zero."""
    place = torch.arange(length, device=device)
    return torch.minimum(place + 1, length - place) / length
