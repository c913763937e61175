# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Reading of normal images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from anomalib.data.utils import read_image
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=nn.Module)
# Height and width in pixels that images are resized to unless another size is given.
DEFAULT_IMAGE_SIZE = (256, 256)
MIN_IMAGES = 2
MAX_IMAGES = 1000
ASPECT_IMAGES = 32


def evenly_spaced(count: int, most: int) -> torch.Tensor:
    """Choose evenly spaced items.

    Args:
        count (int): Number of items.
        most (int): Largest number of items to choose.

    Returns:
        torch.Tensor: At most ``most`` indices.
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
        image_size (tuple[int, int]): Height and width that every image is resized to, in pixels.
        max_images (int): Largest number of images to read; of more, evenly spaced ones are read.
            Defaults to ``1000``.
        min_images (int): Smallest number of images that is enough. Defaults to ``2``.

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
        logger.info("Using %d of %d normal images.", max_images, len(paths))
        paths = [paths[index] for index in evenly_spaced(len(paths), max_images)]
    return torch.stack([load_image(path, image_size) for path in paths])


def load_image(path: str | Path, image_size: tuple[int, int] | None = None) -> torch.Tensor:
    """Read one image.

    Args:
        path (str | Path): Image file.
        image_size (tuple[int, int] | None): Height and width to resize to. ``None`` keeps its size.

    Returns:
        torch.Tensor: Image, ``uint8`` of shape ``(3, H, W)``.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
        if mode.startswith(("I", "F")):
            # anomalib would silently clip the values at 255.
            msg = f"it has more than 8 bits per channel (mode {mode}); save it with 8 bits"
            raise ValueError(msg)  # noqa: TRY301
        image = read_image(path, as_tensor=True)
    except (OSError, SyntaxError, ValueError) as error:
        msg = f"The image {path} cannot be read ({error}): repair it or remove it from the training images."
        raise ValueError(msg) from error
    # In whole numbers and 64 bit, or the last bit of a pixel, and with it every cache key, would depend on the thread
    # count.
    pixels = (torch.as_tensor(image) * 255).round().double()
    if image_size is not None:
        pixels = functional.resize(pixels, list(image_size), antialias=False)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def native_aspect(paths: Sequence[str | Path]) -> float:
    """Aspect ratio of images before they are resized.

    Args:
        paths (Sequence[str | Path]): Image files; of many, evenly spaced ones are read.

    Returns:
        float: Median of width over height.
    """
    sizes = []
    for index in evenly_spaced(len(paths), ASPECT_IMAGES).tolist():
        with Image.open(paths[index]) as image:
            sizes.append(image.width / image.height)
    return median(sizes)


def find_transform(transform: nn.Module | None, kind: type[Kind]) -> Kind | None:
    """Find a transform of a given class in another transform, however deeply it is nested.

    Args:
        transform (nn.Module | None): Transform.
        kind (type[Kind]): Class to look for.

    Returns:
        Kind | None: The first one found, ``None`` if there is none.
    """
    if isinstance(transform, kind):
        return transform
    parts = (find_transform(part, kind) for part in getattr(transform, "transforms", ()))
    return next((part for part in parts if part is not None), None)
