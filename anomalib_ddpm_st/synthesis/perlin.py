# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Perlin noise and the masks made of it. Every function works on whole batches."""

import torch
from kornia.geometry.transform import rotate

from anomalib_ddpm_st.core.random_draws import uniform

SCALE_EXPONENTS = 6
THRESHOLD = 0.5
# Largest rotation of a mask to either side, in degrees.
ROTATION = 90.0


def perlin_noise(
    scales: torch.Tensor,
    angles: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Evaluate Perlin noise with one lattice for each image of the batch.

    Args:
        scales (torch.Tensor): Number of lattice cells along height and width, integers of shape ``(B, 2)``.
        angles (torch.Tensor): Directions of the lattice gradients in radians, of shape ``(B, L, L)`` with ``L`` at
            least the largest scale plus one.
        size (tuple[int, int]): Height and width of the noise in pixels.

    Returns:
        torch.Tensor: Noise of shape ``(B, 1, H, W)`` with values in [-1, 1].
    """
    # Noise is linear in the gradients, and the weights are products of one for the row and one for the column.
    row_weights, row_offsets = _lattice_weights(scales[:, 0], size[0], angles.shape[1])
    column_weights, column_offsets = _lattice_weights(scales[:, 1], size[1], angles.shape[2])
    down = row_offsets @ angles.sin() @ column_weights.mT
    right = row_weights @ angles.cos() @ column_offsets.mT
    return (2**0.5 * (down + right)).unsqueeze(1)


def _lattice_weights(scale: torch.Tensor, length: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of each lattice node for every pixel along one axis, and weight times distance from the node.

    Args:
        scale (torch.Tensor): Number of lattice cells, integers of shape ``(B,)``.
        length (int): Number of pixels.
        nodes (int): Number of lattice nodes, at least the largest scale plus one.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Two tensors of shape ``(B, length, nodes)``.
    """
    position = torch.arange(length, device=scale.device)[None] * scale[:, None] / length
    cell = position.floor()
    offset = position - cell
    near, fade = cell.long()[..., None], _fade(offset)[..., None]
    weights = position.new_zeros(*position.shape, nodes).scatter_(2, near, 1 - fade).scatter_(2, near + 1, fade)
    return weights, weights * (position[..., None] - torch.arange(nodes, device=scale.device))


def _fade(offset: torch.Tensor) -> torch.Tensor:
    """Quintic interpolation weight of Perlin (2002)."""
    return offset**3 * (offset * (offset * 6 - 15) + 10)


def random_perlin_masks(
    batch_size: int,
    size: tuple[int, int],
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Draw Perlin masks as DRAEM does (Zavrtanik et al., 2021): scales 2^0 to 2^5, random rotation, threshold 0.5.

    Args:
        batch_size (int): Number of masks.
        size (tuple[int, int]): Height and width in pixels.
        generator (torch.Generator | None): Source of every random draw.
        device (torch.device | None): Device of the masks.

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
    cells = 2 ** (SCALE_EXPONENTS - 1)
    scales = 2 ** uniform((batch_size, 2), 0, SCALE_EXPONENTS, generator, device).floor().long()
    angles = uniform((batch_size, cells + 1, cells + 1), 0, 2 * torch.pi, generator, device)
    noise = perlin_noise(scales, angles, size)
    # Coarse noise may stay below the threshold everywhere; stretched to [-1, 1] it still gives a mask.
    low = noise.amin(dim=(1, 2, 3), keepdim=True)
    high = noise.amax(dim=(1, 2, 3), keepdim=True)
    stretched = (noise - low) / (high - low).clamp_min(1e-6) * 2 - 1
    noise = torch.where(high > THRESHOLD, noise, stretched)
    noise = rotate(noise, uniform((batch_size,), -ROTATION, ROTATION, generator, device))
    return noise > THRESHOLD
