# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of stage 1."""

from dataclasses import dataclass

from anomalib_ddpm_st.core.config import check_integer, check_integers, check_positive

BLOCK_OUT_CHANNELS = (64, 96, 128, 192)


@dataclass(frozen=True)
class DiffusionConfig:
    """Training of the DDPM on normal images.

    Args:
        training_steps (int): Number of optimiser steps. Defaults to ``1000``.
        batch_size (int): Number of images per step and device. Defaults to ``8``.
        learning_rate (float): Peak learning rate of AdamW. Defaults to ``1e-3``.
        block_out_channels (tuple[int, ...]): Number of channels at each resolution level of the UNet.
            Defaults to ``(64, 96, 128, 192)``.
        seed (int): Seed of weights, batches and noise. Defaults to ``0``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    training_steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    block_out_channels: tuple[int, ...] = BLOCK_OUT_CHANNELS
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_integer("diffusion.training_steps", self.training_steps, 1)
        check_integer("diffusion.batch_size", self.batch_size, 1)
        check_positive("diffusion.learning_rate", self.learning_rate)
        widths = check_integers("diffusion.block_out_channels", self.block_out_channels, 1)
        object.__setattr__(self, "block_out_channels", widths)
        check_integer("diffusion.seed", self.seed, 0)
