# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Canonical pose: parts that can lie in any orientation are turned to one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask, TVTensor, wrap

from .frames import find_frames
from .pose import TINY, Pose, estimate_pose, pixel_coordinates

# Frames of turned images are as large as 64ths of the image and multiples of the stride of common backbones.
PARTS = 64
MAX_PARTS = 2 * PARTS
STRIDE = 32
# The detector needs more than one position at its coarsest level.
MIN_STRIDES = 2
# Between the part and the border of its frame, in units of half the image's height.
FRAME_MARGIN = 0.1
# The ends of a part differ enough if nearly all images show this fraction of the usual difference.
MIN_CERTAINTY = 0.25
BATCH_SIZE = 16
# Dimensions of a batch.
BATCHED = 4


@dataclass(frozen=True)
class PoseFrame:
    """What an image of parts in canonical pose shows, and what tells the ends of a part apart.

    Attributes:
        rows (int): Height, in 64ths of that of the image of the part as it lies. Defaults to ``64``.
        columns (int): Width, in the same way. Defaults to ``64``.
        aspect (float): Width over height of what the image of the part as it lies shows, without padding.
            Defaults to ``1.0``.
        end (int | None): See :func:`estimate_pose`. Defaults to ``1``.
        margins (tuple[int, int, int, int]): Padding at the top, at the bottom, at the left and at the right, in pixels,
            which is not part of the image. Defaults to none.
    """

    rows: int = PARTS
    columns: int = PARTS
    aspect: float = 1.0
    end: int | None = 1
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)

    def as_numbers(self) -> list[float]:
        """All fields as numbers."""
        return [self.rows, self.columns, self.aspect, -1 if self.end is None else self.end, *self.margins]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> "PoseFrame":
        """Frame of :meth:`as_numbers`."""
        rows, columns, aspect, end, *margins = numbers
        top, bottom, left, right = (int(margin) for margin in margins)
        return cls(int(rows), int(columns), aspect, None if end < 0 else int(end), (top, bottom, left, right))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels, multiples of 32 from 64 on, for an image of a given size without its padding."""
        # In integers, since an export may not know the size yet.
        sides = ((height, self.rows), (width, self.columns))
        strides = ((side * part // PARTS + STRIDE - 1) // STRIDE for side, part in sides)
        rows, columns = (max(count, MIN_STRIDES) * STRIDE for count in strides)
        return rows, columns


class CanonicalPose(v2.Transform):
    """Turns parts that lie in any orientation to one pose: centred, along the rows, the same end to the right.

    It is part of :class:`DdpmSt`, which decides from the normal images whether to use it, and turns anomaly maps back.
    Every other model of anomalib can have it as a step of its pre-processor, after the resize; its anomaly maps are
    then those of the turned image, and so are the masks that they are compared with.

    The pose comes from the part's own area in front of a plain background: the principal axis of its second moments,
    the centre of its extent along this axis, and the end that is wider or heavier. All operations can be exported.
    Images are ``uint8``, or ``float`` with values in [0, 1], of shape ``(3, H, W)`` or ``(B, 3, H, W)``.

    Args:
        frame (PoseFrame | None): What turned images show. ``None`` keeps the size of the images.
            Defaults to ``None``.

    Example:
        >>> import torch
        >>> from anomalib.pre_processing import PreProcessor
        >>> from torchvision.transforms.v2 import Compose, Resize
        >>> pre_processor = PreProcessor(transform=Compose([Resize((256, 256)), CanonicalPose()]))
        >>> pre_processor(torch.rand(2, 3, 300, 300)).shape
        torch.Size([2, 3, 256, 256])
    """

    def __init__(self, frame: PoseFrame | None = None) -> None:
        super().__init__()
        self.frame = frame or PoseFrame()

    @classmethod
    def fit(cls, images: torch.Tensor, aspect: float | None = None) -> "CanonicalPose":
        """Find a frame that shows all parts, with a margin, and what tells their ends apart.

        Args:
            images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
            aspect (float | None): Width over height of what the images show. ``None`` takes it from their size.
                Defaults to ``None``.

        Returns:
            CanonicalPose: Transform.
        """
        height, width = images.shape[-2:]
        margins = torch.stack([find_frames(batch.float() / 255).amin(dim=0) for batch in images.split(BATCH_SIZE)])
        top, bottom, left, right = margins.amin(dim=0).tolist()
        stretch = 1.0 if aspect is None else aspect * height / width
        rows, columns = height - top - bottom, width - left - right
        frame = PoseFrame(aspect=stretch * columns / rows, end=None, margins=(top, bottom, left, right))
        pose = cls(frame).estimate_all(images)
        ends = pose.asymmetry.abs()
        certainty = ends.quantile(0.05, dim=0) / ends.mean(dim=0).clamp_min(TINY)
        end = int(certainty.argmax()) if float(certainty.max()) > MIN_CERTAINTY else None
        extents = (float(pose.half_width.max()), float(pose.length.max()) / 2 / frame.aspect)
        parts = [min(math.ceil(PARTS * (extent + FRAME_MARGIN)), MAX_PARTS) for extent in extents]
        return cls(replace(frame, rows=max(parts[0], 1), columns=max(parts[1], 1), end=end))

    def estimate_all(self, images: torch.Tensor) -> Pose:
        """Estimate poses batch by batch, in 64 bit.

        Args:
            images (torch.Tensor): Images, ``uint8`` of shape ``(N, 3, H, W)``.

        Returns:
            Pose: Poses.
        """
        poses = [self.estimate(batch.double() / 255) for batch in images.split(BATCH_SIZE)]
        return Pose(*(torch.cat(values) for values in zip(*poses, strict=True)))

    def estimate(self, images: torch.Tensor) -> Pose:
        """Estimate the poses of parts.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Returns:
            Pose: Poses.
        """
        return estimate_pose(self._content(images), self.frame.aspect, self.frame.end)

    def align(self, images: torch.Tensor, pose: Pose, padding_mode: str = "border") -> torch.Tensor:
        """Turn parts to the canonical pose.

        Args:
            images (torch.Tensor): Images or masks of shape ``(B, C, H, W)``.
            pose (Pose): Poses of the parts.
            padding_mode (str): What lies outside of the images, see ``torch.nn.functional.grid_sample``.
                Defaults to ``"border"``, which continues the background.

        Returns:
            torch.Tensor: Images of the size of the frame, ``(B, C, h, w)``.
        """
        images = self._content(images)
        height, width = images.shape[-2:]
        size = self.frame.size(height, width)
        columns, rows = pixel_coordinates(*size, images)
        # Pixels are as large as before: in units of half the image's height.
        columns, rows = columns * (size[1] / width * self.frame.aspect), rows * (size[0] / height)
        cosine, sine = pose.direction[:, 0, None, None], pose.direction[:, 1, None, None]
        x = columns * cosine - rows * sine + pose.centre[:, 0, None, None]
        y = columns * sine + rows * cosine + pose.centre[:, 1, None, None]
        return _sample(images, x / self.frame.aspect, y, padding_mode)

    def restore(self, maps: torch.Tensor, pose: Pose, size: Sequence[int]) -> torch.Tensor:
        """Turn maps back to where the parts lie in the images.

        Args:
            maps (torch.Tensor): Maps of turned images, of shape ``(B, C, h, w)``.
            pose (Pose): Poses of the parts.
            size (Sequence[int]): Height and width of the images.

        Returns:
            torch.Tensor: Maps of shape ``(B, C, *size)``; 0 for what the turned image did not show.
        """
        top, bottom, left, right = self.frame.margins
        height, width = size[0] - top - bottom, size[1] - left - right
        columns, rows = pixel_coordinates(height, width, maps)
        across, down = columns * self.frame.aspect - pose.centre[:, 0, None, None], rows - pose.centre[:, 1, None, None]
        cosine, sine = pose.direction[:, 0, None, None], pose.direction[:, 1, None, None]
        frame = self.frame.size(height, width)
        x = (across * cosine + down * sine) * (width / frame[1] / self.frame.aspect)
        y = (down * cosine - across * sine) * (height / frame[0])
        return functional.pad(_sample(maps, x, y, "zeros"), (left, right, top, bottom))

    def _content(self, images: torch.Tensor) -> torch.Tensor:
        """Images without their padding."""
        top, bottom, left, right = self.frame.margins
        return images[..., top : images.shape[-2] - bottom, left : images.shape[-1] - right]

    def turn(self, images: torch.Tensor) -> torch.Tensor:
        """Turn ``uint8`` images of shape ``(N, 3, H, W)``, in 64 bit, so that no thread count decides on a bit."""
        turned = []
        for batch in images.split(BATCH_SIZE):
            values = batch.double() / 255
            seen = self.align(values, self.estimate(values))
            turned.append((seen * 255).round(decimals=4).round().clamp(0, 255).to(torch.uint8))
        return torch.cat(turned)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Estimate the poses from the image among the inputs."""
        images = next(part for part in flat_inputs if isinstance(part, torch.Tensor) and not isinstance(part, Mask))
        batched = images.ndim == BATCHED
        values = _plain(images)
        return {"pose": self.estimate(_as_float(values if batched else values[None])), "batched": batched}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401
        """Turn images and masks to the canonical pose."""
        given = _plain(inpt)
        values = given if params["batched"] else given[None]
        if isinstance(inpt, Mask):
            # Masks may come without channels.
            channels = values if values.ndim == BATCHED else values[:, None]
            turned = (self.align(channels.float(), params["pose"], "zeros") > 0.5).to(given.dtype)
            turned = turned if values.ndim == BATCHED else turned[:, 0]
        else:
            turned = self.align(_as_float(values), params["pose"])
            turned = turned if given.is_floating_point() else (turned * 255).round().to(given.dtype)
        turned = turned if params["batched"] else turned[0]
        return wrap(turned, like=inpt) if isinstance(inpt, TVTensor) else turned


def _sample(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """Sample bilinearly at columns and rows in [-1, 1]."""
    grid = torch.stack([x, y], dim=3).to(images.dtype)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def _plain(values: torch.Tensor) -> torch.Tensor:
    """The same without the type of torchvision, which an export does not have and could not trace."""
    return values.as_subclass(torch.Tensor) if isinstance(values, TVTensor) else values


def _as_float(images: torch.Tensor) -> torch.Tensor:
    """Images of any type with values in [0, 1]."""
    return images if images.is_floating_point() else images.float() / 255
