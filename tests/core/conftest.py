# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Drawings that the tests of the core share."""

import math

import torch

LENGTH, WIDTH, HEAD = 1.3, 0.2, 0.5


def draw(
    angle: float = 0.0,
    centre: tuple[float, float] = (0.0, 0.0),
    size: tuple[int, int] = (128, 128),
    part: float = 0.3,
    background: float = 0.8,
    keep: tuple[float, float] = (-1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a bolt: a bar with a wide head; image of shape ``(3, H, W)`` and the head's mask of shape ``(H, W)``.

    Angles are in degrees, centres in units of half the height; ``keep`` limits the part along itself.
    """
    height, width = size
    rows, columns = torch.meshgrid(
        (torch.arange(height) * 2 + 1) / height - 1,
        ((torch.arange(width) * 2 + 1) / width - 1) * width / height,
        indexing="ij",
    )
    right, down = columns - centre[0], rows - centre[1]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = right * cosine + down * sine, down * cosine - right * sine
    bar = (along.abs() < LENGTH / 2) & (across.abs() < WIDTH / 2)
    head = (along > LENGTH / 2 - 0.2) & (along < LENGTH / 2) & (across.abs() < HEAD / 2)
    inside = (along > keep[0]) & (along < keep[1])
    image = torch.where((bar | head) & inside, part, background)
    return (image + 0.01 * torch.randn(3, *size)).clamp(0, 1), head & inside


def angle_between(first: torch.Tensor, degrees: float) -> float:
    """Angle in degrees between a direction of shape ``(2,)`` and an angle."""
    return abs((math.degrees(math.atan2(first[1], first[0])) - degrees + 180) % 360 - 180)
