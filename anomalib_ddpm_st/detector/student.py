# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Student: reconstructs the teacher's features of the normal image."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from .layers import ResidualBlock, conv_block, resize

MAX_DECODER_WIDTH = 256
BOTTLENECK_WIDTH = 256


class Decoder(nn.Module):
    """From the bottleneck back to the teacher's levels, from coarse to fine, without skip connections.

    Args:
        in_width (int): Number of channels of the bottleneck.
        out_dims (Sequence[int]): Number of channels of each level, from fine to coarse.
    """

    def __init__(self, in_width: int, out_dims: Sequence[int]) -> None:
        super().__init__()
        widths = [min(dim, MAX_DECODER_WIDTH) for dim in out_dims]
        in_widths = [*widths[1:], in_width]
        # Channels are reduced before upsampling: the same result for a fraction of the cost.
        self.reduce = nn.ModuleList(
            nn.Conv2d(before, width, 1, bias=False) for before, width in zip(in_widths, widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True)) for width in widths)
        self.blocks = nn.ModuleList(conv_block(width, width) for width in widths)
        self.outputs = nn.ModuleList(nn.Conv2d(width, dim, 1) for width, dim in zip(widths, out_dims, strict=True))

    def forward(self, hidden: torch.Tensor, sizes: Sequence[torch.Size]) -> list[torch.Tensor]:
        """Reconstruct features.

        Args:
            hidden (torch.Tensor): Bottleneck of shape ``(B, C, h, w)``.
            sizes (Sequence[torch.Size]): Height and width of each level, from fine to coarse.

        Returns:
            list[torch.Tensor]: Features of each level, from fine to coarse.
        """
        restored = []
        levels = zip(self.reduce, self.norms, self.blocks, self.outputs, sizes, strict=True)
        for reduce, norm, block, output, size in reversed(list(levels)):
            hidden = block(norm(resize(reduce(hidden), size)))
            restored.append(output(hidden))
        return restored[::-1]


class Student(nn.Module):
    """Reconstructs the teacher's features of the normal image from its features of the defective image.

    The asymmetry to the teacher (our assumption, the abstract of the paper does not define it): the student runs in the
    opposite direction. All levels are fused at the coarsest resolution and pass a bottleneck of half that resolution,
    from which a light decoder without skip connections reconstructs them, as in reverse distillation (Deng & Li, 2022).
    The student has no encoder of its own, which makes training and inference cheap.

    Args:
        out_dims (Sequence[int]): Number of channels of each level, from fine to coarse.
        one_resolution (bool): All levels have the same resolution, as those of a vision transformer: none is halved on
            its way to the bottleneck. Defaults to ``False``.
    """

    def __init__(self, out_dims: Sequence[int], one_resolution: bool = False) -> None:
        super().__init__()
        fused = out_dims[-1]
        # Channels of each level on its way to the coarsest resolution: doubled at every halving but the first.
        halvings = [0 if one_resolution else len(out_dims) - 1 - level for level in range(len(out_dims))]
        lateral_widths = [
            [dim, *(min(dim * 2**step, fused) for step in range(count))]
            for dim, count in zip(out_dims, halvings, strict=True)
        ]
        self.lateral = nn.ModuleList(
            nn.Sequential(*(conv_block(before, after, stride=2) for before, after in pairwise(widths)))
            for widths in lateral_widths
        )
        self.bottleneck = nn.Sequential(
            nn.Conv2d(sum(widths[-1] for widths in lateral_widths), fused, 1, bias=False),
            nn.BatchNorm2d(fused),
            nn.ReLU(inplace=True),
            conv_block(fused, BOTTLENECK_WIDTH, stride=2),
            ResidualBlock(BOTTLENECK_WIDTH),
        )
        self.decoder = Decoder(BOTTLENECK_WIDTH, out_dims)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct the teacher's features.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of images with or without defects, from fine to
                coarse, each of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            list[torch.Tensor]: Reconstructed features of the same shapes.
        """
        size = features[-1].shape[-2:]
        fused = [resize(lateral(level), size) for lateral, level in zip(self.lateral, features, strict=True)]
        hidden = self.bottleneck(torch.cat(fused, dim=1))
        return self.decoder(hidden, [level.shape[-2:] for level in features])
