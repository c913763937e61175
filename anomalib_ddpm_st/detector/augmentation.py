# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Augmentation of training images: what varies from one good part to the next, and leaves it good.

Flips and quarter turns: a surface or a part that lies freely may be turned; a part that is always mounted one way may
not, since a turned one is a defect there. The normal images tell which: where orientations vary, a turned image has a
normal image near that is turned alike; where they do not, it is as far from all of them as normal images are from each
other. This is for few images. Enough of them show all poses themselves; turned ones, with the light from another side,
would only blur what is normal.

Small changes of pose and brightness: every part lies a little differently under the camera. Without them the student
learns a few hundred normal images by heart, and takes those that it has not seen for defective.

Blends of two normal images, on surfaces: what a surface shows differs from place to place without end, so that blends
are normal, too, and new. A part in two poses at once is none.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from anomalib_ddpm_st.images import evenly, randomly_posed
from anomalib_ddpm_st.synthesis.masks import foreground_mask, is_surface

# Each element of the symmetry group of the square: transpose, then flip rows, then flip columns.
SYMMETRIES = tuple((transpose, rows, columns) for transpose in (0, 1) for rows in (0, 1) for columns in (0, 1))
LAYOUT_SIZE = 4
MAX_DISTANCE = 0.8
TYPICAL_QUANTILE = 0.25
MAX_QUERIES = 48
MAX_REFERENCES = 256
MIN_REFERENCES = 3
# From so many normal images on, none is turned.
ENOUGH_IMAGES = 100
BATCH_SIZE = 16

# Largest changes of :func:`vary`.
ROTATION = 4.0
SCALE = 0.06
SHIFT = 0.04
GAIN = 0.15
OFFSET = 0.05
MOVED_SHARE = 0.5
# Share of images that :func:`mix` blends.
MIXED_SHARE = 0.5


def turn(images: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    """Flip and turn each image of a batch by its own element of the symmetry group, without interpolation.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``; ``H = W`` for elements that transpose.
        elements (torch.Tensor): Rows of ``SYMMETRIES``, boolean of shape ``(B, 3)``.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    transpose, rows, columns = elements[:, :, None, None, None].unbind(dim=1)
    if images.shape[-2] == images.shape[-1]:
        images = torch.where(transpose, images.transpose(-1, -2), images)
    images = torch.where(rows, images.flip(-2), images)
    return torch.where(columns, images.flip(-1), images)


def vary(
    images: torch.Tensor,
    augmented: torch.Tensor,
    masks: torch.Tensor,
    strength: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Change pose and brightness a little, of an image, of its copy with defects and of their mask alike.

    At full strength: gain within 15 %, offset within 0.05; and of half of the images, since moving costs sharpness,
    rotation within 4 degrees, size within 6 % and place within 4 % of each side.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        augmented (torch.Tensor): The same images with defects.
        masks (torch.Tensor): Masks of the defects, 0 or 1, of shape ``(B, 1, H, W)``.
        strength (float): Factor of all changes. Defaults to ``1.0``.

    Returns:
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]: The three, changed.
    """
    if strength == 0:
        return images, augmented, masks
    count, device = len(images), images.device
    moved = torch.rand(count, device=device) < MOVED_SHARE
    if moved.any():
        stacked = torch.cat([images, augmented, masks], dim=1)
        stacked[moved] = randomly_posed(stacked[moved], strength * ROTATION, strength * SCALE, strength * SHIFT)
        images, augmented, masks = stacked[:, :3], stacked[:, 3:6], (stacked[:, 6:] > 0.5).to(masks.dtype)
    gain, offset = strength * (2 * torch.rand(2, count, 1, 1, 1, device=device) - 1)
    images, augmented = ((part * (1 + GAIN * gain) + OFFSET * offset).clamp(0, 1) for part in (images, augmented))
    return images, augmented, masks


def mix(images: torch.Tensor, share: float) -> torch.Tensor:
    """Blend half of the images of a batch with the image before them (mixup, Zhang et al., 2018).

    All are normal, so that there are no labels to blend.

    Args:
        images (torch.Tensor): Normal images of shape ``(B, 3, H, W)``.
        share (float): Largest share of the other image, in [0, 1].

    Returns:
        torch.Tensor: Images of the same shape.
    """
    chosen, opacity = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    weights = share * opacity * (chosen < MIXED_SHARE)
    return images.lerp(images.roll(1, dims=0), weights.to(images.dtype))


def show_surface(images: torch.Tensor) -> bool:
    """Whether most images show nothing but a surface, rather than an object that lies on a plain background.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.

    Returns:
        bool: Whether they do.
    """
    surfaces = [is_surface(foreground_mask(batch.float() / 255)) for batch in images.split(BATCH_SIZE)]
    return bool(torch.cat(surfaces).float().mean() > 0.5)


def allowed_symmetries(
    images: torch.Tensor,
    features: Callable[[torch.Tensor], list[torch.Tensor]],
    max_distance: float = MAX_DISTANCE,
) -> tuple[torch.Tensor, list[float]]:
    """Find the flips and quarter turns under which normal images still look normal.

    Images are compared by their features, averaged on a 4 x 4 layout. The distance of an element is the median
    distance of turned images to the nearest *other* normal image, on a scale where 0 is that of the images as they are
    and 1 the lower quartile of the distances of two normal images (a quartile, since variants of a part, each in the
    same pose, would enlarge the median).

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``; at least three, or none but the
            identity is allowed.
        features (Callable[[torch.Tensor], list[torch.Tensor]]): Features by level of images of shape
            ``(B, 3, H, W)`` with values in [0, 1], such as the teacher's.
        max_distance (float): Largest distance that is allowed. Defaults to ``0.8``.

    Returns:
        tuple[torch.Tensor, list[float]]: Allowed rows of ``SYMMETRIES``, boolean of shape ``(A, 3)``, the identity
        first; and the distance of each element, ``inf`` where it does not fit the shape of the images.
    """
    references = evenly(len(images), MAX_REFERENCES)
    queries = evenly(len(references), MAX_QUERIES)

    def embed(indices: torch.Tensor, element: tuple[int, int, int]) -> torch.Tensor:
        elements = torch.tensor([element], dtype=torch.bool)
        parts = []
        for batch in indices.split(BATCH_SIZE):
            levels = features(turn(images[batch].float() / 255, elements.expand(len(batch), -1)))
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
