# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Sampling of a bank of defect textures from a trained DDPM."""

from collections.abc import Mapping
from typing import Any

import torch

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose
from anomalib_ddpm_st.core.config import as_config
from anomalib_ddpm_st.core.progress import progress
from anomalib_ddpm_st.core.random_draws import uniform
from anomalib_ddpm_st.diffusion import DefectPipeline

from .config import BankConfig
from .texture_bank import TextureBank, thumbnails

BATCH_SIZE = 8
THUMBNAIL_BATCH_SIZE = 64


def turn_bank(
    bank: TextureBank,
    pose: CanonicalPose,
    lying: torch.Tensor,
    turned: torch.Tensor,
    aspect: float | None = None,
) -> TextureBank:
    """Turn the textures of parts as they lie, each as the part that it started from.

    Args:
        bank (TextureBank): Bank that was sampled from ``lying``.
        pose (CanonicalPose): Transform.
        lying (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        turned (torch.Tensor): The same with turned parts, of shape ``(N, 3, h, w)``.
        aspect (float | None): As in :func:`sample_bank`, of the turned images. Defaults to ``None``.

    Returns:
        TextureBank: Bank for turned images.
    """
    textures = []
    for indices in torch.arange(len(bank)).split(BATCH_SIZE):
        sources = pose.estimate(lying[bank.sources[indices]].double() / 255)
        seen = pose.align(bank.textures[indices].double() / 255, sources)
        textures.append((seen * 255).round().clamp(0, 255).to(torch.uint8))
    return TextureBank(torch.cat(textures), bank.sources, _source_thumbnails(turned), _as_tensor(aspect))


def _source_thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Thumbnails of ``uint8`` images."""
    return torch.cat([thumbnails(part.float() / 255) for part in images.split(THUMBNAIL_BATCH_SIZE)])


def _as_tensor(aspect: float | None) -> torch.Tensor | None:
    """Aspect as a bank holds it."""
    return None if aspect is None else torch.tensor(aspect)


def count_reverse_steps(config: BankConfig) -> int:
    """Count the reverse steps of one image that :func:`sample_bank` takes.

    Args:
        config (BankConfig): Settings.

    Returns:
        int: Number of steps. Each texture is sampled twice, with and without the perturbation.
    """
    return 2 * config.size * config.num_inference_steps


def sample_bank(
    pipeline: DefectPipeline,
    images: torch.Tensor,
    config: BankConfig | Mapping[str, Any] | None = None,
    aspect: float | None = None,
) -> TextureBank:
    """Fill a bank with perturbed samples.

    A small DDPM loses fine detail, and a blurred texture is a shortcut: the detector would learn to detect blur. So
    each start is sampled twice with the same noise, perturbed (``p``) and not (``q``), and a fraction ``r`` of the
    detail of the normal image ``x`` that the DDPM lost is added back: ``texture = p + r (x - q)``. At ``r = 1`` the
    texture differs from the normal image by the effect of the perturbation alone.

    Args:
        pipeline (DefectPipeline): Trained DDPM, on the device to sample on.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``; textures start from them in turn.
        config (BankConfig | Mapping[str, Any] | None): Settings. ``None`` takes the defaults. Defaults to ``None``.
        aspect (float | None): Width over height of the images before they were resized. ``None`` if it is that of
            ``images``. Defaults to ``None``.

    Returns:
        TextureBank: Bank on the CPU.

    Raises:
        ValueError: If a setting is out of its range.
    """
    config = as_config(BankConfig, config)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(images), generator=generator).repeat(config.size // len(images) + 1)[: config.size]
    textures = []
    for batch in progress(order.split(BATCH_SIZE), "Stage 2 of 3, bank of defect textures"):
        low, high = config.start_timestep
        start_timestep = int(uniform((1,), low, high + 1, generator).item())
        normal = images[batch].float() / 255
        deltas = uniform((len(batch),), *config.delta, generator)
        seeds = torch.randint(2**62, (len(batch),), generator=generator).tolist()
        pair = pipeline(
            images=normal.repeat(2, 1, 1, 1),
            num_inference_steps=config.num_inference_steps,
            delta=torch.cat([deltas, torch.zeros_like(deltas)]),
            start_timestep=start_timestep,
            generator=[torch.Generator().manual_seed(seed) for seed in [*seeds, *seeds]],
        )[0]
        perturbed, unperturbed = pair.cpu().chunk(2)
        detail = uniform((len(batch), 1, 1, 1), *config.detail, generator)
        texture = (perturbed + detail * (normal - unperturbed)).clamp(0, 1)
        textures.append((texture * 255).round().to(torch.uint8))
    return TextureBank(torch.cat(textures), order, _source_thumbnails(images), _as_tensor(aspect))
