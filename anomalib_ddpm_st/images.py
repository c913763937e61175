# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Reading and moving of normal images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from anomalib.data.utils import read_image
from kornia.geometry.transform import get_rotation_matrix2d, warp_affine
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=nn.Module)
MIN_IMAGES = 2
MAX_IMAGES = 1000
ASPECT_IMAGES = 32


def evenly(count: int, most: int) -> torch.Tensor:
    """Choose items evenly.

    Args:
        count (int): Number of items.
        most (int): Largest number to choose.

    Returns:
        torch.Tensor: Indices, at most ``most``.
    """
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def load_normal_images(
    paths: Sequence[str | Path],
    image_size: tuple[int, int],
    max_images: int = MAX_IMAGES,
    min_images: int = MIN_IMAGES,
) -> torch.Tensor:
    """Read images into one tensor.

    Args:
        paths (Sequence[str | Path]): Image files.
        image_size (tuple[int, int]): Height and width that every image is resized to, as the detector sees it.
        max_images (int): Most images to keep in memory; of more, evenly spaced ones are taken. Defaults to ``1000``.
        min_images (int): Least images that will do. Defaults to ``2``.

    Returns:
        torch.Tensor: Images, ``uint8`` of shape ``(N, 3, H, W)``.

    Raises:
        ValueError: If there are too few images or one cannot be read.
    """
    if len(paths) < min_images:
        msg = (
            f"Training needs at least {min_images} normal image{'s' * (min_images > 1)}, but found {len(paths)}: check "
            "the folder of normal training images, or add more."
        )
        raise ValueError(msg)
    if len(paths) > max_images:
        logger.info("Of %d normal images %d are looked at.", len(paths), max_images)
        paths = [paths[index] for index in evenly(len(paths), max_images)]
    return torch.stack([load_image(path, image_size) for path in paths])


def load_image(path: str | Path, image_size: tuple[int, int] | None = None) -> torch.Tensor:
    """Read one image.

    Args:
        path (str | Path): Image file.
        image_size (tuple[int, int] | None): Height and width to resize to. ``None`` leaves it as it is.

    Returns:
        torch.Tensor: Image, ``uint8`` of shape ``(3, H, W)``.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
        if mode.startswith(("I", "F")):
            # anomalib would cut the values off at 255 without a word.
            msg = f"it holds more than 8 bits a channel (mode {mode}); save it with 8 bits"
            raise ValueError(msg)  # noqa: TRY301
        image = read_image(path, as_tensor=True)
    except (OSError, SyntaxError, ValueError) as error:
        msg = f"The image {path} cannot be read ({error}): mend it or take it out of the training images."
        raise ValueError(msg) from error
    # In whole numbers and 64 bit: else the last bit of a pixel, and with it every cache key, hangs on the number of
    # threads.
    pixels = (torch.as_tensor(image) * 255).round().double()
    if image_size is not None:
        pixels = functional.resize(pixels, list(image_size), antialias=False)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def native_aspect(paths: Sequence[str | Path]) -> float:
    """Proportions of images before anything resizes them.

    Args:
        paths (Sequence[str | Path]): Image files; of many, evenly spaced ones are looked at.

    Returns:
        float: Median of width over height.
    """
    sizes = []
    for index in evenly(len(paths), ASPECT_IMAGES).tolist():
        with Image.open(paths[index]) as image:
            sizes.append(image.width / image.height)
    return median(sizes)


def find_transform(transform: nn.Module | None, kind: type[Kind]) -> Kind | None:
    """Find a transform of a kind in another, however deep it is nested.

    Args:
        transform (nn.Module | None): Transform.
        kind (type[Kind]): Class to look for.

    Returns:
        Kind | None: The first of the kind, ``None`` if there is none.
    """
    if isinstance(transform, kind):
        return transform
    parts = (find_transform(part, kind) for part in getattr(transform, "transforms", ()))
    return next((part for part in parts if part is not None), None)


def warp(
    images: torch.Tensor,
    angles: torch.Tensor,
    scales: torch.Tensor,
    shifts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate and enlarge images around their centre, then move them; what is missing is mirrored in.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``.
        angles (torch.Tensor): Rotations in degrees, anti-clockwise, of shape ``(B,)``.
        scales (torch.Tensor): Factors of enlargement, below 1 to shrink, of shape ``(B,)``.
        shifts (torch.Tensor | None): Columns and rows to move by, of shape ``(B, 2)``. Defaults to ``None``.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    height, width = images.shape[-2:]
    centre = torch.tensor([[(width - 1) / 2, (height - 1) / 2]], device=images.device).expand(len(images), -1)
    matrices = get_rotation_matrix2d(centre, angles, scales[:, None].expand(-1, 2))
    if shifts is not None:
        matrices = torch.cat([matrices[:, :, :2], matrices[:, :, 2:] + shifts[:, :, None]], dim=2)
    return warp_affine(images, matrices, (height, width), padding_mode="reflection")


def randomly_posed(images: torch.Tensor, rotation: float, scale: float, shift: float) -> torch.Tensor:
    """Rotate, enlarge or shrink, and move each image by its own random amounts, in 32 bit.

    Args:
        images (torch.Tensor): Images of shape ``(B, C, H, W)``.
        rotation (float): Largest rotation in degrees, either way.
        scale (float): Largest change of size, as the logarithm of a factor.
        shift (float): Largest move, as a share of each side.

    Returns:
        torch.Tensor: Images of the same shape.
    """
    angles, scales, right, down = 2 * torch.rand(4, len(images), device=images.device) - 1
    shifts = shift * torch.stack([right * images.shape[-1], down * images.shape[-2]], dim=1)
    with torch.autocast(images.device.type, enabled=False):
        return warp(images, rotation * angles, (scale * scales).exp(), shifts)
