# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Synthetic anomaly generator: blends textures of defects into normal images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from anomalib_ddpm_st.images import warp

from .bank import TextureBank
from .masks import (
    MAX_SOFTNESS,
    Windows,
    changed_pixels,
    close_holes,
    foreground_mask,
    is_surface,
    largest_change,
    limit_masks,
    log_uniform,
    random_perlin_masks,
    random_windows,
    soften,
    surface_contrast,
    uniform,
)

Foreground = Literal["auto", "off"]
Source = Literal["bank", "self_texture", "noise"]
Synthesis = Literal["diffusion", "mixture", "self_texture", "noise", "none"]
SOURCES: dict[Synthesis, dict[str, float]] = {
    "diffusion": {"bank": 1.0},
    "mixture": {"bank": 0.5, "self_texture": 0.5},
    "self_texture": {"self_texture": 1.0},
    "noise": {"noise": 1.0},
    "none": {"self_texture": 1.0},
}
TILES = 8
NOISE_SPREAD = 0.2
DEFAULT_CONTRAST = (3.0, 16.0)
MIN_CHANGE = 1 / 255
FAINT_SHARE = 1 / 3
LEAST_THRESHOLD = 0.01
MAX_EXAGGERATION = 8.0
MIN_AREA = 4e-4
CONTOUR_RANGE = (0.2, 0.7)
GREY_SPREAD = 4 / 255
SOFTNESS_RANGE = (0.005, MAX_SOFTNESS)
ZOOM_RANGE = (1.7, 3.0)
MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class Displacement:
    """How textures of the bank are moved on objects and zoomed on surfaces; the identity where they stay in place.

    Attributes:
        shifts (torch.Tensor): Rows and columns that textures are moved by, integers of shape ``(B, 2)``.
        flips (torch.Tensor): Whether rows and columns are reversed, boolean of shape ``(B, 2)``.
        scales (torch.Tensor): Factors that textures are enlarged by, of shape ``(B,)``.
        angles (torch.Tensor): Rotations in degrees, of shape ``(B,)``.
    """

    shifts: torch.Tensor
    flips: torch.Tensor
    scales: torch.Tensor
    angles: torch.Tensor


@dataclass(frozen=True)
class AnomalyParameters:
    """Random choices of one call, enough to replay it.

    Attributes:
        anomalous (torch.Tensor): Which images get a defect, boolean of shape ``(B, 1, 1, 1)``.
        perlin_masks (torch.Tensor): Boolean masks of shape ``(B, 1, H, W)``.
        windows (Windows): Windows that masks are limited to.
        softness (torch.Tensor): Blur of the edges of masks as a share of the shorter side, of shape ``(B,)``.
        opacity (torch.Tensor): Opacity ``beta`` of the texture, of shape ``(B, 1, 1, 1)``.
        contrast (torch.Tensor): Largest change that the texture makes at least, in units of the surface's own contrast,
            of shape ``(B, 1, 1, 1)``.
        contour (torch.Tensor): Smallest change that the mask keeps, as a share of the largest in it, of shape
            ``(B, 1, 1, 1)``.
        sources (torch.Tensor): Where each texture comes from, index in ``Source``'s order, of shape ``(B, 1, 1, 1)``.
        gain (torch.Tensor): Contrast of each channel of the texture, of shape ``(B, 3, 1, 1)``.
        offset (torch.Tensor): Brightness of each channel of the texture, of shape ``(B, 3, 1, 1)``.
        texture_indices (torch.Tensor | None): Textures of the bank, of shape ``(B,)``.
        displacement (Displacement | None): How textures of the bank are moved or zoomed.
        tile_order (torch.Tensor | None): Order of the tiles of a self-texture, of shape ``(B, 64)``.
        noise (torch.Tensor | None): Plain colours with noise, of shape ``(B, 3, H, W)``.
    """

    anomalous: torch.Tensor
    perlin_masks: torch.Tensor
    windows: Windows
    softness: torch.Tensor
    opacity: torch.Tensor
    contrast: torch.Tensor
    contour: torch.Tensor
    sources: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor
    texture_indices: torch.Tensor | None = None
    displacement: Displacement | None = None
    tile_order: torch.Tensor | None = None
    noise: torch.Tensor | None = None

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


def self_texture(images: torch.Tensor, tile_order: torch.Tensor) -> torch.Tensor:
    """Make a texture of the image itself: its tiles in another order.

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


def is_grey(images: torch.Tensor) -> torch.Tensor:
    """Find grey images: a grey camera sees no coloured defects, and colour would give them away.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Boolean of shape ``(B, 1, 1, 1)``.
    """
    spread = (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))
    return (spread < GREY_SPREAD)[:, None, None, None]


def adjust(
    images: torch.Tensor,
    textures: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
) -> torch.Tensor:
    """Change contrast and brightness of textures, channel by channel; where images are grey, textures become so too.

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


def move(textures: torch.Tensor, shifts: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
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


def displace(textures: torch.Tensor, displacement: Displacement, has_object: torch.Tensor) -> torch.Tensor:
    """Move and flip textures of objects; rotate and zoom those of surfaces, which look normal wherever they are moved.

    Args:
        textures (torch.Tensor): Textures of shape ``(B, C, H, W)``.
        displacement (Displacement): Random choices.
        has_object (torch.Tensor): Whether there is an object in the image, boolean of shape ``(B, 1)``.

    Returns:
        torch.Tensor: Textures of the same shape.
    """
    moved = has_object[:, 0] & (displacement.shifts.bool() | displacement.flips).any(dim=1)
    if moved.any():
        textures[moved] = move(textures[moved], displacement.shifts[moved], displacement.flips[moved])
    zoomed = (displacement.scales != 1) & ~has_object[:, 0]
    if zoomed.any():
        textures[zoomed] = warp(textures[zoomed], displacement.angles[zoomed], displacement.scales[zoomed])
    return textures


class DiffusionAnomalyGenerator(v2.Transform):
    """Blend sampled defect textures into normal images and return the mask of what changed.

    Called like anomalib's ``PerlinAnomalyGenerator``, or with the mask that an image has already. Images of any size
    are taken, and come back with the values that they had: ``float`` in [0, 1] or ``uint8``. The mask is a Perlin mask,
    within the foreground, of the pixels that the blend truly changed; outside of it the image stays as it was, bit for
    bit: ``y = x (1 - m) + m ((1 - beta) x + beta texture)``, where ``beta`` fades out towards soft edges.

    Args:
        bank (TextureBank | str | Path | None): Textures sampled from the perturbed DDPM, or the folder they were
            saved in. ``None`` takes tiles of the image itself in another order, the cheap control of the method.
            Defaults to ``None``.
        probability (float): Share of images that get a defect; the rest stays clean. Defaults to ``0.5``.
        blend_factor (float | Sequence[float]): Opacity ``beta`` or its range. Defaults to ``(0.5, 1.0)``.
        contrast (Sequence[float]): Range of the largest change that a texture of the bank makes at least, in units of
            the surface's own contrast (:func:`surface_contrast`): what stands out from a plain surface is lost between
            pebbles. A texture that differs less is exaggerated, up to eightfold. ``(0, 0)`` leaves textures as they
            are. Defaults to ``(3.0, 16.0)``.
        contour (float): Share of textures of the bank whose mask is shaped by the sampled change: of the Perlin mask
            it keeps the pixels that changed most. Defaults to ``0.0``.
        local (float): Share of masks that are limited to an elliptic window, so that a defect is one small spot or
            line and not scattered over the image. Defaults to ``0.5``.
        filled (float): Share of these windows that are filled, with no Perlin mask. Defaults to ``0.5``.
        soft (float): Share of masks with blurred edges, over which the texture fades out: without them a detector
            learns to find seams. Defaults to ``0.5``.
        displacement (float): Share of textures of the bank that are not blended in place. Where ``foreground`` finds
            an object they are moved and flipped: parts of it appear where they do not belong. A surface that is alike
            everywhere would look normal then; there they are rotated and enlarged or shrunk. Defaults to ``0.5``.
        jitter (float): Share of textures of the bank whose contrast and brightness are changed channel by channel, as
            those of every self-texture are. Defaults to ``0.5``.
        sources (Mapping[str, float] | None): Shares of ``"bank"``, ``"self_texture"`` (tiles of the image itself in
            another order) and ``"noise"`` (a plain colour with noise). ``None`` takes the bank alone, or
            self-textures alone where there is no bank. Defaults to ``None``.
        rotation (float): Largest rotation of the Perlin masks to either side, in degrees. Defaults to ``90.0``.
        foreground (Foreground): ``"auto"`` keeps defects on an object that lies on a plain background and leaves
            textures alone; ``"off"`` puts them anywhere. Defaults to ``"auto"``.
        change_threshold (float): Smallest change of a pixel that counts, in units of images in [0, 1]. For faint
            defects it is a third of their largest change, but not below 0.01. Defaults to ``0.04``.
        generator (torch.Generator | None): Source of every random draw. Defaults to the global one.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> transform = DiffusionAnomalyGenerator(probability=1.0)
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
        probability: float = 0.5,
        blend_factor: float | Sequence[float] = (0.5, 1.0),
        contrast: Sequence[float] = DEFAULT_CONTRAST,
        contour: float = 0.0,
        local: float = 0.5,
        filled: float = 0.5,
        soft: float = 0.5,
        displacement: float = 0.5,
        jitter: float = 0.5,
        sources: Mapping[str, float] | None = None,
        rotation: float = 90.0,
        foreground: Foreground = "auto",
        change_threshold: float = 0.04,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shares = {
            "probability": probability,
            "contour": contour,
            "local": local,
            "filled": filled,
            "soft": soft,
            "displacement": displacement,
            "jitter": jitter,
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                msg = f"{name} must lie in [0, 1], but is {share}."
                raise ValueError(msg)
        if isinstance(blend_factor, float | int):
            blend_factor = (blend_factor, blend_factor)
        if len(blend_factor) != 2 or not 0 < blend_factor[0] <= blend_factor[1] <= 1:
            msg = f"blend_factor must be two numbers, 0 < low <= high <= 1, but is {tuple(blend_factor)}."
            raise ValueError(msg)
        if len(contrast) != 2 or not (0 < contrast[0] <= contrast[1] or contrast[0] == contrast[1] == 0):
            msg = f"contrast must be two numbers, 0 < low <= high, or (0, 0), but is {tuple(contrast)}."
            raise ValueError(msg)
        if foreground not in get_args(Foreground):
            msg = f"Unknown foreground '{foreground}': choose one of {', '.join(get_args(Foreground))}."
            raise ValueError(msg)
        sources = sources or {"self_texture" if bank is None else "bank": 1.0}
        known = get_args(Source)
        if not set(sources) <= set(known) or min(sources.values()) < 0 or sum(sources.values()) <= 0:
            msg = f"sources must give {', '.join(known)} shares that are not negative, but is {dict(sources)}."
            raise ValueError(msg)
        if bank is None and sources.get("bank", 0) > 0:
            msg = "A share of textures from the bank needs a bank: give one, or leave 'bank' out of the sources."
            raise ValueError(msg)
        self.bank = TextureBank.load(bank) if isinstance(bank, str | Path) else bank
        self.probability = probability
        self.blend_factor = (float(blend_factor[0]), float(blend_factor[1]))
        self.contrast = (float(contrast[0]), float(contrast[1]))
        self.contour = contour
        self.local = local
        self.filled = filled
        self.soft = soft
        self.displacement = displacement
        self.jitter = jitter
        self.shares = [float(sources.get(name, 0)) for name in known]
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
        windows = random_windows(count, self.local, generator, device, self.filled)
        is_soft = uniform((count,), 0, 1, generator, device) < self.soft
        softness = log_uniform((count,), *SOFTNESS_RANGE, generator, device) * is_soft
        opacity = uniform((count, 1, 1, 1), *self.blend_factor, generator, device)
        edges = torch.tensor(self.shares).cumsum(0) / sum(self.shares)
        draws = uniform((count, 1, 1, 1), 0, 1, generator, device)
        sources = (draws >= edges[:-1].to(device).reshape(1, -1, 1, 1)).sum(dim=1, keepdim=True)
        # Textures of the bank keep their colours in part; the others are the image's own and must differ from it.
        jittered = (sources > 0) | (uniform((count, 1, 1, 1), 0, 1, generator, device) < self.jitter)
        gain = torch.where(jittered, uniform((count, 3, 1, 1), 0.5, 1.5, generator, device), 1.0)
        offset = torch.where(jittered, uniform((count, 3, 1, 1), -0.2, 0.2, generator, device), 0.0)
        shaped = (sources == 0) & (uniform((count, 1, 1, 1), 0, 1, generator, device) < self.contour)
        contour = torch.where(shaped, uniform((count, 1, 1, 1), *CONTOUR_RANGE, generator, device), 0.0)
        contrast = torch.zeros_like(opacity)
        if self.contrast[1] > 0:
            # Tiles of the image and noise differ anyway; where they do not, there is nothing to exaggerate but grain.
            contrast = torch.where(sources == 0, log_uniform((count, 1, 1, 1), *self.contrast, generator, device), 0.0)
        texture_indices, displacement, tile_order, noise = None, None, None, None
        if self.shares[0] > 0 and self.bank is not None:
            self.bank = self.bank.to(device)
            displaced = uniform((count, 1), 0, 1, generator, device) < self.displacement
            shifts = uniform((count, 2), 0, 1, generator, device) * torch.tensor(size, device=device)
            texture_indices = self.bank.draw(images, generator)
            flips = (uniform((count, 2), 0, 1, generator, device) < 0.5) & displaced
            factors = log_uniform((count,), *ZOOM_RANGE, generator, device)
            shrink = uniform((count,), 0, 1, generator, device) < 0.5
            scales = torch.where(shrink, 1 / factors, factors).where(displaced[:, 0], 1.0)
            angles = uniform((count,), 0, 360, generator, device) * displaced[:, 0]
            displacement = Displacement(shifts.long() * displaced, flips, scales, angles)
        if self.shares[1] > 0:
            tile_order = uniform((count, TILES**2), 0, 1, generator, device).argsort(dim=1)
        if self.shares[2] > 0:
            colour = uniform((count, 3, 1, 1), 0, 1, generator, device)
            spread = uniform((count, 3, *size), -NOISE_SPREAD, NOISE_SPREAD, generator, device)
            noise = (colour + spread).clamp(0, 1)
        return AnomalyParameters(
            anomalous,
            perlin_masks,
            windows,
            softness,
            opacity,
            contrast,
            contour,
            sources,
            gain,
            offset,
            texture_indices,
            displacement,
            tile_order,
            noise,
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
        masks = parameters.perlin_masks
        allowed = torch.ones_like(masks)
        has_object = torch.zeros(len(images), 1, dtype=torch.bool, device=images.device)
        if self.foreground == "auto":
            allowed = foreground_mask(images)
            has_object = ~is_surface(allowed)[:, None]
        textures = images
        if parameters.tile_order is not None:
            textures = self_texture(images, parameters.tile_order)
        if parameters.noise is not None:
            textures = torch.where(parameters.sources == 2, parameters.noise.to(images.dtype), textures)
        if parameters.texture_indices is not None and self.bank is not None:
            size = (images.shape[-2], images.shape[-1])
            sampled = self.bank.get(parameters.texture_indices, size)
            from_bank = parameters.sources == 0
            if self.bank.masks is not None:
                is_paired = self.bank.sources[parameters.texture_indices] >= 0
                own = self.bank.get_masks(parameters.texture_indices, size)
                masks = torch.where(from_bank & is_paired[:, None, None, None], own, masks)
            elif parameters.displacement is not None:
                sampled = displace(sampled, parameters.displacement, has_object)
            sampled = sampled + self.bank.missing_detail(images)
            textures = torch.where(from_bank, sampled.to(images.dtype), textures)
        textures = adjust(images, textures, parameters.gain, parameters.offset)
        masks = limit_masks(masks, allowed, parameters.windows)
        opacity = parameters.opacity.to(images.dtype)
        weights = (soften(masks, parameters.softness) * allowed).to(images.dtype)
        masks = weights > 0
        change = opacity * weights * (textures - images)
        largest = largest_change(images, images + change, masks).clamp_min(MIN_CHANGE)
        visible = (parameters.contrast * surface_contrast(images, allowed)).clamp_max(1)
        exaggeration = (visible / largest).clamp(1, MAX_EXAGGERATION)
        blended = (images + change * exaggeration).clamp(0, 1).to(images.dtype)
        largest = largest_change(images, blended, masks)
        # Of a faint defect the mask would else keep only the few pixels that changed most.
        threshold = (FAINT_SHARE * largest).clamp_min(LEAST_THRESHOLD).clamp_max(self.change_threshold)
        threshold = torch.maximum(threshold, parameters.contour * largest)
        masks = close_holes(masks & changed_pixels(images, blended, threshold))
        # What is left of a few pixels nobody would call a defect.
        masks &= masks.float().mean(dim=(1, 2, 3), keepdim=True) >= MIN_AREA
        return torch.where(masks, blended, images), masks.to(images.dtype)

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Make defects.

        Args:
            image (torch.Tensor): Image of shape ``(C, H, W)`` or batch of shape ``(B, C, H, W)`` with one or three
                channels; ``float`` with values in [0, 1], or ``uint8``.
            mask (torch.Tensor | None): Mask of defects that are there already, of shape ``(H, W)`` or ``(1, H, W)``,
                with a leading ``B`` for a batch. Defaults to ``None``.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Augmented image or batch, of the same shape, type and range of values;
            and mask, of shape ``(1, H, W)`` or ``(B, 1, H, W)`` with values 0 and 1, or what was given, with the new
            defects added.

        Raises:
            ValueError: If the shape or the range of values is not as described.
        """
        return self._call(image, mask, self._augment)

    def make_defects(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Make a defect in every image, whatever ``probability`` is, and again where none came out.

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
        """Choose and apply."""
        return self.apply_parameters(images, self.sample_parameters(images))

    def _insist(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose and apply until every image has a defect."""
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
            f"{MAX_ATTEMPTS} attempts made no defect: the textures hardly differ from the image. Raise the strength of "
            "the bank or the contrast, or train the DDPM for longer."
        )
        raise RuntimeError(msg)

    @staticmethod
    def _call(
        image: torch.Tensor,
        mask: torch.Tensor | None,
        augment: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run ``augment`` on a float batch of three channels, and give back what kind of image and mask was given."""
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
        if not is_integer and not (pixels.is_floating_point() and images.min() >= 0 and images.max() <= 1):
            msg = (
                f"Images must be uint8, or float with values in [0, 1], but these are {pixels.dtype} from "
                f"{images.min().item():.2f} to {images.max().item():.2f}: make defects before Normalize."
            )
            raise ValueError(msg)
        # Images are data: in mixed precision they keep theirs.
        with torch.autocast(images.device.type, enabled=False):
            augmented, masks = augment(images.expand(-1, 3, -1, -1))
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
