# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Bank of sampled defect textures."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional

from anomalib_ddpm_st.core.random_draws import uniform

TENSORS_FILE = "textures.safetensors"
THUMBNAIL_SIZE = 16
# Aspect ratios whose logarithms differ by less count as equal.
SAME_ASPECT = 0.02


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Shrink images to the size at which they are compared for pairing.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Tensor of shape ``(B, 3 * 16 * 16)``.
    """
    return functional.adaptive_avg_pool2d(images, THUMBNAIL_SIZE).flatten(1)


class TextureBank:
    """Perturbed samples of the DDPM, each paired with the normal image that it started from.

    Args:
        textures (torch.Tensor): Textures, ``uint8`` of shape ``(N, 3, H, W)``.
        sources (torch.Tensor): Index of the normal image that each texture is paired with, of shape ``(N,)``.
        source_thumbnails (torch.Tensor): Thumbnails of the normal images, of shape ``(S, 3 * 16 * 16)``.
        aspect (torch.Tensor | None): Width over height of the normal images before they were resized to the size of
            the textures, a scalar. ``None`` if it is that of the textures. Defaults to ``None``.

    Raises:
        ValueError: If the bank is empty.
    """

    def __init__(
        self,
        textures: torch.Tensor,
        sources: torch.Tensor,
        source_thumbnails: torch.Tensor,
        aspect: torch.Tensor | None = None,
    ) -> None:
        if len(textures) == 0:
            msg = "A texture bank needs at least one texture."
            raise ValueError(msg)
        self.textures = textures
        self.sources = sources
        self.source_thumbnails = source_thumbnails
        self.aspect = aspect

    def __len__(self) -> int:
        """Number of textures."""
        return len(self.textures)

    def to(self, device: torch.device) -> "TextureBank":
        """Bank on a device.

        Args:
            device (torch.device): Device of the images that textures are drawn for.

        Returns:
            TextureBank: This bank if it is on that device already, or else a copy.
        """
        if self.textures.device == device:
            return self
        return TextureBank(
            self.textures.to(device),
            self.sources.to(device),
            self.source_thumbnails.to(device),
            self.aspect,
        )

    def draw(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw the index of a random texture for each image, among those paired with it.

        An image is paired with the textures of the normal image that it resembles most (smallest distance of
        thumbnails), so images need not carry an index.

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
        eligible = self.sources[None] == nearest[:, None]
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

    def resize(self, textures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resize textures to the size of images; with another aspect ratio they cover the image and are cropped.

        Args:
            textures (torch.Tensor): Textures of this bank, of shape ``(B, C, h, w)``.
            size (tuple[int, int]): Height and width to return, in pixels.

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
        textures = functional.interpolate(textures, scaled, mode="bilinear", antialias=True)
        top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
        return textures[..., top : top + height, left : left + width]

    def missing_detail(self, images: torch.Tensor) -> torch.Tensor:
        """Detail of images that the textures are too small to hold, without which they would look blurred.

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
        if self.aspect is not None:
            tensors["aspect"] = self.aspect
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
            ValueError: If the file is damaged.
        """
        path = Path(folder) / TENSORS_FILE
        if not path.exists():
            msg = f"There is no texture bank in {folder}: the file {TENSORS_FILE} is missing."
            raise FileNotFoundError(msg)
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError) as error:
            msg = f"The texture bank {path} is damaged ({error}): delete its folder and run the command again."
            raise ValueError(msg) from error
