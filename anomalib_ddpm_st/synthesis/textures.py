# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Textures of defects: from the bank of a DDPM, or shuffled tiles of the image itself.

Each source samples parameters first and applies them afterwards, so that a defect can be replayed.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch.nn import functional

from anomalib_ddpm_st.core.frames import fill_frames
from anomalib_ddpm_st.core.geometry import shift_and_flip, warp
from anomalib_ddpm_st.core.random_draws import log_uniform, uniform

from .texture_bank import TextureBank

TILES = 8
# Probability that a texture of the bank is not blended in place.
P_DISPLACED = 0.5
ZOOM_RANGE = (1.7, 3.0)
GREY_SPREAD = 4 / 255


@dataclass(frozen=True)
class BankTextureParameters:
    """Textures of the bank and how each is displaced; identity for those that stay in place.

    Attributes:
        indices (torch.Tensor): Textures, of shape ``(B,)``.
        shifts (torch.Tensor): Rows and columns that textures are shifted by on objects, integers of shape ``(B, 2)``.
        flips (torch.Tensor): Whether rows and columns are reversed on objects, boolean of shape ``(B, 2)``.
        scales (torch.Tensor): Scale factors on surfaces, of shape ``(B,)``.
        angles (torch.Tensor): Rotations on surfaces in degrees, of shape ``(B,)``.
    """

    indices: torch.Tensor
    shifts: torch.Tensor
    flips: torch.Tensor
    scales: torch.Tensor
    angles: torch.Tensor


@dataclass
class BankTextures:
    """Textures that a perturbed DDPM made, half of them displaced.

    On an object, displaced textures are shifted and flipped: parts of it appear where they do not belong. A surface
    looks the same everywhere, so a shift would look normal; there, textures are rotated and enlarged or shrunk.

    Attributes:
        bank (TextureBank): Bank; it moves to the device of the images.
    """

    bank: TextureBank

    def sample(self, images: torch.Tensor, generator: torch.Generator | None = None) -> BankTextureParameters:
        """Draw the parameters of a batch.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
            generator (torch.Generator | None): Source of every random draw.

        Returns:
            BankTextureParameters: Parameters of :meth:`apply`.
        """
        count, device = len(images), images.device
        self.bank = self.bank.to(device)
        displaced = uniform((count, 1), 0, 1, generator, device) < P_DISPLACED
        shifts = uniform((count, 2), 0, 1, generator, device) * torch.tensor(images.shape[-2:], device=device)
        indices = self.bank.draw(images, generator)
        flips = (uniform((count, 2), 0, 1, generator, device) < 0.5) & displaced
        factors = log_uniform((count,), *ZOOM_RANGE, generator, device)
        shrink = uniform((count,), 0, 1, generator, device) < 0.5
        scales = torch.where(shrink, 1 / factors, factors).where(displaced[:, 0], 1.0)
        angles = uniform((count,), 0, 360, generator, device) * displaced[:, 0]
        return BankTextureParameters(indices, shifts.long() * displaced, flips, scales, angles)

    def apply(
        self,
        images: torch.Tensor,
        parameters: BankTextureParameters,
        has_object: torch.Tensor,
        frames: torch.Tensor,
    ) -> torch.Tensor:
        """Make the textures of a batch.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
            parameters (BankTextureParameters): Parameters of :meth:`sample`.
            has_object (torch.Tensor): Whether an image shows an object, boolean of shape ``(B,)``.
            frames (torch.Tensor): Frames of padding around images, which the textures have, too; integers of shape
                ``(B, 4)``, see :func:`~anomalib_ddpm_st.core.frames.find_frames`.

        Returns:
            torch.Tensor: Textures of shape ``(B, 3, H, W)``, with the detail of the images that the bank is too small
            to hold.
        """
        textures = self.bank.get(parameters.indices, (images.shape[-2], images.shape[-1]))
        shifted = has_object & (parameters.shifts.bool() | parameters.flips).any(dim=1)
        if shifted.any():
            filled = fill_frames(textures[shifted], frames[shifted])
            textures[shifted] = shift_and_flip(filled, parameters.shifts[shifted], parameters.flips[shifted])
        zoomed = (parameters.scales != 1) & ~has_object
        if zoomed.any():
            filled = fill_frames(textures[zoomed], frames[zoomed])
            textures[zoomed] = warp(filled, parameters.angles[zoomed], parameters.scales[zoomed])
        return (textures + self.bank.missing_detail(images)).to(images.dtype)


class ShuffledTiles:
    """Tiles of the image itself in another order: textures that need no DDPM, the baseline of the method."""

    @staticmethod
    def sample(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw the order of the tiles.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)``.
            generator (torch.Generator | None): Source of the random draw.

        Returns:
            torch.Tensor: Permutations of shape ``(B, 64)``.
        """
        return uniform((len(images), TILES**2), 0, 1, generator, images.device).argsort(dim=1)

    @staticmethod
    def apply(images: torch.Tensor, tile_order: torch.Tensor) -> torch.Tensor:
        """Make the textures of a batch.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
            tile_order (torch.Tensor): Permutations of the ``T * T`` tiles, of shape ``(B, T * T)``.

        Returns:
            torch.Tensor: Textures of shape ``(B, 3, H, W)`` with values in [0, 1].
        """
        height, width = images.shape[-2:]
        tiles = round(tile_order.shape[1] ** 0.5)
        padded = functional.pad(images, (0, -width % tiles, 0, -height % tiles), mode="replicate")
        parts = rearrange(padded, "b c (i h) (j w) -> b (i j) c h w", i=tiles, j=tiles)
        batch = torch.arange(len(images), device=images.device)[:, None]
        shuffled = rearrange(parts[batch, tile_order], "b (i j) c h w -> b c (i h) (j w)", i=tiles)
        return shuffled[..., :height, :width]


def jitter_colours(
    images: torch.Tensor,
    textures: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
) -> torch.Tensor:
    """Change contrast and brightness of textures channel by channel; textures for grey images become grey.

    Args:
        images (torch.Tensor): Images that the textures are for, of shape ``(B, 3, H, W)`` with values in [0, 1].
        textures (torch.Tensor): Textures of shape ``(B, 3, H, W)`` with values in [0, 1].
        gain (torch.Tensor): Contrast of each channel, of shape ``(B, 3, 1, 1)``.
        offset (torch.Tensor): Brightness of each channel, of shape ``(B, 3, 1, 1)``.

    Returns:
        torch.Tensor: Textures of the same shape with values in [0, 1].
    """
    grey = is_grey(images)
    textures, gain, offset = (
        torch.where(grey, value[:, :1], value).to(images.dtype) for value in (textures, gain, offset)
    )
    return ((textures - 0.5) * gain + 0.5 + offset).clamp(0, 1)


def is_grey(images: torch.Tensor) -> torch.Tensor:
    """Find grey images: a grey-scale camera sees no coloured defects, so colour would give synthetic ones away.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Boolean of shape ``(B, 1, 1, 1)``.
    """
    spread = (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))
    return (spread < GREY_SPREAD)[:, None, None, None]
