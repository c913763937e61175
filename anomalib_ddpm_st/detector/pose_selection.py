# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Decides from normal images alone whether parts are turned to one pose."""

from collections.abc import Callable
from typing import Literal

import torch

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose
from anomalib_ddpm_st.core.images import evenly_spaced
from anomalib_ddpm_st.core.pose import Pose

PoseOption = Literal["auto", "off"]

MIN_IMAGES = 8
MAX_IMAGES = 64
# Images whose features are compared, a half with the other half.
MAX_COMPARED = 32
BATCH_SIZE = 16
# Nearly all images must show a part that does not cover the border, neither a speck nor nearly everything.
NEARLY_ALL = 0.95
MAX_FRINGE = 0.15
AREA_RANGE = (0.005, 0.6)
# A shorter part has no certain axis.
MIN_ELONGATION = 1.4
# Smallest spread of directions, in radians, and of centres, in units of half the image's height, that is worth turning.
MIN_ANGLE_SPREAD = 0.1
MIN_CENTRE_SPREAD = 0.05
# Distance of turned parts to other turned parts, as a multiple of that of parts as they lie.
MAX_DISTANCE_RATIO = 0.95
# The part of the places of an image that decides: the furthest ones, which a detector takes for defects.
FURTHEST = 0.02
PLACES = 5_000


def select_pose(
    images: torch.Tensor,
    aspect: float,
    features: Callable[[torch.Tensor], list[torch.Tensor]],
) -> tuple[CanonicalPose | None, str]:
    """Decide whether parts are turned to one pose.

    They are if nearly all normal images show an elongated part on a plain background, if it lies in different poses,
    and if parts that the others have not seen come nearer to them when all are turned, by the teacher's features.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        aspect (float): Width over height of what the images show.
        features (Callable[[torch.Tensor], list[torch.Tensor]]): Returns features by level of images of shape
            ``(B, 3, H, W)`` with values in [0, 1], such as the teacher's.

    Returns:
        tuple[CanonicalPose | None, str]: Transform, or ``None`` if parts stay as they lie, and the reason.
    """
    if len(images) < MIN_IMAGES:
        return None, f"{len(images)} normal images are too few to tell"
    sample = images[evenly_spaced(len(images), MAX_IMAGES)]
    problem = _find_problem(CanonicalPose.fit(sample, aspect).estimate_all(sample))
    if problem is not None:
        return None, problem
    canonical = CanonicalPose.fit(images, aspect)
    compared = evenly_spaced(len(sample), MAX_COMPARED)
    before, after = (_distance(part, features) for part in (sample[compared], canonical.turn(sample[compared])))
    if after >= MAX_DISTANCE_RATIO * before:
        return None, f"turned parts are no more alike ({after:.3f} instead of {before:.3f})"
    reason = f"parts lie in different poses and are more alike when turned ({after:.3f} instead of {before:.3f})"
    if canonical.frame.end is None:
        reason += ", by a quarter at most, since their ends are alike"
    return canonical, reason


def _find_problem(pose: Pose) -> str | None:
    """Why parts cannot or need not be turned, ``None`` if nothing stands against it."""
    count = len(pose.area)
    is_part = (pose.fringe < MAX_FRINGE) & (pose.area > AREA_RANGE[0]) & (pose.area < AREA_RANGE[1])
    if is_part.float().mean() < NEARLY_ALL:
        return f"{int(is_part.sum())} of {count} images show a part on a plain background"
    is_long = pose.elongation > MIN_ELONGATION
    if is_long.float().mean() < NEARLY_ALL:
        return f"{int(is_long.sum())} of {count} parts are elongated enough to have a direction"
    # Twice the angle, for which both ends are alike.
    cosine, sine = pose.direction.unbind(dim=1)
    doubled = torch.stack([cosine**2 - sine**2, 2 * cosine * sine], dim=1).mean(dim=0).norm().clamp(1e-6, 1)
    directed = pose.direction.mean(dim=0).norm().clamp(1e-6, 1)
    angle = float((-2 * torch.minimum(doubled, directed).log()).sqrt())
    shift = float(pose.centre.std(dim=0).norm())
    if angle < MIN_ANGLE_SPREAD and shift < MIN_CENTRE_SPREAD:
        return f"all parts lie alike (within {torch.rad2deg(torch.tensor(angle)):.0f} degrees)"
    return None


@torch.no_grad()
def _distance(images: torch.Tensor, features: Callable[[torch.Tensor], list[torch.Tensor]]) -> float:
    """Cosine distance of the furthest places of every second image to the nearest place of the others."""
    parts = []
    for batch in images.split(BATCH_SIZE):
        level = features(batch.float() / 255)[-2].float()
        parts.append(torch.nn.functional.normalize(level, dim=1).permute(0, 2, 3, 1).flatten(1, 2))
    vectors = torch.cat(parts)
    known, new = vectors[::2].flatten(0, 1), vectors[1::2]
    known = known[evenly_spaced(len(known), PLACES)]
    distances = torch.stack([(1 - image @ known.T).amin(dim=1) for image in new])
    # As many places of both, though turned images are cropped to the part.
    count = max(1, round(FURTHEST * distances.shape[1]))
    return float(distances.topk(count, dim=1).values.mean())
