# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Large defects of objects: parts of them that are displaced, turned, doubled or missing."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from anomalib_ddpm_st.core.geometry import shift_and_flip
from anomalib_ddpm_st.core.random_draws import log_uniform, uniform

from .blending import CHANGE_THRESHOLD, changed_pixels
from .masks import CENTRE_SIZE, find_centres

# Half of the height and width of a part, as fractions of the shorter side.
HALF_SIDES = (0.06, 0.35)
P_ROUND = 0.5
# Probabilities that a part shows another place, or itself turned by half a turn; otherwise it is missing.
P_DISPLACED, P_TURNED = 0.5, 0.2
# A part must differ in this part of its area.
MIN_CHANGED = 0.4
# What is around a missing part is averaged at this resolution.
FILL_SIZE = 32
FILL_STEPS = 40


@dataclass(frozen=True)
class PartParameters:
    """One part of each image.

    Attributes:
        used (torch.Tensor): Which images get this defect, boolean of shape ``(B, 1, 1, 1)``.
        scores (torch.Tensor): The centre is the allowed place with the largest score, of shape ``(B, 1, S, S)``.
        half_sides (torch.Tensor): Half of height and width as fractions of the shorter side, of shape ``(B, 2)``.
        is_round (torch.Tensor): Ellipse instead of a rectangle, boolean of shape ``(B, 1, 1)``.
        kind (torch.Tensor): Number in [0, 1] that tells displaced, turned and missing parts apart, of shape ``(B,)``.
        shifts (torch.Tensor): Rows and columns that displaced parts come from, as fractions of height and width, of
            shape ``(B, 2)``.
    """

    used: torch.Tensor
    scores: torch.Tensor
    half_sides: torch.Tensor
    is_round: torch.Tensor
    kind: torch.Tensor
    shifts: torch.Tensor


def random_parts(
    count: int,
    probability: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> PartParameters:
    """Draw parts; small ones are as frequent as large ones (log-uniform).

    Args:
        count (int): Number of images.
        probability (float): Probability that an image gets this defect.
        generator (torch.Generator | None): Source of every random draw.
        device (torch.device | None): Device of the result.

    Returns:
        PartParameters: Parameters of :func:`change_parts`.
    """
    return PartParameters(
        used=uniform((count, 1, 1, 1), 0, 1, generator, device) < probability,
        scores=uniform((count, 1, CENTRE_SIZE, CENTRE_SIZE), 0, 1, generator, device),
        half_sides=log_uniform((count, 2), *HALF_SIDES, generator, device),
        is_round=uniform((count, 1, 1), 0, 1, generator, device) < P_ROUND,
        kind=uniform((count,), 0, 1, generator, device),
        shifts=uniform((count, 2), 0.1, 0.9, generator, device),
    )


def change_parts(
    images: torch.Tensor,
    allowed: torch.Tensor,
    parameters: PartParameters,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Displace, turn, double or remove a part of each image.

    Another place of the object doubles a part, the background removes one. The whole part is the defect, not only the
    pixels that happen to differ.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        allowed (torch.Tensor): Where the object is, boolean of shape ``(B, 1, H, W)``.
        parameters (PartParameters): Result of :func:`random_parts`.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Changed images, and boolean masks of shape ``(B, 1, H, W)``. A part that
        would hardly differ leaves its image as it was, and its mask empty.
    """
    height, width = images.shape[-2:]
    centres = torch.stack(find_centres(allowed.float(), parameters.scores), dim=1).long()
    halves = (parameters.half_sides * min(height, width)).clamp_min(1)
    down = (torch.arange(height, device=images.device) - centres[:, :1]) / halves[:, :1]
    right = (torch.arange(width, device=images.device) - centres[:, 1:]) / halves[:, 1:]
    down, right = down[:, :, None], right[:, None, :]
    inside = torch.where(
        parameters.is_round,
        down.square() + right.square() <= 1,
        torch.maximum(down.abs(), right.abs()) <= 1,
    )[:, None]

    is_displaced = parameters.kind < P_DISPLACED
    is_turned = ~is_displaced & (parameters.kind < P_DISPLACED + P_TURNED)
    sizes = torch.tensor([height, width], device=images.device)
    shifts = torch.where(is_displaced[:, None], (parameters.shifts * sizes).long(), 2 * centres + 1 - sizes)
    contents = shift_and_flip(images, shifts, is_turned[:, None].expand(-1, 2))
    is_missing = ~(is_displaced | is_turned)
    if is_missing.any():
        contents[is_missing] = _surroundings(images[is_missing], inside[is_missing])

    changed = torch.where(inside, contents, images)
    differs = changed_pixels(images, changed, CHANGE_THRESHOLD).sum(dim=(1, 2, 3), keepdim=True)
    masks = inside & (differs >= MIN_CHANGED * inside.sum(dim=(1, 2, 3), keepdim=True))
    return torch.where(masks, changed, images), masks


def _surroundings(images: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Colours that grow into holes from what is around them."""
    known = 1 - functional.interpolate(holes.float(), (FILL_SIZE, FILL_SIZE), mode="area").ceil()
    colours = functional.interpolate(images, (FILL_SIZE, FILL_SIZE), mode="area") * known
    weights = known
    for _ in range(FILL_STEPS):
        sums, counts = (functional.avg_pool2d(part, 3, 1, padding=1) for part in (colours, weights))
        grown = sums / counts.clamp_min(1e-6)
        colours, weights = (torch.where(known > 0, old, new) for old, new in ((colours, grown), (weights, counts)))
        weights = (weights > 0).to(images.dtype)
        colours = colours * weights
    return functional.interpolate(colours, images.shape[-2:], mode="bilinear")
