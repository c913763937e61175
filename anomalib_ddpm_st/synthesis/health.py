# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Health of a DDPM: are its unperturbed samples normal images? Worth checking before a detector is trained."""

import math
from collections.abc import Callable
from itertools import starmap
from typing import TypedDict

import numpy as np
import torch
from einops import rearrange
from kornia.filters import gaussian_blur2d
from torch.nn import functional

from anomalib_ddpm_st.core.images import evenly_spaced
from anomalib_ddpm_st.core.progress import progress
from anomalib_ddpm_st.diffusion import DefectPipeline

from .config import MIDDLE_TIMESTEP

Features = Callable[[torch.Tensor], list[torch.Tensor]]

MAX_IMAGES = 64
MIN_IMAGES = 4
FEW_IMAGES = 20
BATCH_SIZE = 8
GRID = 8
# Standard deviations of the Gaussian blurs to compare with, and bounds of the verdicts, in pixels of an image of 256.
BLURS = (0.5, 1.0, 2.0, 4.0, 8.0)
GOOD_BLUR = 1.0
USABLE_BLUR = 6.0
REFERENCE_SIZE = 256


class HealthReport(TypedDict):
    """Result of :func:`health_report`.

    Attributes:
        images (int): Number of real images compared.
        yardstick (float | None): Distance between two halves of the real images.
        paired (float | None): Distance between unperturbed samples of one half and the real images of the other.
        from_noise (float | None): The same for samples from pure noise.
        equivalent_blur (float | None): Standard deviation in pixels of the Gaussian blur that moves real images as far
            from the other half as ``paired``, at most 8 at 256 px; it decides the verdict.
        verdict (str): ``"good"``, ``"usable"``, ``"poor"`` or ``"unknown"``.
        advice (str): Meaning of the verdict, and how far to trust it.
    """

    images: int
    yardstick: float | None
    paired: float | None
    from_noise: float | None
    equivalent_blur: float | None
    verdict: str
    advice: str


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Fréchet distance of two sets of vectors, both assumed to be normally distributed (Heusel et al., 2017, eq. 6).

    Args:
        first (torch.Tensor): Vectors of shape ``(N, C)``.
        second (torch.Tensor): Vectors of shape ``(M, C)``.

    Returns:
        float: ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.
    """
    first, second = first.double(), second.double()
    mean = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    one, two = torch.cov(first.T), torch.cov(second.T)
    # The trace of the square root is the sum of the square roots of the eigenvalues.
    cross = torch.linalg.eigvals(one @ two).sqrt().real.sum()
    return float((mean + one.trace() + two.trace() - 2 * cross).clamp_min(0))


def describe(images: torch.Tensor, features: Features) -> list[torch.Tensor]:
    """Features of images at 8 x 8 positions.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        features (Features): Features by level.

    Returns:
        list[torch.Tensor]: Vectors of shape ``(B * 64, C_l)`` of each level.
    """
    parts = [
        [rearrange(functional.adaptive_avg_pool2d(level, GRID), "b c h w -> (b h w) c") for level in features(batch)]
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
    """Compare unperturbed samples of a DDPM with real images, by features that distinguish textures and shapes.

    One half of the real images is noised to the middle of the default range of start timesteps and sampled again
    without a perturbation. The Fréchet distance of features between the result and the *other* half is compared with
    that between the two halves, the best achievable, and with that of the first half when it is blurred: fine detail is
    what a DDPM loses first.

    Args:
        pipeline (DefectPipeline): Trained DDPM.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        features (Features): Returns features by level of images of shape ``(B, 3, H, W)`` with values in [0, 1], such
            as those of the detector's teacher.
        num_inference_steps (int): Number of reverse steps. Defaults to ``10``.
        seed (int): Seed of halves and samples. Defaults to ``0``.

    Returns:
        HealthReport: Distances, verdict and advice.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = evenly_spaced(len(images), MAX_IMAGES)
    if len(chosen) < MIN_IMAGES:
        advice = (
            f"{len(chosen)} images are too few to compare: look at the unperturbed samples, which should look normal."
        )
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
    paired, from_noise = _sample(pipeline, first, num_inference_steps, generator)
    reference = describe(second, features)

    def distance(part: torch.Tensor) -> float:
        return sum(starmap(frechet_distance, zip(describe(part, features), reference, strict=True)))

    yardstick, near, far = (distance(part) for part in (first, paired, from_noise))
    scale = min(images.shape[-2:]) / REFERENCE_SIZE
    blurred = [distance(_blur(first, scale * sigma)) for sigma in BLURS]
    blur = float(np.interp(near, np.maximum.accumulate([yardstick, *blurred]), [0, *BLURS]))
    verdict, advice = _judge(blur, scale, len(chosen))
    return HealthReport(
        images=len(chosen),
        yardstick=yardstick,
        paired=near,
        from_noise=far,
        equivalent_blur=scale * blur,
        verdict=verdict,
        advice=advice,
    )


def _sample(
    pipeline: DefectPipeline,
    images: torch.Tensor,
    num_inference_steps: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unperturbed samples that start from images, and as many from pure noise."""
    samples: dict[int | None, list[torch.Tensor]] = {MIDDLE_TIMESTEP: [], None: []}
    for batch in progress(images.split(BATCH_SIZE), "Health of the DDPM"):
        for start_timestep, parts in samples.items():
            result = pipeline(
                images=batch,
                start_timestep=start_timestep,
                num_inference_steps=num_inference_steps,
                generator=generator,
                return_dict=False,
            )
            parts.append(result[0].cpu())
    return torch.cat(samples[MIDDLE_TIMESTEP]), torch.cat(samples[None])


def _judge(blur: float, scale: float, count: int) -> tuple[str, str]:
    """Verdict and advice by the equivalent blur in pixels of an image of 256."""
    verdict, advice = "poor", "Samples do not look like the images: train the DDPM for longer, or add images."
    if blur <= GOOD_BLUR:
        verdict, advice = "good", "Samples look like the images."
    elif blur <= USABLE_BLUR:
        verdict, advice = (
            "usable",
            f"Samples look like the images blurred by {scale * blur:.1f} pixels; the textures get detail back.",
        )
    if count < FEW_IMAGES:
        advice += f" With {count} images this is a rough estimate."
    return verdict, advice
