# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of stage 2 and of the defects in training images."""

from dataclasses import dataclass
from typing import Literal, get_args

from anomalib_ddpm_st.core.config import check_choice, check_integer, check_number, check_range

Source = Literal["diffusion", "mixture", "self_texture"]
Foreground = Literal["auto", "off"]
TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class BankConfig:
    """Sampling of the bank of defect textures.

    Args:
        size (int): Number of textures. Defaults to ``256``.
        delta (tuple[float, float]): Range of the perturbation ``delta`` of the reverse steps, Equation (1), in units of
            images in [-1, 1]; drawn for each texture. Defaults to ``(0.3, 2.0)``.
        start_timestep (tuple[int, int]): Range of the timestep, between 1 and 999, that normal images are noised to
            before they are sampled again; drawn for each batch. Defaults to ``(200, 600)``.
        num_inference_steps (int): Number of reverse steps of a texture. Defaults to ``10``.
        detail (tuple[float, float]): Range of the fraction of fine detail that a texture gets back from its normal
            image; drawn for each texture. Defaults to ``(0.0, 1.0)``.
        seed (int): Seed of every random draw. Defaults to ``0``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    size: int = 256
    delta: tuple[float, float] = (0.3, 2.0)
    start_timestep: tuple[int, int] = (200, 600)
    num_inference_steps: int = 10
    detail: tuple[float, float] = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings; lists become tuples."""
        check_integer("bank.size", self.size, 1)
        object.__setattr__(self, "delta", _floats(check_range("bank.delta", self.delta, 0)))
        timesteps = check_range("bank.start_timestep", self.start_timestep, 1, TRAIN_TIMESTEPS - 1)
        for timestep in timesteps:
            check_integer("bank.start_timestep", timestep, 1)
        object.__setattr__(self, "start_timestep", timesteps)
        check_integer("bank.num_inference_steps", self.num_inference_steps, 1)
        object.__setattr__(self, "detail", _floats(check_range("bank.detail", self.detail, 0, 1)))
        check_integer("bank.seed", self.seed, 0)


# Timestep at which samples of a DDPM are judged: the middle of the default range.
MIDDLE_TIMESTEP = sum(BankConfig.start_timestep) // 2


@dataclass(frozen=True)
class DefectConfig:
    """Synthetic defects.

    Args:
        source (Source): Source of the textures: ``"diffusion"``, the bank of textures that the DDPM made;
            ``"self_texture"``, shuffled tiles of the image itself, which need no DDPM; ``"mixture"``, half of each.
            Defaults to ``"mixture"``.
        probability (float): Probability that an image gets a defect. Defaults to ``0.75``.
        opacity (tuple[float, float]): Range of the opacity ``beta`` of textures, in (0, 1]; a single number stands for
            itself as both bounds. Defaults to ``(0.5, 1.0)``.
        contrast (tuple[float, float]): Range of the smallest peak change that a texture of the bank makes, in units of
            the surface's own contrast (:func:`surface_contrast`): a change that stands out on a plain surface is
            invisible between pebbles. A weaker texture is exaggerated, up to eightfold. ``(0, 0)`` exaggerates none.
            Defaults to ``(3.0, 16.0)``.
        foreground (Foreground): ``"auto"`` keeps defects on an object that lies on a plain background, and puts them
            anywhere on a surface; ``"off"`` puts them anywhere. Defaults to ``"auto"``.
        p_local (float): Probability that a mask is limited to an elliptic window, so that the defect is one small spot
            or line and not scattered over the image. Defaults to ``0.5``.
        p_filled (float): Probability that such a window is filled, without a Perlin mask. Defaults to ``0.5``.
        p_soft (float): Probability that the edges of a mask are blurred: without blurred edges the detector learns to
            detect the blending edge. Defaults to ``0.5``.
        p_parts (float): Probability that the defect is a part of an object that is displaced, turned, doubled or
            missing, up to half of the image. Defaults to ``0.1``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    source: Source = "mixture"
    probability: float = 0.75
    opacity: tuple[float, float] = (0.5, 1.0)
    contrast: tuple[float, float] = (3.0, 16.0)
    foreground: Foreground = "auto"
    p_local: float = 0.5
    p_filled: float = 0.5
    p_soft: float = 0.5
    p_parts: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings; lists become tuples."""
        check_choice("defects.source", self.source, get_args(Source))
        check_number("defects.probability", self.probability, 0, 1)
        is_single = isinstance(self.opacity, int | float)
        opacity = check_range("defects.opacity", (self.opacity, self.opacity) if is_single else self.opacity, 0, 1)
        if opacity[0] == 0:
            msg = f"defects.opacity must be above 0, got {self.opacity!r}: a texture of opacity 0 is invisible."
            raise ValueError(msg)
        object.__setattr__(self, "opacity", _floats(opacity))
        contrast = check_range("defects.contrast", self.contrast, 0)
        if contrast[0] == 0 < contrast[1]:
            msg = f"defects.contrast must be two numbers above 0, or (0, 0), got {self.contrast!r}."
            raise ValueError(msg)
        object.__setattr__(self, "contrast", _floats(contrast))
        check_choice("defects.foreground", self.foreground, get_args(Foreground))
        check_number("defects.p_local", self.p_local, 0, 1)
        check_number("defects.p_filled", self.p_filled, 0, 1)
        check_number("defects.p_soft", self.p_soft, 0, 1)
        check_number("defects.p_parts", self.p_parts, 0, 1)

    @property
    def needs_bank(self) -> bool:
        """Whether the source needs a bank of textures of a DDPM."""
        return self.source != "self_texture"


def _floats(values: tuple) -> tuple[float, ...]:
    """Numbers as floats, so that ``(1, 2)`` and ``(1.0, 2.0)`` have the same cache key."""
    return tuple(float(value) for value in values)
