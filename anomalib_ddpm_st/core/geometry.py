# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Geometric transforms of batches of images."""

import torch
from kornia.geometry.transform import get_rotation_matrix2d, warp_affine


def warp(
    images: torch.Tensor,
    angles: torch.Tensor,
    scales: torch.Tensor,
    shifts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate and scale images about their centre, then shift them; missing pixels are filled by reflection.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``.
        angles (torch.Tensor): Rotations in degrees, counter-clockwise, of shape ``(B,)``.
        scales (torch.Tensor): Scale factors, above 1 to enlarge, of shape ``(B,)``.
        shifts (torch.Tensor | None): Columns and rows to shift by, in pixels, of shape ``(B, 2)``.
            Defaults to ``None``.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    height, width = images.shape[-2:]
    centre = torch.tensor([[(width - 1) / 2, (height - 1) / 2]], device=images.device).expand(len(images), -1)
    matrices = get_rotation_matrix2d(centre, angles, scales[:, None].expand(-1, 2))
    if shifts is not None:
        matrices = torch.cat([matrices[:, :, :2], matrices[:, :, 2:] + shifts[:, :, None]], dim=2)
    return warp_affine(images, matrices, (height, width), padding_mode="reflection")


def random_affine(images: torch.Tensor, rotation: float, scale: float, shift: float) -> torch.Tensor:
    """Rotate, scale and shift each image by its own random amounts, in 32-bit precision.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``.
        rotation (float): Largest rotation to either side, in degrees.
        scale (float): Largest change of size, as the logarithm of the scale factor.
        shift (float): Largest shift, as a fraction of each side.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    angles, scales, right, down = 2 * torch.rand(4, len(images), device=images.device) - 1
    shifts = shift * torch.stack([right * images.shape[-1], down * images.shape[-2]], dim=1)
    with torch.autocast(images.device.type, enabled=False):
        return warp(images, rotation * angles, (scale * scales).exp(), shifts)


def shift_and_flip(images: torch.Tensor, shifts: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Shift images by whole pixels, with wrap-around at the borders, and flip their axes.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``.
        shifts (torch.Tensor): Rows and columns to shift by, integers of shape ``(B, 2)``.
        flips (torch.Tensor): Whether rows and columns are reversed, boolean of shape ``(B, 2)``.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    indices = []
    for axis, length in enumerate(images.shape[-2:]):
        index = (torch.arange(length, device=images.device)[None] - shifts[:, axis, None]) % length
        indices.append(torch.where(flips[:, axis, None], length - 1 - index, index))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # Advanced indices on both sides of the slice put the channels last.
    return images[batch, :, indices[0][:, :, None], indices[1][:, None, :]].permute(0, 3, 1, 2)


def flip_rotate(images: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    """Flip and rotate each image by its own element of the symmetry group of the square, without interpolation.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``; elements that transpose leave images with ``H != W``
            untransposed.
        elements (torch.Tensor): Whether to transpose, flip the rows and flip the columns, in this order, boolean of
            shape ``(B, 3)``.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    transpose, rows, columns = elements[:, :, None, None, None].unbind(dim=1)
    if images.shape[-2] == images.shape[-1]:
        images = torch.where(transpose, images.transpose(-1, -2), images)
    images = torch.where(rows, images.flip(-2), images)
    return torch.where(columns, images.flip(-1), images)
