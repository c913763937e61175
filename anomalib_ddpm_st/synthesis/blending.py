# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Blend of a texture into an image, and the mask of what it changed. Every function works on whole batches."""

import torch
from torch.nn import functional

from .masks import close_holes

CONTRAST_BLOCKS = 16
# Weakest contrast of a surface that is just visible, in units of images in [0, 1].
MIN_SURFACE_CONTRAST = 0.02
MIN_CHANGE = 1 / 255
MAX_EXAGGERATION = 8.0
# Smallest change of a pixel that counts, in units of images in [0, 1]. For a faint defect it is a fraction of the
# largest change, or the mask would keep only the few pixels that changed most.
CHANGE_THRESHOLD = 0.04
FAINT_FRACTION = 1 / 3
LEAST_THRESHOLD = 0.01
# A few remaining pixels are not a defect; fraction of the image.
MIN_AREA = 4e-4


def blend(
    images: torch.Tensor,
    textures: torch.Tensor,
    weights: torch.Tensor,
    opacity: torch.Tensor,
    contrast: torch.Tensor,
    allowed: torch.Tensor,
) -> torch.Tensor:
    r"""Blend textures into images, Equation (2).

    .. math::
        y = x + e \, \beta \, w \, (u - x)

    with images :math:`x`, textures :math:`u`, weights :math:`w`, opacity :math:`\beta` and an exaggeration
    :math:`e \in [1, 8]`, with which the largest change of the image reaches ``contrast`` times the surface's own
    contrast.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        textures (torch.Tensor): Textures of the same shape and range.
        weights (torch.Tensor): Soft masks of shape ``(B, 1, H, W)`` with values in [0, 1].
        opacity (torch.Tensor): Opacity of shape ``(B, 1, 1, 1)`` in (0, 1].
        contrast (torch.Tensor): Smallest peak change, in units of the surface's own contrast, of shape
            ``(B, 1, 1, 1)``; 0 exaggerates nothing.
        allowed (torch.Tensor): Foreground, boolean of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Images of the same shape with values in [0, 1].
    """
    change = opacity * weights * (textures - images)
    largest = largest_change(images, images + change, weights > 0)
    factor = exaggeration(largest, contrast * surface_contrast(images, allowed))
    return (images + change * factor).clamp(0, 1).to(images.dtype)


def exaggeration(largest: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Factor by which a change is enlarged to become visible.

    Args:
        largest (torch.Tensor): Largest change, in units of images in [0, 1].
        visible (torch.Tensor): Change that is visible, in the same units and of the same shape; at most 1 counts.

    Returns:
        torch.Tensor: Factors in [1, 8] of the same shape.
    """
    return (visible.clamp_max(1) / largest.clamp_min(MIN_CHANGE)).clamp(1, MAX_EXAGGERATION)


def changed_mask(images: torch.Tensor, blended: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    r"""Mask of the pixels that a blend really changed, Equation (3).

    .. math::
        m = \operatorname{close}\big(w > 0 \wedge \max_c |y_c - x_c| > \tau\big), \quad
        \tau = \min\big(0.04, \max(0.01, \tfrac{1}{3} \max_{w > 0} |y - x|)\big)

    A mask of less than 0.04 % of the image becomes empty.

    Args:
        images (torch.Tensor): Images before the blend, of shape ``(B, 3, H, W)``.
        blended (torch.Tensor): Images of :func:`blend`, of the same shape.
        masks (torch.Tensor): Where the weights of the blend are above 0, boolean of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
    largest = largest_change(images, blended, masks)
    threshold = (FAINT_FRACTION * largest).clamp_min(LEAST_THRESHOLD).clamp_max(CHANGE_THRESHOLD)
    masks = close_holes(masks & changed_pixels(images, blended, threshold))
    return masks & (masks.float().mean(dim=(1, 2, 3), keepdim=True) >= MIN_AREA)


def changed_pixels(before: torch.Tensor, after: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Find the pixels that differ by more than a threshold in at least one channel.

    Args:
        before (torch.Tensor): Images of shape ``(B, C, H, W)``.
        after (torch.Tensor): Images of the same shape.
        threshold (float | torch.Tensor): Difference above which a pixel counts, in units of the images; one number or
            shape ``(B, 1, 1, 1)``.

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
    return (after - before).abs().amax(dim=1, keepdim=True) > threshold


def largest_change(before: torch.Tensor, after: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Largest difference of a pixel within a mask, in any channel.

    Args:
        before (torch.Tensor): Images of shape ``(B, C, H, W)``.
        after (torch.Tensor): Images of the same shape.
        masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Differences of shape ``(B, 1, 1, 1)``, zero for an empty mask.
    """
    return ((after - before).abs() * masks).amax(dim=(1, 2, 3), keepdim=True)


def surface_contrast(images: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Contrast of a surface itself: how much its grey values vary within small blocks.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        allowed (torch.Tensor): Where the surface is, boolean of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Geometric mean, over blocks of 1/16 of the shorter side, of the standard deviation within a block,
        at least 0.02, which is just visible, of shape ``(B, 1, 1, 1)``. Edges and blank areas hardly count.
    """
    side = max(2, round(min(images.shape[-2:]) / CONTRAST_BLOCKS))
    grey = images.mean(dim=1, keepdim=True)
    parts = (grey, grey.square(), allowed.to(grey.dtype))
    means, squares, fractions = (functional.avg_pool2d(part, side) for part in parts)
    spreads = (squares - means.square()).clamp_min(0).sqrt().clamp_min(MIN_SURFACE_CONTRAST)
    weights = fractions.clamp_min(1e-6)
    return ((weights * spreads.log()).sum((2, 3), keepdim=True) / weights.sum((2, 3), keepdim=True)).exp()
