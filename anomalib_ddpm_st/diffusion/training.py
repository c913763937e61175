# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Training of the DDPM from images to a saved pipeline."""

import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from anomalib_ddpm_st.core.config import as_config
from anomalib_ddpm_st.core.interruption import StopOnSignal
from anomalib_ddpm_st.core.progress import StageProgressBar
from anomalib_ddpm_st.core.timing import mixed_precision, seconds_per_call
from anomalib_ddpm_st.core.training_loader import ResumableSampler

from .config import DiffusionConfig
from .lightning_model import DiffusionModule
from .pipeline import DefectPipeline

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "training.ckpt"
STEPS_PER_EPOCH = 100
# This many images need no augmentation.
ENOUGH_IMAGES = 20
# Larger images are learned, and sampled, in windows.
MAX_WHOLE_SIZE = 512
WINDOW_SIZE = 256
# Number of images that the speed of sampling is measured with.
SAMPLED_IMAGES = 4


def train_diffusion(
    images: torch.Tensor,
    output_dir: str | Path,
    config: DiffusionConfig | Mapping[str, Any] | None = None,
    **trainer_arguments: Any,  # noqa: ANN401
) -> DefectPipeline:
    """Train a DDPM on normal images and save it in the folder format of diffusers.

    Images with a side above 512 pixels are learned in windows of 256 pixels and sampled in tiles of that size, so that
    the memory of the network does not grow with the image. An interrupted training leaves its checkpoint in
    ``output_dir`` and resumes from it when called again. The global random state of the caller is left as it was.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        output_dir (str | Path): Folder for the checkpoint during training and the pipeline afterwards.
        config (DiffusionConfig | Mapping[str, Any] | None): Settings. ``None`` takes the defaults.
            Defaults to ``None``.
        **trainer_arguments: Arguments of ``lightning.pytorch.Trainer`` such as accelerator, devices or precision.

    Returns:
        DefectPipeline: Trained pipeline with averaged weights.

    Raises:
        KeyboardInterrupt: If training was interrupted; the checkpoint stays.
        ValueError: If a setting is out of its range.
    """
    config = as_config(DiffusionConfig, config)
    output_dir = Path(output_dir)
    checkpoint = output_dir / CHECKPOINT_NAME
    sampler = ResumableSampler(images, STEPS_PER_EPOCH * config.batch_size)
    dataloader = DataLoader(
        TensorDataset(images),
        batch_size=config.batch_size,
        sampler=sampler,
        # Starting an epoch draws a number; a resumed training does so before it has its random state.
        generator=torch.Generator(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        module = _make_module(images, config)
        stop = SaveOnSignal(checkpoint, sampler)
        trainer = _make_trainer(checkpoint, config.training_steps, stop, **trainer_arguments)
        _fit(trainer, module, dataloader, checkpoint)
    pipeline = module.cpu().pipeline()
    if trainer.is_global_zero:
        pipeline.save_pretrained(output_dir)
        checkpoint.unlink(missing_ok=True)
    return pipeline


def time_diffusion(
    images: torch.Tensor,
    config: DiffusionConfig,
    device: torch.device,
    precision: str = "32-true",
) -> tuple[float, float]:
    """Measure on this machine how long a step of training and of sampling takes, with a network of the same size.

    Args:
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        config (DiffusionConfig): Settings.
        device (torch.device): Device to train on.
        precision (str): Precision of the Trainer. Defaults to ``"32-true"``.

    Returns:
        tuple[float, float]: Seconds of a training step, and of a reverse step of one image.
    """
    with torch.random.fork_rng():
        module = _make_module(images, config).to(device)
    batch = images[:1].expand(config.batch_size, -1, -1, -1).to(device)
    sampled = min(SAMPLED_IMAGES, config.batch_size)
    normal = batch[:sampled].float() / 255

    def train() -> None:
        with mixed_precision(device, precision):
            loss = module.loss(batch)
        loss.backward()

    training = seconds_per_call(train, device)
    pipeline = module.pipeline().to(device)

    def sample() -> None:
        # Sampling takes no other mixed precision.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            pipeline(images=normal, num_inference_steps=1, start_timestep=1)

    return training, seconds_per_call(sample, device) / sampled


def _make_module(images: torch.Tensor, config: DiffusionConfig) -> DiffusionModule:
    """Untrained DDPM for images, ``uint8`` of shape ``(N, 3, H, W)``."""
    return DiffusionModule(
        image_size=(images.shape[-2], images.shape[-1]),
        block_out_channels=config.block_out_channels,
        learning_rate=config.learning_rate,
        training_steps=config.training_steps,
        few_images=len(images) < ENOUGH_IMAGES,
        window_size=WINDOW_SIZE if max(images.shape[-2:]) > MAX_WHOLE_SIZE else None,
    )


class SaveOnSignal(StopOnSignal):
    """Saves a checkpoint when a signal ends the training; all checkpoints hold the position in the data.

    Args:
        checkpoint (Path): File.
        sampler (ResumableSampler): Sampler of the images.
    """

    def __init__(self, checkpoint: Path, sampler: ResumableSampler) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.sampler = sampler

    def state_dict(self) -> dict[str, int]:
        """State of the sampler."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Set the state of the sampler."""
        self.sampler.load_state_dict(state_dict)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a signal."""
        del pl_module
        self.give_back_signals()
        if self.signal_number is not None:
            trainer.save_checkpoint(self.checkpoint)


def _make_trainer(
    checkpoint: Path,
    training_steps: int,
    stop: SaveOnSignal,
    **trainer_arguments: Any,  # noqa: ANN401
) -> Trainer:
    """Trainer that saves its checkpoint every 100 steps."""
    return Trainer(
        max_steps=training_steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=checkpoint.parent,
        callbacks=[
            StageProgressBar("Stage 1 of 3, DDPM of normal images", training_steps),
            stop,
            ModelCheckpoint(
                dirpath=checkpoint.parent,
                filename=checkpoint.stem,
                every_n_train_steps=STEPS_PER_EPOCH,
                enable_version_counter=False,
            ),
        ],
        **trainer_arguments,
    )


def _fit(trainer: Trainer, module: DiffusionModule, dataloader: DataLoader, checkpoint: Path) -> None:
    """Train to the end of the schedule, from the checkpoint if there is one."""
    if checkpoint.exists():
        logger.info("Resuming the DDPM training from %s", checkpoint)
    interrupted = f"The DDPM training stopped at step {{}} of {module.training_steps}; run the command again to resume."
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, dataloader, ckpt_path=checkpoint if checkpoint.exists() else None)
    except SystemExit as interruption:
        # Lightning exits on Ctrl-C and leaves the signal ignored.
        raise KeyboardInterrupt(interrupted.format(trainer.global_step)) from interruption
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    if trainer.global_step < module.training_steps:
        raise KeyboardInterrupt(interrupted.format(trainer.global_step))
