# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""How much of an original image is to be seen after transforms."""

import math
from collections.abc import Callable

import torch


def shown_extent(see: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int]) -> tuple[float, float] | None:
    """Height and width of what an image shows after transforms, padding included.

    Transforms may resize, crop or pad, so ramps of brightness that pass them measure how they stretch an image.

    Args:
        see (Callable[[torch.Tensor], torch.Tensor]): Transforms; called with an image of shape ``(3, H, W)`` with
            values in [0, 1].
        size (tuple[int, int]): Height and width of the image before the transforms.

    Returns:
        tuple[float, float] | None: Height and width in pixels of the image before the transforms. ``None`` if the ramps
        cannot be found in the result.
    """
    dark, bright = (see(torch.full((3, *size), value)) for value in (0.25, 0.75))
    shown = (bright - dark).abs().amax(dim=0) > 1e-3  # all but padding
    extents = []
    for axis, length in enumerate(size):
        ramp = torch.linspace(0.25, 0.75, length).reshape((-1, 1) if axis == 0 else (1, -1))
        seen = see(ramp.expand(3, *size)).movedim(axis + 1, 0)
        places = shown.any(dim=1 - axis).nonzero().flatten().tolist() or [0]
        low, high = places[len(places) // 4], places[-1 - len(places) // 4]
        change = (seen[high] - seen[low]).abs().amax().item()
        # The ramp rises by a half.
        extents.append(2 * (change / max(high - low, 1) * len(seen) * (length - 1)))
    height, width = extents
    return (height, width) if all(math.isfinite(extent) and extent > 0 for extent in extents) else None
