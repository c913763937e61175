# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Random draws from an optional generator, delivered on any device."""

import math

import torch


def uniform(
    shape: tuple[int, ...],
    low: float,
    high: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Draw uniform numbers in [low, high) on the device of the generator and move them to ``device``.

    Args:
        shape (tuple[int, ...]): Shape of the result.
        low (float): Lower bound.
        high (float): Upper bound.
        generator (torch.Generator | None): Source of the random draw. Defaults to the global one.
        device (torch.device | None): Device of the result.

    Returns:
        torch.Tensor: Numbers between the bounds.
    """
    source = generator.device if generator is not None else device
    return (low + (high - low) * torch.rand(shape, generator=generator, device=source)).to(device)


def log_uniform(
    shape: tuple[int, ...],
    low: float,
    high: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Draw numbers whose logarithms are uniform, so that every order of magnitude is equally frequent.

    Args:
        shape (tuple[int, ...]): Shape of the result.
        low (float): Lower bound, above 0.
        high (float): Upper bound.
        generator (torch.Generator | None): Source of the random draw. Defaults to the global one.
        device (torch.device | None): Device of the result.

    Returns:
        torch.Tensor: Numbers between the bounds.
    """
    return uniform(shape, math.log(low), math.log(high), generator, device).exp()
