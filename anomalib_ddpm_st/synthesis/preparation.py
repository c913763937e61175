# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""From normal images to a bank of textures, through the cache."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from anomalib_ddpm_st.cache import cached_folder, content_key, default_cache_dir
from anomalib_ddpm_st.diffusion import DefectPipeline, train_diffusion
from anomalib_ddpm_st.diffusion.scheduler import Perturbation
from anomalib_ddpm_st.images import load_normal_images, native_aspect

from .bank import DEFAULT_START, DEFAULT_STRENGTH, SAME_ASPECT, check_bank_settings, sample_bank
from .generator import SOURCES, DiffusionAnomalyGenerator, Synthesis

SETTINGS_FILE = "settings.json"


def normal_paths(samples: pd.DataFrame) -> list[str]:
    """Paths of the normal images among the samples of an anomalib dataset.

    Args:
        samples (pd.DataFrame): ``samples`` of the dataset.

    Returns:
        list[str]: Paths.
    """
    return samples.loc[samples["label_index"] == 0, "image_path"].tolist() if len(samples) else []


def trainer_arguments_for(device: torch.device) -> dict[str, Any]:
    """Arguments of a Trainer that runs on one device.

    Args:
        device (torch.device): Device.

    Returns:
        dict[str, Any]: ``accelerator`` and ``devices``.
    """
    return {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}


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
        DefectPipeline: Pipeline on the CPU without a progress bar of its own, its weights in ``channels_last``.
        Where a compiler is worth its time, ``load_pipeline(folder).unet.compile()`` compiles the network in place.

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
    # A seventh faster on a CPU; in training it makes no difference.
    pipeline.unet.to(memory_format=torch.channels_last)
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


def prepare_generator(
    images: Sequence[str | Path],
    synthesis: Synthesis = "mixture",
    image_size: tuple[int, int] = (256, 256),
    diffusion_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    diffusion_steps: int = 1000,
    bank_size: int = 256,
    strength: Sequence[float] = DEFAULT_STRENGTH,
    perturbation: Perturbation = "constant",
    seed: int = 0,
    device: torch.device | None = None,
    precision: str = "32-true",
    **settings: Any,  # noqa: ANN401
) -> DiffusionAnomalyGenerator:
    """Make a generator of defects for normal images: train a DDPM, fill a bank, or find both in the cache.

    Args:
        images (Sequence[str | Path]): Normal image files.
        synthesis (Synthesis): Where defects come from: ``"diffusion"``, ``"mixture"`` of it and ``"self_texture"``, or
            one of the others, which need no DDPM. Defaults to ``"mixture"``.
        image_size (tuple[int, int]): Height and width that images are resized to for the DDPM. Defaults to 256 x 256.
        diffusion_path (str | Path | None): Folder of a trained DDPM. ``None`` trains one. Defaults to ``None``.
        cache_dir (str | Path | None): Folder for DDPMs and banks. ``None`` takes the user's cache folder.
        diffusion_steps (int): Training steps of the DDPM. Defaults to ``1000``.
        bank_size (int): Number of textures. Defaults to ``256``.
        strength (Sequence[float]): Range of the strength of the perturbation.
        perturbation (Perturbation): Kind of perturbation. Defaults to ``"constant"``.
        seed (int): Seed of DDPM and bank. Defaults to ``0``.
        device (torch.device | None): Device to train and sample on. ``None`` takes a GPU where there is one.
        precision (str): Precision of the Trainer. Defaults to ``"32-true"``.
        **settings: Further arguments of :class:`DiffusionAnomalyGenerator`.

    Returns:
        DiffusionAnomalyGenerator: Generator, its bank on the CPU.

    Raises:
        ValueError: If a setting is out of its range, or an image cannot be read.
    """
    if synthesis not in SOURCES:
        msg = f"Unknown synthesis '{synthesis}': choose one of {', '.join(SOURCES)}."
        raise ValueError(msg)
    sources = SOURCES[synthesis]
    if synthesis == "none":
        settings["probability"] = 0.0
    # Settings are checked now, not after stage 1.
    DiffusionAnomalyGenerator(None, **settings)
    bank_dir = None
    if "bank" in sources:
        bank_settings: dict[str, Any] = {"size": bank_size, "strength": list(strength), "perturbation": perturbation}
        check_bank_settings(perturbation, strength, DEFAULT_START)
        normal = load_normal_images(images, image_size, min_images=1)
        aspect = native_aspect(images)
        if abs(math.log(aspect * image_size[0] / image_size[1])) > SAME_ASPECT:
            bank_settings["aspect"] = aspect
        cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if diffusion_path is None:
            diffusion_path = prepare_diffusion(
                normal,
                cache_dir,
                {"training_steps": diffusion_steps, "seed": seed},
                **trainer_arguments_for(device),
                precision=precision,
            )
        bank_dir = prepare_bank(
            normal,
            diffusion_path,
            cache_dir,
            {**bank_settings, "seed": seed},
            device,
            mixed_precision=precision == "bf16-mixed",
        )
    return DiffusionAnomalyGenerator(bank_dir, sources=sources, **settings)
