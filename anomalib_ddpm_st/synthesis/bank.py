# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Bank of sampled defect textures."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional

from anomalib_ddpm_st.diffusion.pipeline import DefectPipeline
from anomalib_ddpm_st.diffusion.scheduler import Perturbation
from anomalib_ddpm_st.progress import progress

from .masks import random_perlin_masks, uniform

TENSORS_FILE = "textures.safetensors"
THUMBNAIL_SIZE = 16
TRAIN_TIMESTEPS = 1000
DEFAULT_STRENGTH = (0.3, 2.0)
DEFAULT_START = (200, 600)
MIDDLE_START = sum(DEFAULT_START) // 2
DEFAULT_DETAIL = (0.0, 1.0)
# Largest difference of proportions, as a logarithm, that is taken for none.
SAME_ASPECT = 0.02


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Shrink images to what pairing compares.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Tensor of shape ``(B, 3 * 16 * 16)``.
    """
    return functional.adaptive_avg_pool2d(images, THUMBNAIL_SIZE).flatten(1)


class TextureBank:
    """Perturbed samples of the DDPM, each with the normal image that it started from.

    Args:
        textures (torch.Tensor): Textures, ``uint8`` of shape ``(N, 3, H, W)``.
        sources (torch.Tensor): Index of the normal image each texture is paired with, of shape ``(N,)``, ``-1``
            for textures sampled from pure noise, which go with any image.
        source_thumbnails (torch.Tensor): Thumbnails of the normal images, of shape ``(S, 3 * 16 * 16)``.
        masks (torch.Tensor | None): Masks that in-painted textures were perturbed in, boolean of shape
            ``(N, 1, H, W)``. ``None`` for textures that were perturbed all over. Defaults to ``None``.
        aspect (torch.Tensor | None): Width over height of the normal images before they were resized to the size of
            the textures, a scalar. ``None`` for that of the textures. Defaults to ``None``.

    Raises:
        ValueError: If the bank is empty.
    """

    def __init__(
        self,
        textures: torch.Tensor,
        sources: torch.Tensor,
        source_thumbnails: torch.Tensor,
        masks: torch.Tensor | None = None,
        aspect: torch.Tensor | None = None,
    ) -> None:
        if len(textures) == 0:
            msg = "A texture bank needs at least one texture."
            raise ValueError(msg)
        self.textures = textures
        self.sources = sources
        self.source_thumbnails = source_thumbnails
        self.masks = masks
        self.aspect = aspect

    def __len__(self) -> int:
        """Number of textures."""
        return len(self.textures)

    def to(self, device: torch.device) -> "TextureBank":
        """Bank on a device.

        Args:
            device (torch.device): Device of the images that textures are drawn for.

        Returns:
            TextureBank: This bank, where it is there already, or a copy.
        """
        if self.textures.device == device:
            return self
        return TextureBank(
            self.textures.to(device),
            self.sources.to(device),
            self.source_thumbnails.to(device),
            None if self.masks is None else self.masks.to(device),
            self.aspect,
        )

    def draw(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw the index of a random texture for each image, among those that are paired with it.

        An image is paired with the textures of the normal image that it resembles most (smallest distance of
        thumbnails), so no index needs to travel with the images.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1], on the device of the bank.
            generator (torch.Generator | None): Source of the random draw.

        Returns:
            torch.Tensor: Indices of shape ``(B,)``.
        """
        distance = torch.cdist(thumbnails(images.float()), self.source_thumbnails)
        # Only normal images that have a texture can be matched.
        has_texture = torch.isin(torch.arange(distance.shape[1], device=distance.device), self.sources)
        nearest = distance.masked_fill(~has_texture, torch.inf).argmin(dim=1)
        eligible = (self.sources[None] == nearest[:, None]) | (self.sources[None] < 0)
        score = uniform(tuple(eligible.shape), 0, 1, generator, eligible.device)
        return score.masked_fill(~eligible, -1).argmax(dim=1)

    def get(self, indices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Textures by index.

        Args:
            indices (torch.Tensor): Indices of shape ``(B,)``.
            size (tuple[int, int]): Height and width to return, in pixels.

        Returns:
            torch.Tensor: Textures of shape ``(B, 3, H, W)`` with values in [0, 1], see :meth:`resize`.
        """
        return self.resize(self.textures[indices].float() / 255, size)

    def get_masks(self, indices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Masks of in-painted textures by index.

        Args:
            indices (torch.Tensor): Indices of shape ``(B,)``.
            size (tuple[int, int]): Height and width to return, in pixels.

        Returns:
            torch.Tensor: Boolean masks of shape ``(B, 1, H, W)``.
        """
        if self.masks is None:
            msg = "The textures of this bank were perturbed all over: it has no masks."
            raise ValueError(msg)
        return self.resize(self.masks[indices].float(), size, mode="nearest").bool()

    def resize(self, textures: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
        """Resize textures to images of their proportions; of images of others they cover the whole, cut at the centre.

        Args:
            textures (torch.Tensor): Textures of this bank, of shape ``(B, C, h, w)``.
            size (tuple[int, int]): Height and width to return, in pixels.
            mode (str): Interpolation, ``"bilinear"`` or ``"nearest"``. Defaults to ``"bilinear"``.

        Returns:
            torch.Tensor: Textures of shape ``(B, C, H, W)``.
        """
        (height, width), own = size, textures.shape[-2:]
        if size == tuple(own):
            return textures
        aspect = own[1] / own[0] if self.aspect is None else float(self.aspect)
        scaled = size
        if abs(math.log(width / height / aspect)) > SAME_ASPECT:
            tall = max(height, round(width / aspect))
            scaled = (tall, max(width, round(tall * aspect)))
        textures = functional.interpolate(textures, scaled, mode=mode, antialias=mode == "bilinear")
        top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
        return textures[..., top : top + height, left : left + width]

    def missing_detail(self, images: torch.Tensor) -> torch.Tensor:
        """Detail of images that textures of this bank are too small to have, so that they do not look blurred there.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)``.

        Returns:
            torch.Tensor: What images lose at the size of the textures, of the same shape, or zero if they lose nothing.
        """
        size = images.shape[-2:]
        factor = max(side / own for side, own in zip(size, self.textures.shape[-2:], strict=True))
        if factor <= 1:
            return images.new_zeros(())
        small = [max(1, round(side / factor)) for side in size]
        coarse = functional.interpolate(images, small, mode="bilinear", antialias=True)
        return images - functional.interpolate(coarse, size, mode="bilinear", antialias=True)

    def save(self, folder: str | Path) -> None:
        """Write the bank to a folder.

        Args:
            folder (str | Path): Existing folder.
        """
        tensors = {"textures": self.textures, "sources": self.sources, "source_thumbnails": self.source_thumbnails}
        optional = {"masks": self.masks, "aspect": self.aspect}
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, Path(folder) / TENSORS_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> "TextureBank":
        """Read a bank from a folder.

        Args:
            folder (str | Path): Folder that :meth:`save` wrote.

        Returns:
            TextureBank: Bank on the CPU.

        Raises:
            FileNotFoundError: If the folder holds no bank.
            ValueError: If the file in it is damaged.
        """
        path = Path(folder) / TENSORS_FILE
        if not path.exists():
            msg = f"There is no texture bank in {folder}: the file {TENSORS_FILE} is missing."
            raise FileNotFoundError(msg)
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError) as error:
            msg = f"The texture bank {path} is damaged ({error}): delete its folder and run again."
            raise ValueError(msg) from error


def check_bank_settings(
    perturbation: str,
    strength: Sequence[float],
    start: Sequence[int],
    from_noise: float = 0.0,
    detail: Sequence[float] = DEFAULT_DETAIL,
) -> None:
    """Check settings of :func:`sample_bank` before any time is spent.

    Args:
        perturbation (str): Kind of perturbation.
        strength (Sequence[float]): Range of the strength.
        start (Sequence[int]): Range of the timestep that images are noised to.
        from_noise (float): Share of textures from pure noise. Defaults to ``0.0``.
        detail (Sequence[float]): Range of the share of detail given back.

    Raises:
        ValueError: If a setting is out of its range; the message names it.
    """
    if perturbation not in get_args(Perturbation):
        msg = f"Unknown perturbation '{perturbation}': choose one of {', '.join(get_args(Perturbation))}."
        raise ValueError(msg)
    if len(strength) != 2 or not 0 <= strength[0] <= strength[1]:
        msg = f"strength must be two numbers, 0 <= low <= high, but is {list(strength)}."
        raise ValueError(msg)
    if len(start) != 2 or not 0 < start[0] <= start[1] < TRAIN_TIMESTEPS:
        msg = f"start must be two timesteps, 0 < low <= high < {TRAIN_TIMESTEPS}, but is {list(start)}."
        raise ValueError(msg)
    if not 0 <= from_noise <= 1:
        msg = f"from_noise must lie in [0, 1], but is {from_noise}."
        raise ValueError(msg)
    if len(detail) != 2 or not 0 <= detail[0] <= detail[1] <= 1:
        msg = f"detail must be two numbers, 0 <= low <= high <= 1, but is {list(detail)}."
        raise ValueError(msg)


def sample_bank(
    pipeline: DefectPipeline,
    images: torch.Tensor,
    size: int = 256,
    perturbation: Perturbation = "constant",
    strength: Sequence[float] = DEFAULT_STRENGTH,
    start: Sequence[int] = DEFAULT_START,
    from_noise: float = 0.0,
    inpaint: bool = False,
    detail: Sequence[float] = DEFAULT_DETAIL,
    num_inference_steps: int = 10,
    batch_size: int = 8,
    seed: int = 0,
    aspect: float | None = None,
) -> TextureBank:
    """Fill a bank with perturbed samples.

    A small DDPM loses fine detail, and a blurred texture is a shortcut: the detector would learn to find blur. So each
    paired start is sampled twice with the same noise, perturbed (``p``) and not (``q``), and the detail that the DDPM
    lost of the normal image ``x`` is given back in part: ``texture = p + r (x - q)``. At ``r = 1`` the texture differs
    from the normal image by the effect of the perturbation alone.

    Args:
        pipeline (DefectPipeline): Trained DDPM, on the device to sample on.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``; each gets its turn as a start.
        size (int): Number of textures. Defaults to ``256``.
        perturbation (Perturbation): Kind of perturbation. Defaults to ``"constant"``.
        strength (Sequence[float]): Range of the strength, drawn for each texture.
        start (Sequence[int]): Range of the timestep ``t0`` of paired samples, drawn for each batch.
        from_noise (float): Share of textures sampled from pure noise instead. Defaults to ``0.0``.
        inpaint (bool): Perturb paired textures within a Perlin mask alone and hold the rest to the noised normal image
            at each step; the bank keeps the masks. Defaults to ``False``.
        detail (Sequence[float]): Range of the share ``r`` of detail given back to a paired texture, drawn for each.
        num_inference_steps (int): Number of reverse steps. Defaults to ``10``.
        batch_size (int): Textures sampled at a time. Defaults to ``8``.
        seed (int): Seed of every random draw. Defaults to ``0``.
        aspect (float | None): Width over height of the images before they were resized. Defaults to ``None``, as now.

    Returns:
        TextureBank: Bank on the CPU.

    Raises:
        ValueError: If a setting is out of its range.
    """
    check_bank_settings(perturbation, strength, start, from_noise, detail)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).repeat(size // len(images) + 1)[:size]
    count_noise = round(size * from_noise)
    textures, sources, masks = [], [], []
    batches = [(True, batch) for batch in order[:count_noise].split(batch_size) if len(batch)]
    batches += [(False, batch) for batch in order[count_noise:].split(batch_size) if len(batch)]
    for noise_start, batch in progress(batches, "Stage 2 of 3, bank of defect textures"):
        t0 = int(uniform((1,), start[0], start[1] + 1, generator).item())
        normal = images[batch].float() / 255
        strengths = uniform((len(batch),), strength[0], strength[1], generator)
        sample = partial(pipeline, num_inference_steps=num_inference_steps, perturbation=perturbation)
        if noise_start:
            texture = sample(images=normal, strength=strengths, generator=generator)[0].cpu()
            if inpaint:
                masks.append(torch.ones(len(batch), 1, images.shape[-2], images.shape[-1], dtype=torch.bool))
        else:
            seeds = torch.randint(2**62, (len(batch),), generator=generator).tolist()
            mask = None
            if inpaint:
                mask = random_perlin_masks(len(batch), (images.shape[-2], images.shape[-1]), generator=generator)
                masks.append(mask)
            pair = sample(
                images=normal.repeat(2, 1, 1, 1),
                strength=torch.cat([strengths, torch.zeros_like(strengths)]),
                start=t0,
                mask=None if mask is None else mask.repeat(2, 1, 1, 1),
                generator=[torch.Generator().manual_seed(seed) for seed in [*seeds, *seeds]],
            )[0]
            texture, undisturbed = pair.cpu().chunk(2)
            share = uniform((len(batch), 1, 1, 1), detail[0], detail[1], generator)
            texture = (texture + share * (normal - undisturbed)).clamp(0, 1)
        textures.append((texture * 255).round().to(torch.uint8))
        sources.append(torch.full_like(batch, -1) if noise_start else batch)
    source_thumbnails = torch.cat([thumbnails(part.float() / 255) for part in images.split(64)])
    return TextureBank(
        torch.cat(textures),
        torch.cat(sources),
        source_thumbnails,
        torch.cat(masks) if inpaint and count_noise < size else None,
        None if aspect is None else torch.tensor(aspect),
    )
