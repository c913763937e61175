# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Health of a DDPM: are its undisturbed samples normal images? To be asked before any detector is trained."""

import math
from collections.abc import Callable
from itertools import starmap
from typing import Literal, TypedDict

import numpy as np
import torch
from einops import rearrange
from kornia.filters import gaussian_blur2d
from torch.nn import functional

from anomalib_ddpm_st.diffusion import DefectPipeline
from anomalib_ddpm_st.images import evenly
from anomalib_ddpm_st.progress import progress

from .bank import MIDDLE_START

Features = Callable[[torch.Tensor], list[torch.Tensor]]

MAX_IMAGES = 64
MIN_IMAGES = 4
FEW_IMAGES = 20
BATCH_SIZE = 8
PLACES = 8
# Standard deviations of a Gaussian blur to compare with, and bounds of the verdicts, in pixels of an image of 256.
BLURS = (0.5, 1.0, 2.0, 4.0, 8.0)
GOOD_BLUR = 1.0
USABLE_BLUR = 6.0
REFERENCE_SIZE = 256


class HealthReport(TypedDict):
    """What :func:`health_report` finds.

    Attributes:
        images (int): Number of real images that were compared.
        yardstick (float | None): Distance of two halves of the real images.
        paired (float | None): Distance of undisturbed samples of one half from the real images of the other.
        from_noise (float | None): The same of samples from pure noise.
        equivalent_blur (float | None): Standard deviation in pixels of the Gaussian blur that takes real images as far
            from the other half as ``paired``, at most 8 at 256 px; the verdict is given by it.
        verdict (str): ``"good"``, ``"usable"``, ``"poor"`` or ``"unknown"``.
        advice (str): What that means, and how far it can be trusted.
    """

    images: int
    yardstick: float | None
    paired: float | None
    from_noise: float | None
    equivalent_blur: float | None
    verdict: str
    advice: str


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Fréchet distance of two sets of vectors, each taken for normally distributed (Heusel et al., 2017, equation 6).

    Args:
        first (torch.Tensor): Vectors of shape ``(N, C)``.
        second (torch.Tensor): Vectors of shape ``(M, C)``.

    Returns:
        float: ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.
    """
    first, second = first.double(), second.double()
    mean = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    one, two = torch.cov(first.T), torch.cov(second.T)
    # The trace of the root is the sum of the roots of the eigenvalues.
    cross = torch.linalg.eigvals(one @ two).sqrt().real.sum()
    return float((mean + one.trace() + two.trace() - 2 * cross).clamp_min(0))


def describe(images: torch.Tensor, features: Features) -> list[torch.Tensor]:
    """Features of images at 8 x 8 places.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        features (Features): Features by level.

    Returns:
        list[torch.Tensor]: Vectors of shape ``(B * 64, C_l)`` of each level.
    """
    parts = [
        [rearrange(functional.adaptive_avg_pool2d(level, PLACES), "b c h w -> (b h w) c") for level in features(batch)]
        for batch in images.split(BATCH_SIZE)
    ]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur by ``sigma`` pixels."""
    size = min(2 * math.ceil(3 * sigma) + 1, min(images.shape[-2:]) // 2 * 2 - 1)
    return gaussian_blur2d(images, size, (sigma, sigma))


@torch.no_grad()
def health_report(
    pipeline: DefectPipeline,
    images: torch.Tensor,
    features: Features,
    num_inference_steps: int = 10,
    seed: int = 0,
) -> HealthReport:
    """Compare undisturbed samples of a DDPM with real images, by features that tell textures and shapes apart.

    One half of the real images is noised to the middle of the range that textures start from and sampled again without
    a perturbation. How far the result is from the *other* half, by the Fréchet distance of features, is compared with
    how far the two halves are from each other, the best to be had, and how far the first half is when it is blurred:
    what a DDPM loses first is fine detail.

    Args:
        pipeline (DefectPipeline): Trained DDPM.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        features (Features): Features by level of images of shape ``(B, 3, H, W)`` with values in [0, 1], such as those
            of the detector's teacher.
        num_inference_steps (int): Number of reverse steps. Defaults to ``10``.
        seed (int): Seed of halves and samples. Defaults to ``0``.

    Returns:
        HealthReport: Distances, verdict and advice.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = evenly(len(images), MAX_IMAGES)
    if len(chosen) < MIN_IMAGES:
        advice = f"{len(chosen)} images cannot be halved: look at the undisturbed samples, which should look normal."
        return HealthReport(
            images=len(chosen),
            yardstick=None,
            paired=None,
            from_noise=None,
            equivalent_blur=None,
            verdict="unknown",
            advice=advice,
        )
    order = torch.randperm(len(chosen), generator=generator)
    first, second = (images[chosen[half]].float() / 255 for half in order.chunk(2))
    paired: list[torch.Tensor] = []
    from_noise: list[torch.Tensor] = []
    for batch in progress(first.split(BATCH_SIZE), "Health of the DDPM"):
        starts: list[tuple[list[torch.Tensor], int | Literal["noise"]]] = [
            (paired, MIDDLE_START),
            (from_noise, "noise"),
        ]
        for samples, begin in starts:
            result = pipeline(
                images=batch,
                start=begin,
                num_inference_steps=num_inference_steps,
                generator=generator,
                return_dict=False,
            )
            samples.append(result[0].cpu())
    reference = describe(second, features)

    def distance(part: torch.Tensor) -> float:
        return sum(starmap(frechet_distance, zip(describe(part, features), reference, strict=True)))

    yardstick, near, far = (distance(part) for part in (first, torch.cat(paired), torch.cat(from_noise)))
    scale = min(images.shape[-2:]) / REFERENCE_SIZE
    blurred = [distance(_blur(first, scale * sigma)) for sigma in BLURS]
    blur = float(np.interp(near, np.maximum.accumulate([yardstick, *blurred]), [0, *BLURS]))
    verdict, advice = "poor", "Samples do not look like the images: train the DDPM for longer, or give more images."
    if blur <= GOOD_BLUR:
        verdict, advice = "good", "Samples look like the images."
    elif blur <= USABLE_BLUR:
        verdict, advice = (
            "usable",
            f"Samples look like the images blurred by {scale * blur:.1f} pixels; textures get detail back from them.",
        )
    if len(chosen) < FEW_IMAGES:
        advice += f" With {len(chosen)} images that is a rough guess."
    return HealthReport(
        images=len(chosen),
        yardstick=yardstick,
        paired=near,
        from_noise=far,
        equivalent_blur=scale * blur,
        verdict=verdict,
        advice=advice,
    )
