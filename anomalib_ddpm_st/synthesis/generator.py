# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Synthetic anomaly generator: blends textures of defects into normal images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from einops import rearrange
from torch.nn import functional
from torchvision.transforms import v2

from .bank import TextureBank
from .masks import changed_pixels, close_holes, foreground_mask, random_perlin_masks, uniform

Foreground = Literal["auto", "off"]
TILES = 8


@dataclass(frozen=True)
class AnomalyParameters:
    """Random choices of one call, enough to replay it.

    Attributes:
        anomalous (torch.Tensor): Which images get a defect, boolean of shape ``(B, 1, 1, 1)``.
        perlin_masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        opacity (torch.Tensor): Opacity ``beta`` of the texture, of shape ``(B, 1, 1, 1)``.
        texture_indices (torch.Tensor | None): Textures of the bank, of shape ``(B,)``.
        shifts (torch.Tensor | None): Rows and columns that textures of the bank are moved by, of shape ``(B, 2)``.
        flips (torch.Tensor | None): Whether rows and columns of these are reversed, boolean of shape ``(B, 2)``.
        tile_order (torch.Tensor | None): Order of the tiles of a self-texture, of shape ``(B, 64)``.
        gain (torch.Tensor | None): Contrast of each channel of a self-texture, of shape ``(B, 3, 1, 1)``.
        offset (torch.Tensor | None): Brightness of each channel of a self-texture, of shape ``(B, 3, 1, 1)``.
    """

    anomalous: torch.Tensor
    perlin_masks: torch.Tensor
    opacity: torch.Tensor
    texture_indices: torch.Tensor | None = None
    shifts: torch.Tensor | None = None
    flips: torch.Tensor | None = None
    tile_order: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    offset: torch.Tensor | None = None


def self_texture(
    images: torch.Tensor,
    tile_order: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
) -> torch.Tensor:
    """Make a texture of the image itself: tiles in another order, with other contrast and brightness.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        tile_order (torch.Tensor): Permutations of the ``T * T`` tiles, of shape ``(B, T * T)``.
        gain (torch.Tensor): Contrast of each channel, of shape ``(B, 3, 1, 1)``.
        offset (torch.Tensor): Brightness of each channel, of shape ``(B, 3, 1, 1)``.

    Returns:
        torch.Tensor: Textures of shape ``(B, 3, H, W)`` with values in [0, 1].
    """
    height, width = images.shape[-2:]
    tiles = round(tile_order.shape[1] ** 0.5)
    padded = functional.pad(images, (0, -width % tiles, 0, -height % tiles), mode="replicate")
    parts = rearrange(padded, "b c (i h) (j w) -> b (i j) c h w", i=tiles, j=tiles)
    batch = torch.arange(len(images), device=images.device)[:, None]
    shuffled = rearrange(parts[batch, tile_order], "b (i j) c h w -> b c (i h) (j w)", i=tiles)
    return ((shuffled[..., :height, :width] - 0.5) * gain + 0.5 + offset).clamp(0, 1)


def displace(textures: torch.Tensor, shifts: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Move textures by whole pixels, what leaves at one side enters at the other, and reverse their axes.

    Args:
        textures (torch.Tensor): Textures of shape ``(B, C, H, W)``.
        shifts (torch.Tensor): Rows and columns to move by, integers of shape ``(B, 2)``.
        flips (torch.Tensor): Whether rows and columns are reversed, boolean of shape ``(B, 2)``.

    Returns:
        torch.Tensor: Textures of the same shape.
    """
    indices = []
    for axis, length in enumerate(textures.shape[-2:]):
        index = (torch.arange(length, device=textures.device)[None] - shifts[:, axis, None]) % length
        indices.append(torch.where(flips[:, axis, None], length - 1 - index, index))
    batch = torch.arange(len(textures), device=textures.device)[:, None, None]
    # Indexing around the slice puts the channels last.
    return rearrange(textures[batch, :, indices[0][:, :, None], indices[1][:, None, :]], "b h w c -> b c h w")


class DiffusionAnomalyGenerator(v2.Transform):
    """Blend sampled defect textures into normal images and return the mask of what changed.

    Called like anomalib's ``PerlinAnomalyGenerator``. The mask is a Perlin mask, within the foreground, of the pixels
    that the blend truly changed; outside of it the image stays as it was, bit for bit:
    ``y = x (1 - m) + m ((1 - beta) x + beta texture)``.

    Args:
        bank (TextureBank | str | Path | None): Textures sampled from the perturbed DDPM, or the folder they were
            saved in. ``None`` takes tiles of the image itself in another order, the cheap control of the method.
            Defaults to ``None``.
        probability (float): Share of images that get a defect; the rest stays clean. Defaults to ``0.5``.
        blend_factor (float | Sequence[float]): Opacity ``beta`` or its range. Defaults to ``(0.5, 1.0)``.
        displacement (float): Share of textures of the bank that are moved and flipped at random instead of blended in
            place: parts of the object appear where they do not belong. Only where ``foreground`` finds an object: a
            surface that is alike everywhere would look normal. Defaults to ``0.5``.
        rotation (float): Largest rotation of the Perlin masks to either side, in degrees. Defaults to ``90.0``.
        foreground (Foreground): ``"auto"`` keeps defects on an object that lies on a plain background and leaves
            textures alone; ``"off"`` puts them anywhere. Defaults to ``"auto"``.
        change_threshold (float): Smallest change of a pixel that counts, in units of images in [0, 1].
            Defaults to ``0.04``.
        generator (torch.Generator | None): Source of every random draw. Defaults to the global one.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> transform = DiffusionAnomalyGenerator(probability=1.0)
        >>> augmented, mask = transform(torch.rand(4, 3, 64, 64))
        >>> augmented.shape, mask.shape
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 1, 64, 64]))
        >>> augmented, mask = transform(torch.rand(3, 64, 64))
        >>> augmented.shape, mask.shape
        (torch.Size([3, 64, 64]), torch.Size([1, 64, 64]))
    """

    def __init__(
        self,
        bank: TextureBank | str | Path | None = None,
        probability: float = 0.5,
        blend_factor: float | Sequence[float] = (0.5, 1.0),
        displacement: float = 0.5,
        rotation: float = 90.0,
        foreground: Foreground = "auto",
        change_threshold: float = 0.04,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("probability", probability), ("displacement", displacement)):
            if not 0 <= share <= 1:
                msg = f"{name} must lie in [0, 1], but is {share}."
                raise ValueError(msg)
        if isinstance(blend_factor, float | int):
            blend_factor = (blend_factor, blend_factor)
        if len(blend_factor) != 2 or not 0 < blend_factor[0] <= blend_factor[1] <= 1:
            msg = f"blend_factor must be two numbers, 0 < low <= high <= 1, but is {tuple(blend_factor)}."
            raise ValueError(msg)
        if foreground not in get_args(Foreground):
            msg = f"Unknown foreground '{foreground}': choose one of {', '.join(get_args(Foreground))}."
            raise ValueError(msg)
        self.bank = TextureBank.load(bank) if isinstance(bank, str | Path) else bank
        self.probability = probability
        self.blend_factor = (float(blend_factor[0]), float(blend_factor[1]))
        self.displacement = displacement
        self.rotation = rotation
        self.foreground = foreground
        self.change_threshold = change_threshold
        self.generator = generator

    def sample_parameters(self, images: torch.Tensor) -> AnomalyParameters:
        """Make every random choice for a batch.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Returns:
            AnomalyParameters: Choices that :meth:`apply_parameters` takes.
        """
        count, device, generator = len(images), images.device, self.generator
        anomalous = uniform((count, 1, 1, 1), 0, 1, generator, device) < self.probability
        size = (images.shape[-2], images.shape[-1])
        perlin_masks = random_perlin_masks(count, size, self.rotation, generator, device)
        opacity = uniform((count, 1, 1, 1), *self.blend_factor, generator, device)
        if self.bank is not None:
            self.bank = self.bank.to(device)
            displaced = uniform((count, 1), 0, 1, generator, device) < self.displacement
            shifts = uniform((count, 2), 0, 1, generator, device) * torch.tensor(size, device=device)
            return AnomalyParameters(
                anomalous,
                perlin_masks,
                opacity,
                texture_indices=self.bank.draw(images, generator),
                shifts=shifts.long() * displaced,
                flips=(uniform((count, 2), 0, 1, generator, device) < 0.5) & displaced,
            )
        return AnomalyParameters(
            anomalous,
            perlin_masks,
            opacity,
            tile_order=uniform((count, TILES**2), 0, 1, generator, device).argsort(dim=1),
            gain=uniform((count, 3, 1, 1), 0.5, 1.5, generator, device),
            offset=uniform((count, 3, 1, 1), -0.2, 0.2, generator, device),
        )

    def apply_parameters(
        self,
        images: torch.Tensor,
        parameters: AnomalyParameters,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Blend textures into a batch by choices made before.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
            parameters (AnomalyParameters): Choices of :meth:`sample_parameters`.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Augmented images of shape ``(B, 3, H, W)`` and masks of shape
            ``(B, 1, H, W)`` with values 0 and 1.
        """
        masks = parameters.perlin_masks & parameters.anomalous
        has_object = torch.zeros(len(images), 1, dtype=torch.bool, device=images.device)
        if self.foreground == "auto":
            foreground = foreground_mask(images)
            has_object = ~foreground.flatten(1).all(dim=1, keepdim=True)
            masks &= foreground
        if parameters.texture_indices is not None and self.bank is not None:
            textures = self.bank.get(parameters.texture_indices, (images.shape[-2], images.shape[-1]))
            if parameters.shifts is not None and parameters.flips is not None:
                # A surface that is alike everywhere looks normal when it is moved: marking it would be wrong.
                textures = displace(textures, parameters.shifts * has_object, parameters.flips & has_object)
        else:
            textures = self_texture(
                images,
                cast("torch.Tensor", parameters.tile_order),
                cast("torch.Tensor", parameters.gain),
                cast("torch.Tensor", parameters.offset),
            )
        blended = torch.lerp(images, textures.to(images.dtype), parameters.opacity.to(images.dtype))
        masks = close_holes(masks & changed_pixels(images, blended, self.change_threshold))
        return torch.where(masks, blended, images), masks.to(images.dtype)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make defects.

        Args:
            image (torch.Tensor): Image of shape ``(3, H, W)`` or batch of shape ``(B, 3, H, W)``, values in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Augmented image or batch, of the same shape, and mask of shape
            ``(1, H, W)`` or ``(B, 1, H, W)`` with values 0 and 1.

        Raises:
            ValueError: If the shape or the range of values is not as described.
        """
        if image.ndim not in {3, 4} or image.shape[-3] != 3:
            msg = f"Expected an image of shape (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}."
            raise ValueError(msg)
        if not (image.min() >= 0 and image.max() <= 1):
            msg = (
                "Images must have values in [0, 1], but these reach from "
                f"{image.min().item():.2f} to {image.max().item():.2f}: make defects before Normalize."
            )
            raise ValueError(msg)
        images = image if image.ndim == 4 else image.unsqueeze(0)
        augmented, masks = self.apply_parameters(images, self.sample_parameters(images))
        return (augmented, masks) if image.ndim == 4 else (augmented[0], masks[0])
