# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Training of the DDPM on normal images."""

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.nn import functional

from anomalib_ddpm_st.core.frames import fill_frames, find_frames, restore_frames
from anomalib_ddpm_st.core.geometry import random_affine
from anomalib_ddpm_st.core.optimization import allow_other_length, one_cycle_adamw
from anomalib_ddpm_st.core.random_state import random_state, set_random_state

from .config import BLOCK_OUT_CHANNELS
from .pipeline import DefectPipeline
from .scheduler import PerturbedDDPMScheduler
from .unet import PATCH_SIZE, build_unet, denoise, patchify, position_encoding

MAX_SNR_WEIGHT = 5
# Fraction of the schedule in which the learning rate rises.
WARM_UP = 0.05
# Augmentation of few images.
FEW_P_WINDOW = 0.5
FEW_ROTATION = 5.0
FEW_SCALE = 0.1
FEW_SHIFT = 0.05


class DiffusionModule(pl.LightningModule):
    r"""LightningModule that trains the denoising network with the DDPM objective.

    The network predicts the clean sample :math:`x_0` from :math:`x_t`. The squared error is weighted by the
    signal-to-noise ratio of the step, clamped to [1, 5]: below one the coarse shape would get no weight, above five
    the almost noise-free steps would get all of it (Salimans & Ho, 2022; Hang et al., 2023).

    Args:
        image_size (tuple[int, int]): Height and width of the images in pixels.
        patch_size (int): Side of a patch that is folded into channels. Defaults to ``4``.
        block_out_channels (tuple[int, ...]): Number of channels at each resolution level of the UNet.
        learning_rate (float): Peak learning rate of AdamW. Defaults to ``1e-3``.
        training_steps (int): Number of optimiser steps of the schedule. Defaults to ``1000``.
        ema_decay (float): Upper bound of the decay of the averaged weights. Defaults to ``0.999``.
        few_images (bool): Augment few images: shift, rotate and scale them slightly, and show the network only a
            quarter of the image, with its position, at half the steps. Defaults to ``False``.
        window_size (int | None): Side in pixels of the windows of large images that the network is shown, with their
            position. ``None`` for whole images. Defaults to ``None``.

    Example:
        >>> module = DiffusionModule(image_size=(32, 32), block_out_channels=(8, 8))
        >>> pipeline = module.pipeline()
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int = PATCH_SIZE,
        block_out_channels: tuple[int, ...] = BLOCK_OUT_CHANNELS,
        learning_rate: float = 1e-3,
        training_steps: int = 1000,
        ema_decay: float = 0.999,
        few_images: bool = False,
        window_size: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.patch_size = patch_size
        self.learning_rate = learning_rate
        self.training_steps = training_steps
        self.few_images = few_images
        self.window_size = window_size
        self.unet = build_unet(image_size, patch_size, block_out_channels)
        self.noise_scheduler = PerturbedDDPMScheduler(prediction_type="sample")
        self._random_state: dict[str, Any] | None = None
        self.ema = EMAModel(self.unet.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75)

    def pipeline(self) -> DefectPipeline:
        """Sampling pipeline with the averaged weights.

        Returns:
            DefectPipeline: Pipeline on the CPU, in evaluation mode, independent of this module.
        """
        unet = copy.deepcopy(self.unet).cpu()
        self.ema.copy_to(unet.parameters())
        pipeline = DefectPipeline(unet.eval(), self.noise_scheduler, self.window_size)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of one batch.

        Args:
            batch (list[torch.Tensor]): One tensor of images, ``uint8`` of shape ``(B, 3, H, W)``.
            batch_idx (int): Index of the batch (unused).

        Returns:
            torch.Tensor: Scalar loss.
        """
        del batch_idx
        loss = self.loss(batch[0])
        self.log("train_loss", loss)
        return loss

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Weighted squared error of the predicted images at random steps.

        Args:
            images (torch.Tensor): Images, ``uint8`` of shape ``(B, 3, H, W)``.

        Returns:
            torch.Tensor: Scalar loss.
        """
        images = images.float() / 255
        if self.few_images:
            frames = find_frames(images)
            moved = random_affine(fill_frames(images, frames), FEW_ROTATION, FEW_SCALE, FEW_SHIFT).clamp(0, 1)
            images = restore_frames(moved, images, frames)
        sample = self._to_sample(images)
        position = position_encoding(sample.shape[-2], sample.shape[-1], sample.device)
        if self.window_size is not None:
            side = self.window_size // self.patch_size
            sample, position = self._window((side, side), sample, position)
        elif self.few_images and torch.rand(()) < FEW_P_WINDOW:
            sample, position = self._window((sample.shape[-2] // 2, sample.shape[-1] // 2), sample, position)
        noise = torch.randn_like(sample)
        timesteps = torch.randint(len(self.noise_scheduler), (sample.shape[0],), device=sample.device)
        noisy = self.noise_scheduler.add_noise(sample, noise, timesteps)
        prediction = denoise(self.unet, noisy, timesteps, position)
        alphas_cumprod = self.noise_scheduler.alphas_cumprod.to(sample.device)[timesteps]
        weight = (alphas_cumprod / (1 - alphas_cumprod)).clamp(1, MAX_SNR_WEIGHT)
        error = functional.mse_loss(prediction.float(), sample, reduction="none").mean(dim=(1, 2, 3))
        return (weight * error).mean()

    def _to_sample(self, images: torch.Tensor) -> torch.Tensor:
        """Scale images to [-1, 1], pad them to the size of the network and fold patches into channels."""
        height, width = (side * self.patch_size for side in self.unet.config.sample_size)
        padding = (0, width - images.shape[-1], 0, height - images.shape[-2])
        return patchify(functional.pad(images * 2 - 1, padding, mode="replicate"), self.patch_size)

    def _window(self, window: tuple[int, int], *parts: torch.Tensor) -> list[torch.Tensor]:
        """Cut the same window out of tensors of shape ``(B, C, h, w)``, enlarged to a size that the network accepts."""
        size = parts[0].shape[-2:]
        multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        height, width = (
            min(side, max(multiple, cut // multiple * multiple)) for side, cut in zip(size, window, strict=True)
        )
        top, left = (int(torch.randint(side - cut + 1, ())) for side, cut in zip(size, (height, width), strict=True))
        return [part[..., top : top + height, left : left + width] for part in parts]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a one-cycle schedule over ``training_steps``.

        Returns:
            OptimizerLRSchedulerConfig: Optimiser and scheduler, as Lightning takes them.
        """
        return one_cycle_adamw(self.unet.parameters(), self.learning_rate, self.training_steps, warm_up=WARM_UP)

    def on_train_start(self) -> None:
        """Move the averaged weights to the device of the network; continue with the random state of a checkpoint."""
        self.ema.to(self.device)
        if self._random_state is not None:
            set_random_state(self._random_state)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Update the averaged weights, too; ``on_train_batch_end`` comes after a checkpoint of the step."""
        super().optimizer_step(*args, **kwargs)
        self.ema.step(self.unet.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the averaged weights and the random state to the checkpoint."""
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["random_state"] = random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the averaged weights and the random state from the checkpoint; the length may be another."""
        self.ema.load_state_dict(checkpoint["ema"])
        self._random_state = checkpoint.get("random_state")
        allow_other_length(checkpoint)
