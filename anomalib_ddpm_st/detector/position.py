# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""How much the position counts in the memory bank, decided from normal images alone."""

from collections.abc import Sequence

import torch
from torch.nn import functional

# Part of the variance of features that the place must explain for parts to count as lying alike. Parts that lie alike
# have 0.7 and more, surfaces and parts that lie anywhere less than 0.4.
MIN_EXPLAINED = 0.5
# Parts that lie alike; surfaces, whose light and grain change slowly from place to place; parts that lie anywhere.
ALIKE, SURFACE, ANYWHERE = 2.0, 1.0, 0.0
MIN_IMAGES = 4
# Less is rounding.
MIN_VARIANCE = 1e-5


def explained_by_place(features: Sequence[Sequence[torch.Tensor]]) -> float:
    r"""Part of the variance of features that their place in the image explains.

    With the mean :math:`m_p` of the directions of features of :math:`n` images at the place :math:`p`, corrected for
    the variance of a mean of few images, and the mean :math:`m` of all:

    .. math::
        \frac{\overline{\lVert m_p \rVert^2} - \overline{1 - \lVert m_p \rVert^2} / (n - 1) - \lVert m \rVert^2}
        {1 - \lVert m \rVert^2}

    Args:
        features (Sequence[Sequence[torch.Tensor]]): For each batch of normal images the teacher's features of each
            level, of shape ``(B, C_l, h_l, w_l)``; at least two images.

    Returns:
        float: Mean over levels of a number of at most 1; about 0 if the place tells nothing.
    """
    count = sum(len(batch[0]) for batch in features)
    parts = []
    for batches in zip(*features, strict=True):
        sums = [functional.normalize(batch, dim=1).sum(dim=0, dtype=torch.float64) for batch in batches]
        by_place = torch.stack(sums).sum(dim=0) / count
        squares = by_place.square().sum(dim=0)
        total = 1 - by_place.mean(dim=(1, 2)).square().sum()
        within = (1 - squares) * count / (count - 1)
        parts.append(1 - float(within.mean() / total.clamp_min(MIN_VARIANCE)))
    return sum(parts) / len(parts)


def choose_position_weight(explained: float, is_surface: bool) -> float:
    """Choose the weight of the position in the memory bank.

    Args:
        explained (float): Result of :func:`explained_by_place`.
        is_surface (bool): Whether the images show a surface instead of an object on a plain background.

    Returns:
        float: Weight.
    """
    if explained >= MIN_EXPLAINED:
        return ALIKE
    return SURFACE if is_surface else ANYWHERE
