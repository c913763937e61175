# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Augmentation of training images: what varies between good parts.

Flips and quarter turns: a surface, or a part that can lie in any orientation, may be rotated; a part that is always
mounted the same way must not, since a rotated one is a defect there. The normal images tell which: if orientations
vary, a rotated image resembles another normal image; if not, it is as far from all of them as two normal images are
from each other.

Small changes of pose and brightness: every part lies slightly differently under the camera. Without them the student
memorises a few hundred normal images and calls new ones defective.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional

from anomalib_ddpm_st.core.frames import fill_frames, find_frames, restore_frames
from anomalib_ddpm_st.core.geometry import flip_rotate, random_affine
from anomalib_ddpm_st.core.images import evenly_spaced
from anomalib_ddpm_st.core.random_draws import log_uniform, uniform

Augmentation = Literal["auto", "flips_and_turns", "flips", "none"]

# Each element of the symmetry group of the square: transpose, then flip rows, then flip columns.
SYMMETRIES = tuple((transpose, rows, columns) for transpose in (0, 1) for rows in (0, 1) for columns in (0, 1))
LAYOUT_SIZE = 4
MAX_DISTANCE = 0.8
TYPICAL_QUANTILE = 0.25
MAX_QUERIES = 48
MAX_REFERENCES = 256
MIN_REFERENCES = 3
BATCH_SIZE = 16

# Largest changes of :func:`jitter_pair`.
ROTATION = 4.0
SCALE = 0.06
SHIFT = 0.04
GAIN = 0.15
OFFSET = 0.05
P_MOVED = 0.5

# What :func:`change_light` draws from.
LIGHT_GAIN = (0.75, 1.25)
LIGHT_GAMMA = (0.67, 1.5)
LIGHT_GRADIENT = (0.25, 0.3)
SPOT_WIDTH = 0.5


def jitter_pair(
    images: torch.Tensor,
    augmented: torch.Tensor,
    masks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slightly change pose and brightness of images, and in the same way of their copies with defects and the masks.

    The gain changes by up to 15 % and the offset by up to 0.05. Every second image, since interpolation costs
    sharpness, is rotated by up to 4 degrees, scaled by up to 6 % and shifted by up to 4 % of each side. Padding
    stays as it is.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        augmented (torch.Tensor): The same images with defects.
        masks (torch.Tensor): Masks of the defects, 0 or 1, of shape ``(B, 1, H, W)``.

    Returns:
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]: The three, changed.
    """
    originals, frames = (images, augmented, masks), find_frames(images)
    images, augmented = (fill_frames(part, frames) for part in (images, augmented))
    count, device = len(images), images.device
    moved = torch.rand(count, device=device) < P_MOVED
    if moved.any():
        stacked = torch.cat([images, augmented, masks], dim=1)
        stacked[moved] = random_affine(stacked[moved], ROTATION, SCALE, SHIFT)
        images, augmented, masks = stacked[:, :3], stacked[:, 3:6], (stacked[:, 6:] > 0.5).to(masks.dtype)
    gain, offset = 2 * torch.rand(2, count, 1, 1, 1, device=device) - 1
    images, augmented = ((part * (1 + GAIN * gain) + OFFSET * offset).clamp(0, 1) for part in (images, augmented))
    images, augmented, masks = (
        restore_frames(part, original, frames)
        for part, original in zip((images, augmented, masks), originals, strict=True)
    )
    return images, augmented, masks


def change_light(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Show images in another light: exposure, gamma, a linear and a spot gradient, each drawn for each image.

    Padding stays as it is.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        generator (torch.Generator | None): Source of the random draws. Defaults to the global one.

    Returns:
        torch.Tensor: Images of the same shape with values in [0, 1].
    """
    column, device = (len(images), 1, 1, 1), images.device

    def draw(low: float, high: float) -> torch.Tensor:
        return uniform(column, low, high, generator, device)

    lit = (images * draw(*LIGHT_GAIN)).clamp(0, 1) ** log_uniform(column, *LIGHT_GAMMA, generator, device)
    height, width = images.shape[-2:]
    sides = (torch.linspace(-1, 1, length, device=device) for length in (height, width))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    angle = draw(0, 2 * math.pi)
    lit = lit * (1 + draw(*LIGHT_GRADIENT) * (columns * angle.cos() + rows * angle.sin()))
    right, down = draw(-1, 1), draw(-1, 1)
    spot = torch.exp(-((columns - right) ** 2 + (rows - down) ** 2) / SPOT_WIDTH)
    sign = 2 * (draw(0, 1) < 0.5) - 1
    lit = (lit * (1 + sign * draw(*LIGHT_GRADIENT) * spot)).clamp(0, 1)
    return restore_frames(lit, images, find_frames(images))


def allowed_symmetries(
    images: torch.Tensor,
    features: Callable[[torch.Tensor], list[torch.Tensor]],
    max_distance: float = MAX_DISTANCE,
) -> tuple[torch.Tensor, list[float]]:
    """Find the flips and quarter turns under which normal images still look normal.

    Images are compared by their features, averaged over a 4 x 4 layout. The distance of an element is the median
    distance of images transformed by it to the nearest *other* normal image, on a scale on which 0 is the distance of
    the untransformed images and 1 the lower quartile of the distances of two normal images (a quartile, since variants
    of a part, each in the same pose, would increase the median).

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``; with fewer than three only the
            identity is allowed.
        features (Callable[[torch.Tensor], list[torch.Tensor]]): Returns features by level of images of shape
            ``(B, 3, H, W)`` with values in [0, 1], such as the teacher's.
        max_distance (float): Largest distance that is allowed. Defaults to ``0.8``.

    Returns:
        tuple[torch.Tensor, list[float]]: Allowed rows of ``SYMMETRIES``, boolean of shape ``(A, 3)``, the identity
        first; and the distance of each element, ``inf`` if it does not fit the shape of the images.
    """
    references = evenly_spaced(len(images), MAX_REFERENCES)
    queries = evenly_spaced(len(references), MAX_QUERIES)

    def embed(indices: torch.Tensor, element: tuple[int, int, int]) -> torch.Tensor:
        elements = torch.tensor([element], dtype=torch.bool)
        parts = []
        for batch in indices.split(BATCH_SIZE):
            levels = features(flip_rotate(images[batch].float() / 255, elements.expand(len(batch), -1)))
            pooled = (functional.adaptive_avg_pool2d(level.float(), LAYOUT_SIZE).flatten(1) for level in levels)
            parts.append(torch.cat([functional.normalize(level, dim=1) for level in pooled], dim=1))
        return torch.cat(parts)

    distances = [0.0] + [float("inf")] * (len(SYMMETRIES) - 1)
    if len(references) >= MIN_REFERENCES:
        with torch.no_grad():
            known = embed(references, SYMMETRIES[0])
            among = torch.cdist(known, known)
            typical = float(among[~torch.eye(len(known), dtype=torch.bool)].quantile(TYPICAL_QUANTILE))
            usual = 0.0
            for index, element in enumerate(SYMMETRIES):
                if element[0] and images.shape[-2] != images.shape[-1]:
                    continue
                distance = torch.cdist(embed(references[queries], element), known)
                distance[torch.arange(len(queries)), queries] = torch.inf
                nearest = float(distance.amin(dim=1).median())
                usual = nearest if index == 0 else usual
                distances[index] = (nearest - usual) / max(typical - usual, 1e-6)
    allowed = [element for element, distance in zip(SYMMETRIES, distances, strict=True) if distance <= max_distance]
    return torch.tensor(allowed, dtype=torch.bool), distances
