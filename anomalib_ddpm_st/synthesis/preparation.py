# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""From normal images to a bank of textures, through the cache."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anomalib_ddpm_st.cache import cached_folder, content_key
from anomalib_ddpm_st.diffusion import DefectPipeline, train_diffusion

from .bank import sample_bank

SETTINGS_FILE = "settings.json"


def prepare_diffusion(
    images: torch.Tensor,
    cache_dir: Path,
    settings: Mapping[str, Any],
    **trainer_arguments: Any,  # noqa: ANN401
) -> Path:
    """Train a DDPM on normal images, or find the one trained before with the same images and settings.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        cache_dir (Path): Root of the cache.
        settings (Mapping[str, Any]): Arguments of :func:`anomalib_ddpm_st.diffusion.train_diffusion`.
        **trainer_arguments: Arguments of ``lightning.pytorch.Trainer``; not part of the key.

    Returns:
        Path: Folder of the pipeline.
    """

    def build(folder: Path) -> None:
        train_diffusion(images, folder, **settings, **trainer_arguments)
        (folder / SETTINGS_FILE).write_text(json.dumps(dict(settings), indent=2))

    return cached_folder(cache_dir, f"diffusion-{content_key(settings, images)}", build)


def load_pipeline(folder: str | Path) -> DefectPipeline:
    """Load a trained DDPM from a local folder.

    Args:
        folder (str | Path): Folder that ``DefectPipeline.save_pretrained`` wrote.

    Returns:
        DefectPipeline: Pipeline on the CPU without a progress bar of its own.

    Raises:
        FileNotFoundError: If the folder holds no pipeline.
        ValueError: If the files in it cannot be read.
    """
    if not (Path(folder) / "model_index.json").is_file():
        msg = f"There is no trained DDPM in {folder}: make one with 'anomalib-ddpm-st diffusion'."
        raise FileNotFoundError(msg)
    try:
        pipeline = DefectPipeline.from_pretrained(str(folder), local_files_only=True)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        msg = f"The DDPM in {folder} cannot be read ({error}): delete the folder and train it again."
        raise ValueError(msg) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prepare_bank(
    images: torch.Tensor,
    diffusion_path: str | Path,
    cache_dir: Path,
    settings: Mapping[str, Any],
    device: torch.device,
    mixed_precision: bool = False,
) -> Path:
    """Sample a bank of textures, or find the one sampled before with the same DDPM, images and settings.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        diffusion_path (str | Path): Folder of the DDPM.
        cache_dir (Path): Root of the cache.
        settings (Mapping[str, Any]): Arguments of :func:`anomalib_ddpm_st.synthesis.sample_bank`.
        device (torch.device): Device to sample on.
        mixed_precision (bool): Run the network in ``bfloat16``. Defaults to ``False``.

    Returns:
        Path: Folder of the bank.
    """
    pipeline = load_pipeline(diffusion_path)
    key = content_key(settings, images, *pipeline.unet.state_dict().values())

    def build(folder: Path) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            bank = sample_bank(pipeline.to(device), images, **settings)
        bank.save(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps({**settings, "diffusion": str(diffusion_path)}, indent=2))

    return cached_folder(cache_dir, f"bank-{key}", build)
