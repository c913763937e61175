# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Transforms of pre-processors."""

from typing import TypeVar

from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import Resize

Kind = TypeVar("Kind", bound=nn.Module)


def make_resize(image_size: tuple[int, int] | None) -> PreProcessor | None:
    """Pre-processor that resizes and does nothing else.

    Args:
        image_size (tuple[int, int] | None): Height and width in pixels. ``None`` keeps the size of images.

    Returns:
        PreProcessor | None: Pre-processor, ``None`` without a size.
    """
    return None if image_size is None else PreProcessor(transform=Resize(list(image_size), antialias=False))


def flatten_transform(transform: nn.Module | None) -> list[nn.Module]:
    """List the transforms that a transform is composed of, in their order, however deeply they are nested.

    Args:
        transform (nn.Module | None): Transform.

    Returns:
        list[nn.Module]: Transforms; the transform itself if it is not composed.
    """
    if transform is None:
        return []
    parts = getattr(transform, "transforms", None)
    return [transform] if parts is None else [step for part in parts for step in flatten_transform(part)]


def find_transform(transform: nn.Module | None, kind: type[Kind]) -> Kind | None:
    """Find a transform of a given class in another transform.

    Args:
        transform (nn.Module | None): Transform.
        kind (type[Kind]): Class to look for.

    Returns:
        Kind | None: The first one found, ``None`` if there is none.
    """
    return next((step for step in flatten_transform(transform) if isinstance(step, kind)), None)
