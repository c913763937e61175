# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What the parts of the detector share: blocks of layers, resizing and precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional


def conv_block(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a skip connection (He et al., 2016).

    Args:
        width (int): Number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_block(width, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute features of the same shape, ``(B, C, H, W)``."""
        return functional.relu(hidden + self.layers(hidden))


def resize(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Resize bilinearly, as every map and feature of the detector is resized.

    Args:
        maps (torch.Tensor): Maps of shape ``(B, C, h, w)``.
        size (torch.Size): Height and width to return.

    Returns:
        torch.Tensor: Maps of shape ``(B, C, *size)``.
    """
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_map(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """As :func:`resize`, by two matrix products: OpenVINO takes much longer to interpolate maps of one channel.

    Args:
        maps (torch.Tensor): Maps of shape ``(B, 1, h, w)``.
        size (torch.Size): Height and width to return.

    Returns:
        torch.Tensor: Maps of shape ``(B, 1, *size)``.
    """
    with without_autocast(maps.device):
        rows, columns = (_interpolation_matrix(maps, dim, size[dim]) for dim in (-2, -1))
        return rows @ maps @ columns.mT


def _interpolation_matrix(maps: torch.Tensor, dim: int, after: int) -> torch.Tensor:
    """Weights by which each of ``after`` positions takes the values along a dimension, of shape ``(after, before)``."""
    before = maps.shape[dim]
    old, new = (torch.arange(length, device=maps.device, dtype=maps.dtype) for length in (before, after))
    centres = (new + 0.5) * (before / after) - 0.5
    weights = (1 - (centres[:, None] - old).abs()).clamp_min(0)
    # Beyond the first and the last centre there is one value alone.
    return weights / weights.sum(dim=1, keepdim=True)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Compute in 32 bit what autocast would compute in 16; outside of autocast an export sees nothing of it.

    Args:
        device (torch.device): Device of the tensors.

    Returns:
        AbstractContextManager: Context to compute in.
    """
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
