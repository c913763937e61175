# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Synthetic anomaly generator: blends textures of defects into normal images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from anomalib_ddpm_st.core.config import as_config
from anomalib_ddpm_st.core.frames import fill_frames, find_frames
from anomalib_ddpm_st.core.images import OVERSHOOT
from anomalib_ddpm_st.core.random_draws import log_uniform, uniform

from .blending import blend, changed_mask
from .config import DefectConfig
from .foreground import find_foreground
from .masks import SOFTNESS_RANGE, Windows, limit_masks, random_windows, soften
from .parts import PartParameters, change_parts, random_parts
from .perlin import random_perlin_masks
from .texture_bank import TextureBank
from .textures import BankTextureParameters, BankTextures, ShuffledTiles, jitter_colours

# Probability that contrast and brightness of a texture of the bank are changed, as those of shuffled tiles always are.
P_JITTERED = 0.5
GAIN_RANGE = (0.5, 1.5)
OFFSET_RANGE = (-0.2, 0.2)
# Probability that a texture comes from the bank.
P_BANK = {"diffusion": 1.0, "mixture": 0.5, "self_texture": 0.0}
MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class AnomalyParameters:
    """Random choices of one call, enough to replay it.

    Attributes:
        anomalous (torch.Tensor): Which images get a defect, boolean of shape ``(B, 1, 1, 1)``.
        perlin_masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        windows (Windows): Windows that masks are limited to.
        softness (torch.Tensor): Blur of the edges of masks as a fraction of the shorter side, of shape ``(B,)``.
        opacity (torch.Tensor): Opacity ``beta`` of the texture, of shape ``(B, 1, 1, 1)``.
        contrast (torch.Tensor): Smallest peak change of the texture, in units of the surface's own contrast, of shape
            ``(B, 1, 1, 1)``.
        from_bank (torch.Tensor): Whether the texture comes from the bank, boolean of shape ``(B, 1, 1, 1)``.
        gain (torch.Tensor): Contrast of each channel of the texture, of shape ``(B, 3, 1, 1)``.
        offset (torch.Tensor): Brightness of each channel of the texture, of shape ``(B, 3, 1, 1)``.
        bank_textures (BankTextureParameters | None): Textures of the bank. ``None`` if none are used.
        tile_order (torch.Tensor | None): Order of the shuffled tiles, of shape ``(B, 64)``. ``None`` if none are used.
        parts (PartParameters | None): Parts that are displaced, turned or missing. ``None`` if there are none.
    """

    anomalous: torch.Tensor
    perlin_masks: torch.Tensor
    windows: Windows
    softness: torch.Tensor
    opacity: torch.Tensor
    contrast: torch.Tensor
    from_bank: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor
    bank_textures: BankTextureParameters | None = None
    tile_order: torch.Tensor | None = None
    parts: PartParameters | None = None

    def select(self, chosen: torch.Tensor) -> "AnomalyParameters":
        """Choices for some images of the batch.

        Args:
            chosen (torch.Tensor): Indices, or boolean of shape ``(B,)``.

        Returns:
            AnomalyParameters: Their choices.
        """
        return _select(self, chosen)


def _select(value: Any, chosen: torch.Tensor) -> Any:  # noqa: ANN401
    """Rows of every tensor in a dataclass."""
    if is_dataclass(value):
        parts = {field.name: _select(getattr(value, field.name), chosen) for field in fields(value)}
        return replace(value, **parts)  # type: ignore[type-var]
    return None if value is None else value[chosen]


class DiffusionAnomalyGenerator(v2.Transform):
    """Blends textures of defects into normal images and returns the mask of what changed.

    Called like anomalib's ``PerlinAnomalyGenerator``, or with the mask that an image already has. Images can have any
    size and keep their type: ``float`` in [0, 1] or ``uint8``. The mask is a Perlin mask or an elliptic window within
    the foreground, of the pixels that the blend really changed (Equations (2) and (3)); outside of it the image stays
    as it was, bit for bit.

    Args:
        bank (TextureBank | str | Path | None): Textures sampled from the perturbed DDPM, or the folder that they were
            saved in. Defaults to ``None``.
        defects (DefectConfig | Mapping[str, Any] | None): Settings of the defects. ``None`` takes the defaults, and
            shuffled tiles of the image itself if there is no bank. Defaults to ``None``.
        generator (torch.Generator | None): Source of every random draw. Defaults to the global one.

    Raises:
        ValueError: If a setting is out of its range, or the source of the textures needs a bank and there is none.

    Example:
        >>> import torch
        >>> transform = DiffusionAnomalyGenerator(defects={"source": "self_texture", "probability": 1.0})
        >>> augmented, mask = transform(torch.rand(4, 3, 64, 64))
        >>> augmented.shape, mask.shape
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 1, 64, 64]))
        >>> augmented, mask = transform(torch.randint(256, (3, 64, 64), dtype=torch.uint8))
        >>> augmented.dtype, augmented.shape, mask.shape
        (torch.uint8, torch.Size([3, 64, 64]), torch.Size([1, 64, 64]))
    """

    def __init__(
        self,
        bank: TextureBank | str | Path | None = None,
        defects: DefectConfig | Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if defects is None and bank is None:
            defects = DefectConfig(source="self_texture")
        self.defects = as_config(DefectConfig, defects)
        if bank is None and self.defects.needs_bank:
            msg = (
                f"defects.source '{self.defects.source}' needs a bank of textures: give one, or set defects.source to "
                "'self_texture'."
            )
            raise ValueError(msg)
        bank = TextureBank.load(bank) if isinstance(bank, str | Path) else bank
        self.bank_textures = BankTextures(bank) if bank is not None and self.defects.needs_bank else None
        self.generator = generator
        # Whether displaced parts are defects though no object stands out from a plain background.
        self.parts_lie_alike = False

    def sample_parameters(self, images: torch.Tensor) -> AnomalyParameters:
        """Make every random choice for a batch.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Returns:
            AnomalyParameters: Choices that :meth:`apply_parameters` takes.
        """
        count, device, generator, defects = len(images), images.device, self.generator, self.defects
        column = (count, 1, 1, 1)
        anomalous = uniform(column, 0, 1, generator, device) < defects.probability
        perlin_masks = random_perlin_masks(count, (images.shape[-2], images.shape[-1]), generator, device)
        windows = random_windows(count, defects.p_local, defects.p_filled, generator, device)
        is_soft = uniform((count,), 0, 1, generator, device) < defects.p_soft
        softness = log_uniform((count,), *SOFTNESS_RANGE, generator, device) * is_soft
        opacity = uniform(column, *defects.opacity, generator, device)
        from_bank = uniform(column, 0, 1, generator, device) < P_BANK[defects.source]
        # Textures of the bank may keep their colours; shuffled tiles have those of the image and must differ from it.
        jittered = ~from_bank | (uniform(column, 0, 1, generator, device) < P_JITTERED)
        gain = torch.where(jittered, uniform((count, 3, 1, 1), *GAIN_RANGE, generator, device), 1.0)
        offset = torch.where(jittered, uniform((count, 3, 1, 1), *OFFSET_RANGE, generator, device), 0.0)
        contrast = torch.zeros_like(opacity)
        if defects.contrast[1] > 0:
            # Shuffled tiles differ from the image anyway; if they do not, only grain would be exaggerated.
            contrast = torch.where(from_bank, log_uniform(column, *defects.contrast, generator, device), 0.0)
        bank_textures = self.bank_textures.sample(images, generator) if self.bank_textures is not None else None
        tile_order = ShuffledTiles.sample(images, generator) if defects.source != "diffusion" else None
        parts = random_parts(count, defects.p_parts, generator, device) if defects.p_parts > 0 else None
        return AnomalyParameters(
            anomalous,
            perlin_masks,
            windows,
            softness,
            opacity,
            contrast,
            from_bank,
            gain,
            offset,
            bank_textures,
            tile_order,
            parts,
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
        anomalous = parameters.anomalous.flatten()
        augmented = images.clone()
        masks = images.new_zeros(len(images), 1, *images.shape[-2:])
        if anomalous.any():
            augmented[anomalous], masks[anomalous] = self._blend(images[anomalous], parameters.select(anomalous))
        return augmented, masks

    def _blend(self, images: torch.Tensor, parameters: AnomalyParameters) -> tuple[torch.Tensor, torch.Tensor]:
        """Blend textures into images that all get a defect."""
        allowed = torch.ones_like(parameters.perlin_masks)
        has_object = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.defects.foreground == "auto":
            allowed, is_surface, frames = find_foreground(images)
            has_object = ~is_surface
        else:
            frames = find_frames(images)
        textures = images
        if parameters.tile_order is not None:
            textures = ShuffledTiles.apply(fill_frames(images, frames), parameters.tile_order)
        if parameters.bank_textures is not None and self.bank_textures is not None:
            sampled = self.bank_textures.apply(images, parameters.bank_textures, has_object, frames)
            textures = torch.where(parameters.from_bank, sampled, textures)
        textures = jitter_colours(images, textures, parameters.gain, parameters.offset)
        masks = limit_masks(parameters.perlin_masks, allowed, parameters.windows)
        weights = (soften(masks, parameters.softness) * allowed).to(images.dtype)
        opacity = parameters.opacity.to(images.dtype)
        blended = blend(images, textures, weights, opacity, parameters.contrast, allowed)
        masks = changed_mask(images, blended, weights > 0)
        if parameters.parts is not None:
            chosen = (parameters.parts.used.flatten() & (has_object | self.parts_lie_alike)).nonzero()[:, 0]
            if len(chosen):
                parts, regions = change_parts(images[chosen], allowed[chosen], _select(parameters.parts, chosen))
                # The others keep the blended texture.
                visible = regions.flatten(1).any(dim=1)
                blended[chosen[visible]], masks[chosen[visible]] = parts[visible], regions[visible]
        return torch.where(masks, blended, images), masks.to(images.dtype)

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Make defects.

        Args:
            image (torch.Tensor): Image of shape ``(C, H, W)`` or batch of shape ``(B, C, H, W)`` with one or three
                channels; ``float`` with values in [0, 1], up to the overshoot of an interpolation, or ``uint8``.
            mask (torch.Tensor | None): Mask of defects that the image already has, of shape ``(H, W)`` or
                ``(1, H, W)``, with a leading ``B`` for a batch. Defaults to ``None``.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Augmented image or batch, of the same shape, type and range of values;
            and mask, of shape ``(1, H, W)`` or ``(B, 1, H, W)`` with values 0 and 1, or the given mask with the new
            defects added.

        Raises:
            ValueError: If the shape or the range of values is not as described.
        """
        return self._call(image, mask, self._augment)

    def make_defects(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Make a defect in every image, whatever the probability, and retry if none was produced.

        Args:
            image (torch.Tensor): As in :meth:`forward`.
            mask (torch.Tensor | None): As in :meth:`forward`.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: As in :meth:`forward`.

        Raises:
            RuntimeError: If an image has no defect after 100 attempts.
            ValueError: If the shape or the range of values is not as described.
        """
        return self._call(image, mask, self._insist)

    def _augment(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample parameters and apply them."""
        return self.apply_parameters(images, self.sample_parameters(images))

    def _insist(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample and apply until every image has a defect."""
        augmented, masks = images.clone(), images.new_zeros(len(images), 1, *images.shape[-2:])
        missing = torch.arange(len(images), device=images.device)
        for _ in range(MAX_ATTEMPTS):
            parameters = self.sample_parameters(images[missing])
            parameters = replace(parameters, anomalous=torch.ones_like(parameters.anomalous))
            augmented[missing], masks[missing] = self.apply_parameters(images[missing], parameters)
            missing = missing[~masks[missing].flatten(1).any(dim=1)]
            if len(missing) == 0:
                return augmented, masks
        msg = (
            f"{MAX_ATTEMPTS} attempts produced no defect: the textures hardly differ from the image. Raise bank.delta "
            "or defects.contrast, or train the DDPM for longer."
        )
        raise RuntimeError(msg)

    @staticmethod
    def _call(
        image: torch.Tensor,
        mask: torch.Tensor | None,
        augment: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run ``augment`` on a float batch with three channels, and return images and masks of the given kind."""
        if image.ndim not in {3, 4} or image.shape[-3] not in {1, 3}:
            msg = f"Expected an image of shape (C, H, W) or (B, C, H, W) with C of 1 or 3, got {tuple(image.shape)}."
            raise ValueError(msg)
        pixels = image.as_subclass(torch.Tensor)
        channels = pixels.shape[-3]
        if mask is not None and (mask.shape[-2:] != pixels.shape[-2:] or mask.numel() * channels != pixels.numel()):
            msg = f"The mask of shape {tuple(mask.shape)} does not match the image of shape {tuple(pixels.shape)}."
            raise ValueError(msg)
        is_integer = pixels.dtype == torch.uint8
        images = (pixels if pixels.ndim == 4 else pixels[None]).float() / (255 if is_integer else 1)
        low, high = images.min().item(), images.max().item()
        if not is_integer and not (pixels.is_floating_point() and low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            msg = (
                f"Images must be uint8, or float with values in [0, 1], but these are {pixels.dtype} from {low:.2f} to "
                f"{high:.2f}: they have another scale, such as 0 to 255, or are normalised. Make defects before that."
            )
            raise ValueError(msg)
        # Images are data: they keep their precision in mixed-precision training.
        with torch.autocast(images.device.type, enabled=False):
            augmented, masks = augment(images.clamp(0, 1).expand(-1, 3, -1, -1))
        augmented = (augmented * 255).round() if is_integer else augmented
        augmented = augmented[:, :channels].reshape(pixels.shape).to(pixels.dtype)
        masks = masks if pixels.ndim == 4 else masks[0]
        augmented = torch.where(masks.bool(), augmented, pixels)
        if mask is not None:
            own = mask.as_subclass(torch.Tensor)
            # Masks are stored with 1 or 255 for a defect.
            value = 255 if own.dtype == torch.uint8 and own.max() > 1 else 1
            masks = tv_tensors.wrap(own.masked_fill(masks.reshape(own.shape).bool(), value), like=mask)
        return tv_tensors.wrap(augmented, like=image), masks
