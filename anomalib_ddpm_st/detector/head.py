# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Segmentation head: finds defects in the discrepancy of teacher and student."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .layers import conv_block, resize


class SegmentationHead(nn.Module):
    """Segments defects in the level-wise discrepancy of teacher and student.

    Each level is reduced to a few channels at its own resolution before it is upsampled (both are linear, so their
    order changes the cost and not the result). Context comes from dilated convolutions at half the finest resolution,
    as in ASPP (Chen et al., 2017), and from the mean over the image.

    Args:
        in_dims (Sequence[int]): Number of channels of each level.
        width (int): Number of hidden channels. Defaults to ``64``.
        dilations (Sequence[int]): Rates of the dilated convolutions. Defaults to ``(1, 3, 6)``.
        scale (int): How much finer than the finest level the logits are: the channels of each place are spread over
            ``scale`` x ``scale`` places (Shi et al., 2016), since a token tells what its patch holds where.
            Defaults to ``1``.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        width: int = 64,
        dilations: Sequence[int] = (1, 3, 6),
        scale: int = 1,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.reduce = nn.ModuleList(nn.Conv2d(dim, width * scale**2, 1, bias=False) for dim in in_dims)
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.fine = conv_block(width, width)
        self.dilated = nn.ModuleList(conv_block(width, width, dilation=dilation) for dilation in dilations)
        self.pooled = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True))
        self.context = nn.Sequential(
            nn.Conv2d(width * (len(dilations) + 1), width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.merge = nn.Sequential(conv_block(width, width // 2), nn.Conv2d(width // 2, 1, 1))

    def forward(self, products: Sequence[torch.Tensor]) -> torch.Tensor:
        """Segment defects.

        Args:
            products (Sequence[torch.Tensor]): Products of normalised features of each level, from fine to coarse,
                each of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            torch.Tensor: Logits of shape ``(B, 1, scale * h_0, scale * w_0)``.
        """
        size = products[0].shape[-2:]
        hidden = self.reduce[0](products[0])
        for reduce, product in zip(self.reduce[1:], products[1:], strict=True):
            hidden = hidden + resize(reduce(product), size)
        if self.scale > 1:
            hidden = functional.pixel_shuffle(hidden, self.scale)
        hidden = self.fine(self.norm(hidden))
        half = functional.avg_pool2d(hidden, 2, ceil_mode=True)
        pooled = self.pooled(half.mean(dim=(2, 3), keepdim=True)).expand_as(half)
        context = self.context(torch.cat([*(block(half) for block in self.dilated), pooled], dim=1))
        return self.merge(hidden + resize(context, hidden.shape[-2:]))
