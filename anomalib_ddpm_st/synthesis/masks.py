# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Masks of synthetic defects: Perlin noise, foreground and changed pixels. Every function works on whole batches."""

import math
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import rotate
from torch.nn import functional

PERLIN_SCALE_EXPONENTS = 6
PERLIN_THRESHOLD = 0.5
FOREGROUND_SIZE = 64
HISTOGRAM_BINS = 64
WINDOW_AXES = (0.03, 0.25)
MAX_SOFTNESS = 0.05
CONTRAST_BLOCKS = 16
MIN_SURFACE_CONTRAST = 0.02


def uniform(
    shape: tuple[int, ...],
    low: float,
    high: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Draw uniform numbers in [low, high) on the device of the generator and move them to ``device``."""
    source = generator.device if generator is not None else device
    return (low + (high - low) * torch.rand(shape, generator=generator, device=source)).to(device)


def log_uniform(
    shape: tuple[int, ...],
    low: float,
    high: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Draw numbers whose logarithms are uniform: small ones are as frequent as large ones.

    Args:
        shape (tuple[int, ...]): Shape of the result.
        low (float): Lower bound, above 0.
        high (float): Upper bound.
        generator (torch.Generator | None): Source of the random draw.
        device (torch.device | None): Device of the result.

    Returns:
        torch.Tensor: Numbers between the bounds.
    """
    return uniform(shape, math.log(low), math.log(high), generator, device).exp()


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
    rotation: float = 90.0,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Draw Perlin masks by the recipe of DRAEM: scales 2^0 to 2^5, random rotation, threshold 0.5.

    Args:
        batch_size (int): Number of masks.
        size (tuple[int, int]): Height and width in pixels.
        rotation (float): Largest rotation to either side, in degrees. Defaults to ``90.0``.
        generator (torch.Generator | None): Source of every random draw.
        device (torch.device | None): Device of the masks.

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
    cells = 2 ** (PERLIN_SCALE_EXPONENTS - 1)
    scales = 2 ** uniform((batch_size, 2), 0, PERLIN_SCALE_EXPONENTS, generator, device).floor().long()
    angles = uniform((batch_size, cells + 1, cells + 1), 0, 2 * torch.pi, generator, device)
    noise = perlin_noise(scales, angles, size)
    # Coarse noise may stay under the threshold everywhere; stretched to [-1, 1] it still gives a mask.
    low = noise.amin(dim=(1, 2, 3), keepdim=True)
    high = noise.amax(dim=(1, 2, 3), keepdim=True)
    stretched = (noise - low) / (high - low).clamp_min(1e-6) * 2 - 1
    noise = torch.where(high > PERLIN_THRESHOLD, noise, stretched)
    noise = rotate(noise, uniform((batch_size,), -rotation, rotation, generator, device))
    return noise > PERLIN_THRESHOLD


@dataclass(frozen=True)
class Windows:
    """Random choices of one elliptic window for each image.

    Attributes:
        scores (torch.Tensor): The centre is the pixel of largest score among those allowed, ``(B, 1, S, S)``.
        axes (torch.Tensor): Semi-axes as shares of the shorter side of the image, of shape ``(B, 2)``.
        angles (torch.Tensor): Rotations in radians, of shape ``(B,)``.
        used (torch.Tensor): Which images get a window, boolean of shape ``(B, 1, 1, 1)``.
        filled (torch.Tensor): Which windows take the place of the mask, boolean of shape ``(B, 1, 1, 1)``.
    """

    scores: torch.Tensor
    axes: torch.Tensor
    angles: torch.Tensor
    used: torch.Tensor
    filled: torch.Tensor


def random_windows(
    batch_size: int,
    share: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
    filled: float = 0.0,
) -> Windows:
    """Draw elliptic windows for single, local defects; small ones are as frequent as large ones (log-uniform).

    Args:
        batch_size (int): Number of windows.
        share (float): Share of images that get one.
        generator (torch.Generator | None): Source of every random draw.
        device (torch.device | None): Device of the result.
        filled (float): Share of windows that take the place of the mask. Defaults to ``0.0``.

    Returns:
        Windows: Choices that :func:`limit_masks` takes.
    """
    return Windows(
        scores=uniform((batch_size, 1, FOREGROUND_SIZE, FOREGROUND_SIZE), 0, 1, generator, device),
        axes=log_uniform((batch_size, 2), *WINDOW_AXES, generator, device),
        angles=uniform((batch_size,), 0, torch.pi, generator, device),
        used=uniform((batch_size, 1, 1, 1), 0, 1, generator, device) < share,
        filled=uniform((batch_size, 1, 1, 1), 0, 1, generator, device) < filled,
    )


def limit_masks(masks: torch.Tensor, allowed: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Limit masks to where defects are allowed, and to a window around one of their pixels.

    Coarse Perlin noise often misses a small object altogether; then too the window takes the place of the mask.

    Args:
        masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        allowed (torch.Tensor): Where defects are allowed, boolean of the same shape.
        windows (Windows): Choices of :func:`random_windows`.

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
    height, width = masks.shape[-2:]
    masks = masks & allowed
    is_empty = ~masks.flatten(1).any(dim=1)[:, None, None, None]
    candidates = torch.where(is_empty, allowed, masks).float()
    small = functional.adaptive_max_pool2d(candidates, FOREGROUND_SIZE)
    centre = (windows.scores * small).flatten(1).argmax(dim=1)
    row = (centre // FOREGROUND_SIZE + 0.5) * height / FOREGROUND_SIZE
    column = (centre % FOREGROUND_SIZE + 0.5) * width / FOREGROUND_SIZE
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
    """Blur the edges of masks, each by a width of its own, and keep the peak at 1.

    Args:
        masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        widths (torch.Tensor): Standard deviation of the Gaussian as a share of the shorter side, of shape ``(B,)``.
            ``0`` leaves a mask as it is, and none is larger than ``MAX_SOFTNESS``.

    Returns:
        torch.Tensor: Weights in [0, 1] of shape ``(B, 1, H, W)``.
    """
    weights = masks.float()
    chosen = (widths > 0) & masks.flatten(1).any(dim=1)
    if not chosen.any():
        return weights
    size = min(masks.shape[-2:])
    sigma = (widths[chosen] * size).clamp_min(1e-3)
    # One size of kernel for all, so that no image depends on the others of its batch.
    radius = min(math.ceil(3 * MAX_SOFTNESS * size), size - 1)
    blurred = gaussian_blur2d(weights[chosen], 2 * radius + 1, torch.stack([sigma, sigma], dim=1))
    weights[chosen] = blurred / blurred.amax(dim=(1, 2, 3), keepdim=True)
    return weights


def otsu_threshold(values: torch.Tensor) -> torch.Tensor:
    """Threshold of Otsu (1979) for each row.

    Args:
        values (torch.Tensor): Values in [0, 1] of shape ``(B, N)``.

    Returns:
        torch.Tensor: Thresholds of shape ``(B,)``; values above belong to the upper class.
    """
    bins = (values * HISTOGRAM_BINS).long().clamp(0, HISTOGRAM_BINS - 1)
    histogram = torch.zeros(values.shape[0], HISTOGRAM_BINS, device=values.device)
    histogram = histogram.scatter_add_(1, bins, torch.ones_like(values)) / values.shape[1]
    centres = (torch.arange(HISTOGRAM_BINS, device=values.device) + 0.5) / HISTOGRAM_BINS
    weight = histogram.cumsum(1)
    mean = (histogram * centres).cumsum(1)
    between = (mean[:, -1:] * weight - mean) ** 2 / (weight * (1 - weight)).clamp_min(1e-8)
    # Between two classes far apart every threshold is as good: take the middle one.
    best = between >= between.amax(dim=1, keepdim=True) * (1 - 1e-4)
    return ((best * centres).sum(1) / best.sum(1)) + 0.5 / HISTOGRAM_BINS


def foreground_mask(images: torch.Tensor) -> torch.Tensor:
    """Find the object on a plain background; the whole image where there is no plain background.

    The background is what connects to the border and has the colour of the border. An image counts as a texture,
    with everything as foreground, if its border is not of one colour or if next to nothing, or everything, would
    remain.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
    """
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
    share = foreground.mean(dim=(1, 2, 3), keepdim=True)
    has_background = plain_border & contrast & (threshold > 0.08) & (share > 0.02) & (share < 0.95)
    foreground = torch.where(has_background, foreground, torch.ones_like(foreground))
    return functional.interpolate(foreground, images.shape[-2:], mode="nearest").bool()


def is_surface(foreground: torch.Tensor) -> torch.Tensor:
    """Whether images show nothing but a surface, rather than an object on a plain background.

    Args:
        foreground (torch.Tensor): Masks of :func:`foreground_mask`, boolean of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Boolean of shape ``(B,)``.
    """
    return foreground.flatten(1).all(dim=1)


def _border(device: torch.device) -> torch.Tensor:
    """Boolean mask of shape ``(S, S)`` of the outermost pixels of the small image."""
    border = torch.ones(FOREGROUND_SIZE, FOREGROUND_SIZE, dtype=torch.bool, device=device)
    border[2:-2, 2:-2] = False
    return border


def surface_contrast(images: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Contrast of a surface with itself: how much its grey values vary within small blocks.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        allowed (torch.Tensor): Where the surface is, boolean of shape ``(B, 1, H, W)``.

    Returns:
        torch.Tensor: Geometric mean over blocks of 1/16 of the shorter side of the standard deviation in a block, at
        least 0.02, which can just be seen, of shape ``(B, 1, 1, 1)``. Edges and blank areas hardly count.
    """
    side = max(2, round(min(images.shape[-2:]) / CONTRAST_BLOCKS))
    grey = images.mean(dim=1, keepdim=True)
    parts = (grey, grey.square(), allowed.to(grey.dtype))
    means, squares, shares = (functional.avg_pool2d(part, side) for part in parts)
    spreads = (squares - means.square()).clamp_min(0).sqrt().clamp_min(MIN_SURFACE_CONTRAST)
    weights = shares.clamp_min(1e-6)
    return ((weights * spreads.log()).sum((2, 3), keepdim=True) / weights.sum((2, 3), keepdim=True)).exp()


def changed_pixels(before: torch.Tensor, after: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Find the pixels that differ by more than a threshold in at least one channel.

    Args:
        before (torch.Tensor): Images of shape ``(B, C, H, W)``.
        after (torch.Tensor): Images of the same shape.
        threshold (float | torch.Tensor): Smallest difference that counts, in units of the images; one number or a
            tensor of shape ``(B, 1, 1, 1)``.

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
        torch.Tensor: Differences of shape ``(B, 1, 1, 1)``, zero where a mask is empty.
    """
    return ((after - before).abs() * masks).amax(dim=(1, 2, 3), keepdim=True)


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
