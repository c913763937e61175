# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Diffusion pipeline that samples images with defects from a DDPM of normal images."""

import math
from functools import partial
from typing import Literal

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from .scheduler import Perturbation, PerturbedDDPMScheduler
from .unet import denoise, denoise_tiles, patchify, size_multiple, unet_patch_size, unpatchify


class DefectPipelineOutput(BaseOutput):
    """Output of :class:`DefectPipeline`.

    Attributes:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
    """

    images: torch.Tensor


class DefectPipeline(DiffusionPipeline):
    """Sample perturbed images, from pure noise or paired with a normal image.

    Saved and loaded in the folder format of diffusers (safetensors and JSON) by ``save_pretrained`` and
    ``from_pretrained``.

    Args:
        unet (UNet2DModel): Denoising network, see :func:`anomalib_ddpm_st.diffusion.build_unet`.
        scheduler (PerturbedDDPMScheduler): Scheduler with a perturbed reverse step.
        tile_size (int | None): Side in pixels of the tiles that the network sees of larger images, as in its training.
            ``None`` for whole images. Defaults to ``None``.

    Example:
        >>> import torch
        >>> from anomalib_ddpm_st.diffusion import build_unet
        >>> unet = build_unet((32, 32), block_out_channels=(8, 8))
        >>> pipeline = DefectPipeline(unet, PerturbedDDPMScheduler(prediction_type="sample"))
        >>> pipeline.set_progress_bar_config(disable=True)
        >>> normal = torch.rand(2, 3, 32, 32)
        >>> pipeline(images=normal, start=500, strength=0.2, num_inference_steps=2).images.shape
        torch.Size([2, 3, 32, 32])
    """

    unet: UNet2DModel
    scheduler: PerturbedDDPMScheduler

    def __init__(self, unet: UNet2DModel, scheduler: PerturbedDDPMScheduler, tile_size: int | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(tile_size=tile_size)

    @torch.no_grad()
    def __call__(
        self,
        images: torch.Tensor | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 20,
        perturbation: Perturbation = "constant",
        strength: float | torch.Tensor = 0.0,
        start: int | Literal["noise"] = "noise",
        mask: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DefectPipelineOutput | tuple[torch.Tensor]:
        """Sample a batch of perturbed images.

        Args:
            images (torch.Tensor | None): Normal images of shape ``(B, 3, H, W)`` with values in [0, 1] that a paired
                sample starts from. With ``start="noise"`` they only set the batch and image size.
            batch_size (int): Number of samples where no images are given. Defaults to ``1``.
            num_inference_steps (int): Number of reverse steps. Defaults to ``20``.
            perturbation (Perturbation): Kind of perturbation, see :class:`PerturbedDDPMScheduler`.
            strength (float | torch.Tensor): Strength of the perturbation, one number or shape ``(B,)``. ``0`` gives
                normal images. Defaults to ``0.0``.
            start (int | Literal["noise"]): Timestep ``t0`` that the images are noised to before sampling ("paired":
                same object, same pose), or ``"noise"``. Defaults to ``"noise"``.
            mask (torch.Tensor | None): In-painting: boolean masks of shape ``(B, 1, H, W)`` outside of which a paired
                sample is held to the noised normal image at every step. Defaults to ``None``.
            generator (torch.Generator | list[torch.Generator] | None): Source of every random draw.
            return_dict (bool): Return a :class:`DefectPipelineOutput` instead of a tuple.

        Returns:
            DefectPipelineOutput | tuple[torch.Tensor]: Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Raises:
            ValueError: If ``start`` is a timestep and no images are given, or lies outside the noise schedule.
        """
        device = self._execution_device
        patch_size = unet_patch_size(self.unet)
        size = self._image_size() if images is None else (images.shape[-2], images.shape[-1])
        last_timestep = self.scheduler.config.num_train_timesteps - 1
        if start == "noise":
            start_timestep = last_timestep
            count = batch_size if images is None else images.shape[0]
            multiple = size_multiple(self.unet)
            height, width = (math.ceil(side / multiple) * multiple // patch_size for side in size)
            shape = (count, self.unet.config.out_channels, height, width)
            sample = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        else:
            if images is None:
                msg = "Sampling from a timestep needs images to start from: give images, or start='noise'."
                raise ValueError(msg)
            if not 0 < start <= last_timestep:
                msg = f"start must be a timestep from 1 to {last_timestep}, but is {start}."
                raise ValueError(msg)
            start_timestep = start
            normal = patchify(self._pad(images.to(device, self.unet.dtype) * 2 - 1), patch_size)
            noise = randn_tensor(normal.shape, generator=generator, device=device, dtype=normal.dtype)
            sample = self.scheduler.add_noise(normal, noise, torch.tensor([start_timestep], device=device))

        inside = None
        if mask is not None and start != "noise":
            inside = patchify(self._pad(mask.to(device).float().expand(-1, 3, -1, -1)), patch_size) > 0.5
        steps = min(num_inference_steps, start_timestep)
        # Ends above t = 0: the last prediction still takes away the grain that the last perturbation left.
        timesteps = torch.linspace(start_timestep, 0, steps + 1)[:-1].round().long()
        self.scheduler.set_timesteps(timesteps=timesteps.tolist(), device=device)
        tile_size = self.config.tile_size
        predict = denoise if tile_size is None else partial(denoise_tiles, tile=tile_size // patch_size)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            model_output = predict(self.unet, sample, timestep).to(sample.dtype)
            sample = self.scheduler.step(
                model_output,
                timestep,
                sample,
                generator=generator,
                perturbation=perturbation,
                strength=strength,
            )[0]
            if inside is not None:
                previous = self.scheduler.previous_timestep(timestep)
                held = normal
                if previous >= 0:
                    held = self.scheduler.add_noise(normal, noise, torch.as_tensor([previous], device=device))
                sample = torch.where(inside, sample, held)

        result = unpatchify(sample, patch_size)[..., : size[0], : size[1]]
        result = (result / 2 + 0.5).clamp(0, 1).float()
        return DefectPipelineOutput(images=result) if return_dict else (result,)

    def _image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the network was trained on."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        patch_size = unet_patch_size(self.unet)
        return height * patch_size, width * patch_size

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        """Pad images of shape ``(B, 3, H, W)`` at the right and bottom to a size that the network accepts."""
        multiple = size_multiple(self.unet)
        height, width = images.shape[-2:]
        return functional.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")
