# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Patchified ``UNet2DModel``.

Folding every ``p x p`` patch of pixels into the channels lets a 256-pixel image cost what a 64-pixel one does
(``p = 4``). The UNet predicts the clean sample, so its base width need not carry the noise through. It is told the
position of each patch: parts are photographed in one place, and a small network then learns their shape much faster.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from einops import rearrange

from .config import BLOCK_OUT_CHANNELS

PATCH_SIZE = 4
POSITION_FREQUENCIES = (0.5, 1.0, 2.0)
POSITION_CHANNELS = 4 * len(POSITION_FREQUENCIES)


def patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Fold patches of pixels into channels.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``; ``H`` and ``W`` are multiples of ``patch_size``.
        patch_size (int): Side of a patch in pixels.

    Returns:
        torch.Tensor: Tensor of shape ``(B, C * p * p, H / p, W / p)``.
    """
    return rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=patch_size, q=patch_size)


def unpatchify(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Undo :func:`patchify`.

    Args:
        patches (torch.Tensor): Tensor of shape ``(B, C * p * p, h, w)``.
        patch_size (int): Side of a patch in pixels.

    Returns:
        torch.Tensor: Images of shape ``(B, C, h * p, w * p)``.
    """
    return rearrange(patches, "b (c p q) h w -> b c (h p) (w q)", p=patch_size, q=patch_size)


def build_unet(
    image_size: tuple[int, int],
    patch_size: int = PATCH_SIZE,
    block_out_channels: Sequence[int] = BLOCK_OUT_CHANNELS,
) -> UNet2DModel:
    """Build the denoising network of stage 1 for patchified RGB images.

    Args:
        image_size (tuple[int, int]): Height and width of the images in pixels. Sizes that are not multiples of
            :func:`size_multiple` are padded by the pipeline.
        patch_size (int): Side of a patch in pixels. Defaults to ``4``.
        block_out_channels (Sequence[int]): Number of channels at each resolution level.
            Defaults to ``(64, 96, 128, 192)``.

    Returns:
        UNet2DModel: Network for :func:`denoise`.
    """
    channels = 3 * patch_size**2
    levels = len(block_out_channels)
    multiple = patch_size * 2 ** (levels - 1)
    height, width = (math.ceil(side / multiple) * multiple // patch_size for side in image_size)
    groups = math.gcd(8, *block_out_channels)
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels + POSITION_CHANNELS,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=tuple(block_out_channels),
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=groups,
        attention_head_dim=math.gcd(32, block_out_channels[-1]),
    )


def position_encoding(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Sines and cosines of the position in the image.

    Args:
        height (int): Number of rows.
        width (int): Number of columns.
        device (torch.device | None): Device of the result.

    Returns:
        torch.Tensor: Encoding of shape ``(1, 12, height, width)`` with values in [-1, 1].
    """
    rows = torch.linspace(-1, 1, height, device=device)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width, device=device)[None, :].expand(height, width)
    angles = [torch.pi * frequency * axis for frequency in POSITION_FREQUENCIES for axis in (rows, columns)]
    return torch.stack([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)])[None]


def denoise(
    unet: UNet2DModel,
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    position: torch.Tensor | None = None,
) -> torch.Tensor:
    """Predict the clean sample.

    Args:
        unet (UNet2DModel): Network of :func:`build_unet`.
        sample (torch.Tensor): Noisy patchified images of shape ``(B, 3 * p * p, h, w)``.
        timesteps (torch.Tensor): Timesteps of shape ``(B,)`` or ``()``.
        position (torch.Tensor | None): Encoding of the position of the sample in the image, of shape
            ``(1, 12, h, w)``. ``None`` for a sample of the whole image. Defaults to ``None``.

    Returns:
        torch.Tensor: Prediction of the shape of the sample.
    """
    if position is None:
        position = position_encoding(sample.shape[-2], sample.shape[-1], sample.device)
    position = position.to(sample.dtype)
    return unet(torch.cat([sample, position.expand(len(sample), -1, -1, -1)], dim=1), timesteps).sample


def unet_patch_size(unet: UNet2DModel) -> int:
    """Side in pixels of the patches that a network built by :func:`build_unet` works on."""
    return math.isqrt(unet.config.out_channels // 3)


def size_multiple(unet: UNet2DModel) -> int:
    """Number of pixels that height and width must be a multiple of for the network to accept them."""
    return unet_patch_size(unet) * 2 ** (len(unet.config.block_out_channels) - 1)
