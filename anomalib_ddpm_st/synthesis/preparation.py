# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""From normal images to a bank of textures, through the cache."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from anomalib_ddpm_st.core.cache import cached_folder, content_key, default_cache_dir
from anomalib_ddpm_st.core.canonical_pose import CanonicalPose
from anomalib_ddpm_st.core.config import as_config
from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE, NormalImages
from anomalib_ddpm_st.diffusion import DefectPipeline, DiffusionConfig, load_pipeline, time_diffusion, train_diffusion

from .config import BankConfig, DefectConfig
from .generator import DiffusionAnomalyGenerator
from .sampling import count_reverse_steps, sample_bank, turn_bank
from .texture_bank import SAME_ASPECT

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class PreparedBank:
    """Result of :func:`prepare_bank`.

    Attributes:
        bank_dir (Path): Folder of the bank.
        diffusion_dir (Path): Folder of the DDPM.
        seconds (dict[str, float]): Time that the stages ``"diffusion"`` and ``"bank"`` took.
    """

    bank_dir: Path
    diffusion_dir: Path
    seconds: dict[str, float] = field(default_factory=dict)


def prepare_diffusion(
    images: torch.Tensor,
    config: DiffusionConfig,
    cache_dir: str | Path | None = None,
    device: torch.device | None = None,
    precision: str = "32-true",
) -> Path:
    """Train a DDPM on normal images, or find the one trained before with the same images and settings.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        config (DiffusionConfig): Settings of the training.
        cache_dir (str | Path | None): Folder for DDPMs and banks. ``None`` takes the user's cache folder.
        device (torch.device | None): Device to train on. ``None`` takes a GPU if there is one.
        precision (str): Precision of the Trainer; not part of the key. Defaults to ``"32-true"``.

    Returns:
        Path: Folder of the pipeline.
    """
    settings = asdict(config)
    cache_dir, device = _resolve(cache_dir, device)

    def build(folder: Path) -> None:
        devices = 1 if device.index is None else [device.index]
        train_diffusion(images, folder, config, accelerator=device.type, devices=devices, precision=precision)
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2))

    return cached_folder(cache_dir, _diffusion_name(images, config), build)


def _diffusion_name(images: torch.Tensor, config: DiffusionConfig) -> str:
    """Name of a trained DDPM in the cache."""
    return f"diffusion-{content_key(asdict(config), images)}"


def prepare_bank(
    images: NormalImages,
    bank: BankConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | Mapping[str, Any] | None = None,
    diffusion_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | None = None,
    precision: str = "32-true",
    min_images: int = 1,
) -> PreparedBank:
    """Train a DDPM on normal images and sample a bank of textures, or find both in the cache.

    Everything that needs a bank calls this function, so that equal settings and pixels share one bank.

    Args:
        images (NormalImages): Normal images.
        bank (BankConfig | Mapping[str, Any] | None): Settings of the bank. ``None`` takes the defaults.
        diffusion (DiffusionConfig | Mapping[str, Any] | None): Settings of the DDPM. ``None`` takes the defaults.
        diffusion_path (str | Path | None): Folder of a trained DDPM. ``None`` trains one. Defaults to ``None``.
        cache_dir (str | Path | None): Folder for DDPMs and banks. ``None`` takes the user's cache folder.
        device (torch.device | None): Device to train and sample on. ``None`` takes a GPU if there is one.
        precision (str): Precision of the Trainer; not part of the key. With ``"bf16-mixed"`` sampling runs the network
            in ``bfloat16``, too. Defaults to ``"32-true"``.
        min_images (int): Smallest number of images that suffices. Defects need one, a detector two.
            Defaults to ``1``.

    Returns:
        PreparedBank: Folders of both, and the time that each stage took.

    Raises:
        FileNotFoundError: If ``diffusion_path`` holds no DDPM.
        ValueError: If a setting is out of its range, or an image cannot be read.
    """
    bank, diffusion = as_config(BankConfig, bank), as_config(DiffusionConfig, diffusion)
    cache_dir, device = _resolve(cache_dir, device)
    pixels = images.load(min_images=min_images)
    start = time.perf_counter()
    is_given = diffusion_path is not None
    if diffusion_path is None:
        diffusion_path = prepare_diffusion(pixels, diffusion, cache_dir, device, precision)
    middle = time.perf_counter()
    sampling = _Sampling.of(images, bank, diffusion_path, is_given, min_images)
    lying, known = sampling.lying, sampling.known

    def build(folder: Path) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            sampled = sample_bank(sampling.pipeline.to(device), known, bank, _other_aspect(lying, known))
        if sampling.turns:
            aspect = _other_aspect(images, pixels)
            sampled = turn_bank(sampled, cast("CanonicalPose", images.pose), known, pixels, aspect)
        sampled.save(folder)
        settings = {**sampling.settings, "diffusion": str(diffusion_path)}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2))

    bank_dir = cached_folder(cache_dir, sampling.name, build)
    seconds = {"diffusion": middle - start, "bank": time.perf_counter() - middle}
    return PreparedBank(bank_dir, Path(diffusion_path), seconds)


@dataclass(frozen=True)
class _Sampling:
    """What a bank is sampled from.

    Attributes:
        pipeline (DefectPipeline): Trained DDPM, on the CPU.
        settings (dict[str, Any]): Settings of the bank.
        lying (NormalImages): Images as the DDPM knows them.
        known (torch.Tensor): Their pixels.
        turns (bool): Whether the textures are turned to the pose of the detector's images.
        name (str): Name of the bank in the cache.
    """

    pipeline: DefectPipeline
    settings: dict[str, Any]
    lying: NormalImages
    known: torch.Tensor
    turns: bool
    name: str

    @classmethod
    def of(
        cls, images: NormalImages, bank: BankConfig, diffusion_path: str | Path, is_given: bool, min_images: int
    ) -> "_Sampling":
        """Load the DDPM and find the name of its bank."""
        pixels = images.load(min_images=min_images)
        pipeline = load_pipeline(diffusion_path)
        settings = {**asdict(bank), "aspect": _other_aspect(images, pixels)}
        # A DDPM that was trained elsewhere knows parts as they lie; then its textures are turned. Its size alone does
        # not tell: one of large images has the size of its windows.
        turns = is_given and images.pose is not None and pipeline.image_size != pixels.shape[-2:]
        lying = images.as_they_lie() if turns else images
        known = lying.load(min_images=min_images) if turns else pixels
        key = content_key(settings, pixels, *((known,) if turns else ()), *pipeline.unet.state_dict().values())
        return cls(pipeline, settings, lying, known, turns, f"bank-{key}")


def find_prepared(
    images: NormalImages,
    bank: BankConfig,
    diffusion: DiffusionConfig,
    diffusion_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    min_images: int = 1,
) -> tuple[bool, bool]:
    """Whether :func:`prepare_bank` would find the DDPM and the bank, or make them.

    Args:
        images (NormalImages): As in :func:`prepare_bank`, like all others.
        bank (BankConfig): Settings of the bank.
        diffusion (DiffusionConfig): Settings of the DDPM.
        diffusion_path (str | Path | None): Folder of a trained DDPM. ``None`` trains one. Defaults to ``None``.
        cache_dir (str | Path | None): Folder for DDPMs and banks. ``None`` takes the user's cache folder.
        min_images (int): Smallest number of images that suffices. Defaults to ``1``.

    Returns:
        tuple[bool, bool]: Whether there is the DDPM, and whether there is the bank.
    """
    root, is_given = _resolve(cache_dir, None)[0], diffusion_path is not None
    folder = diffusion_path or root / _diffusion_name(images.load(min_images=min_images), diffusion)
    if not Path(folder).is_dir():
        return False, False
    return True, (root / _Sampling.of(images, bank, folder, is_given, min_images).name).is_dir()


def estimate_preparation(
    images: torch.Tensor,
    bank: BankConfig,
    diffusion: DiffusionConfig,
    device: torch.device,
    precision: str = "32-true",
) -> tuple[float, float]:
    """Estimate how long :func:`prepare_bank` takes on this machine if nothing is in the cache, from a few timed steps.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        bank (BankConfig): Settings of the bank.
        diffusion (DiffusionConfig): Settings of the DDPM.
        device (torch.device): Device to train and sample on.
        precision (str): Precision of the Trainer. Defaults to ``"32-true"``.

    Returns:
        tuple[float, float]: Seconds of training the DDPM, and of sampling the bank.
    """
    step, reverse_step = time_diffusion(images, diffusion, device, precision)
    return step * diffusion.training_steps, reverse_step * count_reverse_steps(bank)


def _other_aspect(images: NormalImages, pixels: torch.Tensor) -> float | None:
    """Width over height of what images show, ``None`` if it is that of their pixels."""
    native = images.aspect()
    return native if abs(math.log(native * pixels.shape[-2] / pixels.shape[-1])) > SAME_ASPECT else None


def _resolve(cache_dir: str | Path | None, device: torch.device | None) -> tuple[Path, torch.device]:
    """Cache folder and device, with their defaults."""
    return (
        Path(cache_dir) if cache_dir else default_cache_dir(),
        device or torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )


def prepare_generator(
    images: NormalImages | Sequence[str | Path],
    defects: DefectConfig | Mapping[str, Any] | None = None,
    bank: BankConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | Mapping[str, Any] | None = None,
    image_size: tuple[int, int] = DEFAULT_IMAGE_SIZE,
    diffusion_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | None = None,
    precision: str = "32-true",
) -> DiffusionAnomalyGenerator:
    """Make a generator of defects for normal images, with the bank of :func:`prepare_bank` if its source needs one.

    Args:
        images (NormalImages | Sequence[str | Path]): Normal images, or their files.
        defects (DefectConfig | Mapping[str, Any] | None): Settings of the defects. ``None`` takes the defaults.
        bank (BankConfig | Mapping[str, Any] | None): As in :func:`prepare_bank`.
        diffusion (DiffusionConfig | Mapping[str, Any] | None): As in :func:`prepare_bank`.
        image_size (tuple[int, int]): Height and width that image files are resized to. Defaults to 256 x 256.
        diffusion_path (str | Path | None): As in :func:`prepare_bank`.
        cache_dir (str | Path | None): As in :func:`prepare_bank`.
        device (torch.device | None): As in :func:`prepare_bank`.
        precision (str): As in :func:`prepare_bank`.

    Returns:
        DiffusionAnomalyGenerator: Generator, its bank on the CPU.

    Raises:
        ValueError: If a setting is out of its range, or an image cannot be read.
    """
    defects, bank, diffusion = (
        as_config(DefectConfig, defects),
        as_config(BankConfig, bank),
        as_config(DiffusionConfig, diffusion),
    )
    bank_dir = None
    if defects.needs_bank:
        if not isinstance(images, NormalImages):
            images = NormalImages.from_files(images, image_size)
        prepared = prepare_bank(images, bank, diffusion, diffusion_path, cache_dir, device, precision)
        bank_dir = prepared.bank_dir
    return DiffusionAnomalyGenerator(bank_dir, defects)
