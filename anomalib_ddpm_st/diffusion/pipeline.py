# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Diffusion pipeline that samples images with defects from a DDPM of normal images."""

import math
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from anomalib_ddpm_st.core.config import check_integer

from .scheduler import PerturbedDDPMScheduler
from .tiling import denoise_tiles
from .unet import denoise, patchify, size_multiple, unet_patch_size, unpatchify


class DefectPipelineOutput(BaseOutput):
    """Output of :class:`DefectPipeline`.

    Attributes:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
    """

    images: torch.Tensor


class DefectPipeline(DiffusionPipeline):
    """Samples perturbed images, from pure noise or paired with normal images.

    Saved and loaded in the folder format of diffusers (safetensors and JSON) by ``save_pretrained`` and
    ``from_pretrained``.

    Args:
        unet (UNet2DModel): Denoising network, see ``anomalib_ddpm_st.diffusion.build_unet``.
        scheduler (PerturbedDDPMScheduler): Scheduler with a perturbed reverse step.
        tile_size (int | None): Side in pixels of the tiles in which the network sees images, as in its training.
            ``None`` for whole images. Defaults to ``None``.

    Example:
        >>> import torch
        >>> from anomalib_ddpm_st.diffusion import build_unet
        >>> unet = build_unet((32, 32), block_out_channels=(8, 8))
        >>> pipeline = DefectPipeline(unet, PerturbedDDPMScheduler(prediction_type="sample"))
        >>> pipeline.set_progress_bar_config(disable=True)
        >>> normal = torch.rand(2, 3, 32, 32)
        >>> pipeline(images=normal, start_timestep=500, delta=0.2, num_inference_steps=2).images.shape
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
        delta: float | torch.Tensor = 0.0,
        start_timestep: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DefectPipelineOutput | tuple[torch.Tensor]:
        """Sample a batch of perturbed images.

        Args:
            images (torch.Tensor | None): Normal images of shape ``(B, 3, H, W)`` with values in [0, 1] that paired
                samples start from. Samples from pure noise take only the number and size of images from them.
            batch_size (int): Number of samples if no images are given. Defaults to ``1``.
            num_inference_steps (int): Number of reverse steps. Defaults to ``20``.
            delta (float | torch.Tensor): Strength of the perturbation, see :class:`PerturbedDDPMScheduler`; one
                number or shape ``(B,)``. ``0`` gives normal images. Defaults to ``0.0``.
            start_timestep (int | None): Timestep ``t0`` that the images are noised to before sampling ("paired": same
                object, same pose). ``None`` samples from pure noise. Defaults to ``None``.
            generator (torch.Generator | list[torch.Generator] | None): Source of every random draw.
            return_dict (bool): Return a :class:`DefectPipelineOutput` instead of a tuple.

        Returns:
            DefectPipelineOutput | tuple[torch.Tensor]: Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Raises:
            ValueError: If ``start_timestep`` is given without images, or lies outside the noise schedule.
        """
        size = self.image_size if images is None else (images.shape[-2], images.shape[-1])
        last_timestep = self.scheduler.config.num_train_timesteps - 1
        if start_timestep is None:
            start_timestep = last_timestep
            sample = self._pure_noise(batch_size if images is None else images.shape[0], size, generator)
        else:
            if images is None:
                msg = "start_timestep needs images to start from: give images, or leave start_timestep out."
                raise ValueError(msg)
            check_integer("start_timestep", start_timestep, 1, last_timestep)
            sample = self._noised(images, start_timestep, generator)

        steps = min(num_inference_steps, start_timestep)
        # Ends above t = 0: the last prediction removes the grain that the last perturbation left.
        timesteps = torch.linspace(start_timestep, 0, steps + 1)[:-1].round().long()
        self.scheduler.set_timesteps(timesteps=timesteps.tolist(), device=self._execution_device)
        patch_size, tile_size = unet_patch_size(self.unet), self.config.tile_size
        predict = denoise if tile_size is None else partial(denoise_tiles, tile=tile_size // patch_size)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            model_output = predict(self.unet, sample, timestep).to(sample.dtype)
            sample = self.scheduler.step(model_output, timestep, sample, generator=generator, delta=delta)[0]

        result = unpatchify(sample, patch_size)[..., : size[0], : size[1]]
        result = (result / 2 + 0.5).clamp(0, 1).float()
        return DefectPipelineOutput(images=result) if return_dict else (result,)

    def _pure_noise(
        self,
        count: int,
        size: tuple[int, int],
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """Patchified noise for images of a size in pixels, padded to a size that the network accepts."""
        multiple = size_multiple(self.unet)
        height, width = (math.ceil(side / multiple) * multiple // unet_patch_size(self.unet) for side in size)
        shape = (count, self.unet.config.out_channels, height, width)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)

    def _noised(
        self,
        images: torch.Tensor,
        timestep: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """Patchified images of shape ``(B, 3, H, W)``, padded and noised to a timestep."""
        device = self._execution_device
        normal = patchify(self._pad(images.to(device, self.unet.dtype) * 2 - 1), unet_patch_size(self.unet))
        noise = randn_tensor(normal.shape, generator=generator, device=device, dtype=normal.dtype)
        return self.scheduler.add_noise(normal, noise, torch.tensor([timestep], device=device))

    @property
    def image_size(self) -> tuple[int, int]:
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


def load_pipeline(folder: str | Path) -> DefectPipeline:
    """Load a trained DDPM from a local folder.

    Args:
        folder (str | Path): Folder that ``DefectPipeline.save_pretrained`` wrote.

    Returns:
        DefectPipeline: Pipeline on the CPU, without a progress bar and with its weights in ``channels_last``.
        ``load_pipeline(folder).unet.compile()`` compiles the network in place.

    Raises:
        FileNotFoundError: If the folder holds no pipeline.
        ValueError: If the files in it cannot be read.
    """
    if not (Path(folder) / "model_index.json").is_file():
        msg = f"There is no trained DDPM in {folder}: train one with 'anomalib-ddpm-st diffusion'."
        raise FileNotFoundError(msg)
    try:
        pipeline = DefectPipeline.from_pretrained(str(folder), local_files_only=True)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        msg = f"The DDPM in {folder} cannot be read ({error}): delete the folder and train it again."
        raise ValueError(msg) from error
    pipeline.set_progress_bar_config(disable=True)
    # Sampling on a CPU is a seventh faster; training is not.
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline
