# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Canonical pose: parts that can lie in any orientation are turned to one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask, TVTensor, wrap

from .frames import find_frames

# Side of the image that the pose is estimated on.
POSE_SIZE = 128
BORDER = 3
# Difference from the background, in units of the part's typical one, from which a pixel begins to belong to the part,
# and from which it wholly does; and the same for the pixels that tell what is typical.
PART_CONTRAST = (0.4, 0.7)
CERTAIN_CONTRAST = (0.6, 0.9)
# Brightness that is added before a logarithm, so that noise in the dark does not count.
DARKEST = 0.1
# Part of the neighbourhood that must belong to the part, too: specks do not count.
SPECK_SIZE = 5
SPECK_FRACTION = (0.2, 0.5)
# How far inside a pixel counts as being, in units of half the image's height and for each unit of weight below a half.
EXTENT_PENALTY = 4.0
# Smallest logarithm of a ratio of brightness that counts as a difference.
MIN_CONTRAST = 0.1
# Also a number in 16 bit, which constants of exported models may have.
TINY = 1e-6
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


class Pose(NamedTuple):
    """Pose of the part in each image.

    Coordinates have their origin at the centre of the image; half of its height is 1, and its width is measured in the
    same unit.

    Attributes:
        centre (torch.Tensor): Column and row of the centre of the part, of shape ``(B, 2)``.
        direction (torch.Tensor): Unit vector along the part, columns and rows, of shape ``(B, 2)``.
        length (torch.Tensor): Extent along this direction, of shape ``(B,)``.
        half_width (torch.Tensor): Largest distance of the part from the axis through its centre, of shape ``(B,)``.
        elongation (torch.Tensor): Standard deviation of the part's pixels along this direction, as a multiple of the
            one across it, of shape ``(B,)``.
        asymmetry (torch.Tensor): By how much the two ends differ, before the direction was chosen by it: third moment
            along the direction, with its sign changed, and difference in width; both without a unit, of shape
            ``(B, 2)``.
        fringe (torch.Tensor): Fraction of the border of the image that differs from the background, of shape ``(B,)``.
        area (torch.Tensor): Fraction of the image that the part covers, of shape ``(B,)``.
    """

    centre: torch.Tensor
    direction: torch.Tensor
    length: torch.Tensor
    half_width: torch.Tensor
    fringe: torch.Tensor
    elongation: torch.Tensor
    asymmetry: torch.Tensor
    area: torch.Tensor


def part_weights(images: torch.Tensor) -> torch.Tensor:
    """Find the part in front of a plain background; every operation can be exported.

    The brightness of the background may have a gradient, which the medians along the four sides of the image tell.
    A pixel belongs to the part if it differs from the background by a quarter to a half of what pixels of the part
    typically do, so that a change of exposure changes nothing.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

    Returns:
        torch.Tensor: Weights in [0, 1] of shape ``(B, S, S)``.
    """
    small = functional.interpolate(images, (POSE_SIZE, POSE_SIZE), mode="bilinear", align_corners=False)
    sides = (small[:, :, :, :BORDER], small[:, :, :, -BORDER:], small[:, :, :BORDER], small[:, :, -BORDER:])
    left, right, top, bottom = (_median(side.flatten(2))[:, :, None, None] for side in sides)
    columns, rows = _coordinates(POSE_SIZE, POSE_SIZE, images)
    reach = 1 - BORDER / POSE_SIZE  # of the middle of a side
    background = (left + right + top + bottom) / 4 + ((right - left) * columns + (bottom - top) * rows) / (2 * reach)
    # Light multiplies: in logarithms it adds, and a shadow weighs no more on a bright background than on a dark one.
    difference = ((small.clamp_min(0) + DARKEST) / (background.clamp_min(0) + DARKEST)).log().abs().amax(dim=1)
    typical = difference.square().mean(dim=(1, 2)) / difference.mean(dim=(1, 2)).clamp_min(TINY)
    certain = _ramp(difference / typical.clamp_min(MIN_CONTRAST)[:, None, None], *CERTAIN_CONTRAST)
    typical = (difference * certain).mean(dim=(1, 2)) / certain.mean(dim=(1, 2)).clamp_min(TINY)
    weights = _ramp(difference / typical.clamp_min(MIN_CONTRAST)[:, None, None], *PART_CONTRAST)
    around = functional.avg_pool2d(weights[:, None], SPECK_SIZE, 1, SPECK_SIZE // 2, count_include_pad=False)[:, 0]
    return weights * _ramp(around, *SPECK_FRACTION)


def estimate_pose(images: torch.Tensor, aspect: float = 1.0, end: int | None = 1) -> Pose:
    """Estimate the pose of the part in each image from the moments of its area.

    Args:
        images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].
        aspect (float): Width over height of what the images show. Defaults to ``1.0``.
        end (int | None): What tells the two ends of the part apart: ``0`` for the third moment along the part, ``1``
            for its width. ``None`` if nothing does; then the part is turned by a quarter at most. Defaults to ``1``.

    Returns:
        Pose: Poses.
    """
    weights = part_weights(images)
    columns, rows = _coordinates(POSE_SIZE, POSE_SIZE, images)
    columns = columns * aspect

    def mean(values: torch.Tensor) -> torch.Tensor:
        return ((values * weights).sum(dim=(1, 2)) / mass)[:, None, None]

    mass = weights.sum(dim=(1, 2)).clamp_min(TINY)
    right, down = columns - mean(columns.expand_as(weights)), rows - mean(rows.expand_as(weights))
    xx, yy, xy = (mean(product)[:, 0, 0] for product in (right * right, down * down, right * down))
    direction, variances = _principal_axis(xx, yy, xy)
    cosine, sine = direction[:, 0, None, None], direction[:, 1, None, None]
    along, across = right * cosine + down * sine, down * cosine - right * sine
    # Not a threshold, so that a rounding error cannot move the extent by a pixel.
    penalty = EXTENT_PENALTY * (0.5 - weights).clamp_min(0)
    (last, first), (lower, upper) = (
        ((axis - penalty).amax(dim=(1, 2)), (axis + penalty).amin(dim=(1, 2))) for axis in (along, across)
    )
    half = ((last + first) / 2)[:, None, None]
    # Soft halves: the width on either side of the middle.
    side = ((along - half) / ((last - first)[:, None, None] / 2).clamp_min(TINY)).clamp(-1, 1)
    # The heavier end is nearer to the centroid: positive if it comes last.
    skewness = -mean(along**3)[:, 0, 0] / variances[:, 0].clamp_min(TINY) ** 1.5
    widening = mean(across**2 * side)[:, 0, 0] / variances[:, 1].clamp_min(TINY)
    asymmetry = torch.stack([skewness, widening], dim=1)
    if end is not None:
        turn = torch.where(asymmetry[:, end] < 0, -1.0, 1.0).to(direction.dtype)[:, None]
    centroid = torch.stack([mean(columns.expand_as(weights)), mean(rows.expand_as(weights))], dim=1)[:, :, 0, 0]
    return Pose(
        centre=centroid + direction * (last + first)[:, None] / 2,
        direction=direction if end is None else direction * turn,
        length=last - first,
        half_width=torch.maximum(lower, -upper),
        fringe=_fringe(weights),
        elongation=(variances[:, 0] / variances[:, 1].clamp_min(TINY)).sqrt(),
        asymmetry=asymmetry,
        area=mass / weights[0].numel(),
    )


def _principal_axis(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Direction of shape ``(B, 2)`` and variances along and across it, of shape ``(B, 2)``, of second moments."""
    difference = xx - yy
    # Where there is no axis, the part stays as it is.
    certain = difference.abs() + TINY
    # Scaled, as some runtimes take the square root of a tiny number for 0.
    largest = torch.maximum(certain, 2 * xy.abs())
    spread = largest * ((certain / largest).square() + (2 * xy / largest).square()).sqrt()
    larger = ((1 + certain / spread) / 2).sqrt()  # at least sqrt(0.5), so that the division is exact
    smaller = xy.abs() / (spread * larger)
    sign = torch.where(xy < 0, -1.0, 1.0).to(xy.dtype)
    lies = difference >= 0
    cosine, sine = torch.where(lies, larger, smaller), torch.where(lies, smaller, larger) * sign
    total = xx + yy
    return torch.stack([cosine, sine], dim=1), torch.stack([(total + spread) / 2, (total - spread) / 2], dim=1)


def _fringe(weights: torch.Tensor) -> torch.Tensor:
    """Mean weight along the border of the image, of shape ``(B,)``."""
    sides = (weights[:, :BORDER], weights[:, -BORDER:], weights[:, :, :BORDER], weights[:, :, -BORDER:])
    return torch.cat([side.flatten(1) for side in sides], dim=1).mean(dim=1)


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
        columns, rows = _coordinates(*size, images)
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
        columns, rows = _coordinates(height, width, maps)
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


def _coordinates(height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns and rows of the pixels' centres in [-1, 1], of shapes ``(1, 1, W)`` and ``(1, H, 1)``."""
    columns, rows = (
        (2 * torch.arange(length, device=like.device, dtype=like.dtype) + 1) / length - 1 for length in (width, height)
    )
    return columns[None, None, :], rows[None, :, None]


def _plain(values: torch.Tensor) -> torch.Tensor:
    """The same without the type of torchvision, which an export does not have and could not trace."""
    return values.as_subclass(torch.Tensor) if isinstance(values, TVTensor) else values


def _as_float(images: torch.Tensor) -> torch.Tensor:
    """Images of any type with values in [0, 1]."""
    return images if images.is_floating_point() else images.float() / 255


def _median(values: torch.Tensor) -> torch.Tensor:
    """Median over the last dimension; unlike ``torch.median``, it can be exported."""
    return values.topk(values.shape[-1] // 2, dim=-1).values[..., -1]


def _ramp(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Linear from 0 to 1 between two values."""
    return ((values - low) / (high - low)).clamp(0, 1)
