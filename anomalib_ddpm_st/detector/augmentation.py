# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Geometric augmentation of training images by the flips and quarter turns under which a part still looks normal.

A surface or a part that lies freely may be turned; a part that is always mounted one way may not, since a turned one
is a defect there. The normal images tell which: where orientations vary, a turned image has a normal image near that
is turned alike; where they do not, it is as far from all of them as normal images are from each other.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

# Each element of the symmetry group of the square: transpose, then flip rows, then flip columns.
SYMMETRIES = tuple((transpose, rows, columns) for transpose in (0, 1) for rows in (0, 1) for columns in (0, 1))
LAYOUT_SIZE = 4
MAX_DISTANCE = 0.8
TYPICAL_QUANTILE = 0.25
MAX_QUERIES = 48
MAX_REFERENCES = 256
MIN_REFERENCES = 3
BATCH_SIZE = 16


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


def evenly(count: int, most: int) -> torch.Tensor:
    """Choose items evenly.

    Args:
        count (int): Number of items.
        most (int): Largest number to choose.

    Returns:
        torch.Tensor: Indices, at most ``most``.
    """
    return torch.linspace(0, count - 1, min(count, most)).round().long()
