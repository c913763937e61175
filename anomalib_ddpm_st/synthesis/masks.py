# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Shape of masks: limits to the foreground and to windows, soft edges, morphology. All work on whole batches."""

import math
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from torch.nn import functional

from anomalib_ddpm_st.core.random_draws import log_uniform, uniform

# Side of the grid on which the centre of a window is drawn.
CENTRE_SIZE = 64
WINDOW_AXES = (0.03, 0.25)
MAX_SOFTNESS = 0.05
SOFTNESS_RANGE = (0.005, MAX_SOFTNESS)


@dataclass(frozen=True)
class Windows:
    """Parameters of one elliptic window for each image.

    Attributes:
        scores (torch.Tensor): The centre is the allowed pixel with the largest score, ``(B, 1, S, S)``.
        axes (torch.Tensor): Semi-axes as fractions of the shorter side of the image, of shape ``(B, 2)``.
        angles (torch.Tensor): Rotations in radians, of shape ``(B,)``.
        used (torch.Tensor): Which images get a window, boolean of shape ``(B, 1, 1, 1)``.
        filled (torch.Tensor): Which windows replace the mask, boolean of shape ``(B, 1, 1, 1)``.
    """

    scores: torch.Tensor
    axes: torch.Tensor
    angles: torch.Tensor
    used: torch.Tensor
    filled: torch.Tensor


def random_windows(
    batch_size: int,
    p_local: float,
    p_filled: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Windows:
    """Draw elliptic windows for single, local defects; small ones are as frequent as large ones (log-uniform).

    Args:
        batch_size (int): Number of windows.
        p_local (float): Probability that an image gets a window.
        p_filled (float): Probability that a window replaces the mask.
        generator (torch.Generator | None): Source of every random draw.
        device (torch.device | None): Device of the result.

    Returns:
        Windows: Parameters of :func:`limit_masks`.
    """
    return Windows(
        scores=uniform((batch_size, 1, CENTRE_SIZE, CENTRE_SIZE), 0, 1, generator, device),
        axes=log_uniform((batch_size, 2), *WINDOW_AXES, generator, device),
        angles=uniform((batch_size,), 0, torch.pi, generator, device),
        used=uniform((batch_size, 1, 1, 1), 0, 1, generator, device) < p_local,
        filled=uniform((batch_size, 1, 1, 1), 0, 1, generator, device) < p_filled,
    )


def find_centres(candidates: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one place of each image: the candidate with the largest score.

    Args:
        candidates (torch.Tensor): Places to choose from, 0 or 1, of shape ``(B, 1, H, W)``.
        scores (torch.Tensor): Scores on a coarse grid, of shape ``(B, 1, CENTRE_SIZE, CENTRE_SIZE)``.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Rows and columns in pixels, of shape ``(B,)``.
    """
    height, width = candidates.shape[-2:]
    small = functional.adaptive_max_pool2d(candidates, CENTRE_SIZE)
    centre = (scores * small).flatten(1).argmax(dim=1)
    row = (centre // CENTRE_SIZE + 0.5) * height / CENTRE_SIZE
    column = (centre % CENTRE_SIZE + 0.5) * width / CENTRE_SIZE
    return row, column


def limit_masks(masks: torch.Tensor, allowed: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Limit masks to where defects are allowed, and to a window around one of their pixels.

    Coarse Perlin noise often misses a small object altogether; then the window replaces the mask, too.

    Args:
        masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        allowed (torch.Tensor): Where defects are allowed, boolean of the same shape.
        windows (Windows): Parameters of :func:`random_windows`.

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
    height, width = masks.shape[-2:]
    masks = masks & allowed
    is_empty = ~masks.flatten(1).any(dim=1)[:, None, None, None]
    row, column = find_centres(torch.where(is_empty, allowed, masks).float(), windows.scores)
    down = torch.arange(height, device=masks.device)[None, :, None] + 0.5 - row[:, None, None]
    right = torch.arange(width, device=masks.device)[None, None, :] + 0.5 - column[:, None, None]
    cosine, sine = (wave[:, None, None] for wave in (windows.angles.cos(), windows.angles.sin()))
    axes = (windows.axes * min(height, width)).clamp_min(1)
    along = (right * cosine + down * sine) / axes[:, :1, None]
    across = (down * cosine - right * sine) / axes[:, 1:, None]
    window = (along**2 + across**2 <= 1).unsqueeze(1)
    masks = torch.where(is_empty | (windows.used & windows.filled), allowed & window, masks)
    return torch.where(windows.used, masks & window, masks)


def soften(masks: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Blur the edges of masks, each by its own width, and keep the peak at 1.

    Args:
        masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        widths (torch.Tensor): Standard deviation of the Gaussian as a fraction of the shorter side, of shape ``(B,)``;
            ``0`` keeps a mask as it is, and none is larger than ``MAX_SOFTNESS``.

    Returns:
        torch.Tensor: Weights in [0, 1] of shape ``(B, 1, H, W)``.
    """
    weights = masks.float()
    chosen = (widths > 0) & masks.flatten(1).any(dim=1)
    if not chosen.any():
        return weights
    size = min(masks.shape[-2:])
    sigma = (widths[chosen] * size).clamp_min(1e-3)
    # One kernel size for all, so that no image depends on the others in its batch.
    radius = min(math.ceil(3 * MAX_SOFTNESS * size), size - 1)
    blurred = gaussian_blur2d(weights[chosen], 2 * radius + 1, torch.stack([sigma, sigma], dim=1))
    weights[chosen] = blurred / blurred.amax(dim=(1, 2, 3), keepdim=True)
    return weights


def close_holes(masks: torch.Tensor) -> torch.Tensor:
    """Morphological closing with a 3 x 3 square.

    Args:
        masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Boolean masks of the same shape; each added pixel touches one that was set.
    """
    return ~dilate(~dilate(masks))


def dilate(masks: torch.Tensor) -> torch.Tensor:
    """Morphological dilation with a 3 x 3 square.

    Args:
        masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Boolean masks of the same shape.
    """
    tall = masks.clone()
    tall[..., 1:, :] |= masks[..., :-1, :]
    tall[..., :-1, :] |= masks[..., 1:, :]
    wide = tall.clone()
    wide[..., 1:] |= tall[..., :-1]
    wide[..., :-1] |= tall[..., 1:]
    return wide
