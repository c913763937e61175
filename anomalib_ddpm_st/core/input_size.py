# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The input size that the smallest defect of interest needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .config import check_positive
from .images import DEFAULT_IMAGE_SIZE

# Sides are multiples of this, so that every level of teacher and DDPM has whole pixels.
MULTIPLE = 32
# Pixels of the input that the longer side of the smallest defect covers, see benchmarks/README.md.
COVERED = 16
# With fewer pixels, the coarsest level of the teacher has hardly any features left.
MIN_PIXELS = 128**2
# Largest number of pixels unless another is given, in units of 256 x 256.
MAX_COST = 4.0


@dataclass(frozen=True)
class InputSize:
    """Size that images are resized to, and why.

    Attributes:
        height (int): Height in pixels.
        width (int): Width in pixels.
        reason (str): Why this size.
    """

    height: int
    width: int
    reason: str

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, as ``configure_pre_processor`` takes them."""
        return self.height, self.width

    def __str__(self) -> str:
        """Height and width in words."""
        return f"{self.height} x {self.width}"


def defect_pixels(smallest_defect: float, pixel_size: float | None = None) -> float:
    """Size of the smallest defect in pixels of the original images.

    Args:
        smallest_defect (float): Longer side of the smallest defect that matters, in pixels of the original images, or
            in mm with ``pixel_size``.
        pixel_size (float | None): Side of a pixel of the original images in mm. Defaults to ``None``.

    Returns:
        float: Size in pixels.

    Raises:
        ValueError: If a size is not above 0, or only ``pixel_size`` is given.
    """
    if smallest_defect is None and pixel_size is not None:
        msg = "pixel_size says nothing without smallest_defect: give smallest_defect in mm, too."
        raise ValueError(msg)
    check_positive("smallest_defect", smallest_defect)
    if pixel_size is None:
        return float(smallest_defect)
    check_positive("pixel_size", pixel_size)
    return smallest_defect / pixel_size


def budget_pixels(max_cost: float) -> float:
    """Number of pixels of an input that costs so many times what one of 256 x 256 pixels does.

    Args:
        max_cost (float): Cost in units of that of 256 x 256 pixels.

    Returns:
        float: Number of pixels.

    Raises:
        ValueError: If the cost is not above 0.
    """
    check_positive("max_cost", max_cost)
    return max_cost * math.prod(DEFAULT_IMAGE_SIZE)


def choose_input_size(
    sizes: Sequence[tuple[float, float]],
    smallest_defect: float,
    pixel_size: float | None = None,
    max_pixels: float = math.inf,
) -> InputSize:
    """Choose the size that images are resized to by the smallest defect that matters.

    Its longer side covers at least ``COVERED`` pixels of the resized images, at their median aspect, unless that takes
    more than the original resolution or ``max_pixels``.

    Args:
        sizes (Sequence[tuple[float, float]]): Heights and widths of the original images in pixels.
        smallest_defect (float): Longer side of the smallest defect that matters, in pixels of the original images, or
            in mm with ``pixel_size``.
        pixel_size (float | None): Side of a pixel of the original images in mm. Defaults to ``None``.
        max_pixels (float): Largest number of pixels of a resized image, such as a time budget allows.
            Defaults to no bound.

    Returns:
        InputSize: Size, both sides multiples of 32 pixels.

    Raises:
        ValueError: If there are no images, a size is not above 0, the defect is larger than the images, or
            ``max_pixels`` are too few for the detector.

    Example:
        >>> choose_input_size([(1200, 1600)], smallest_defect=40).image_size
        (480, 640)
        >>> choose_input_size([(1200, 1600)], smallest_defect=2.0, pixel_size=0.05).image_size
        (480, 640)
    """
    defect = defect_pixels(smallest_defect, pixel_size)
    if not sizes:
        msg = "There are no images to choose an input size for: check the folder of normal images."
        raise ValueError(msg)
    height, width = (median(side) for side in zip(*sizes, strict=True))
    if defect > max(height, width):
        msg = (
            f"The smallest defect ({defect:g} pixels) is larger than the images ({height:g} x {width:g} pixels): give "
            "smallest_defect in pixels of the original images, or in mm with pixel_size in mm."
        )
        raise ValueError(msg)
    if max_pixels < MIN_PIXELS:
        msg = (
            f"The budget allows for {max(0, math.floor(max_pixels))} pixels of an image, but the detector needs at "
            f"least {MIN_PIXELS}: raise the budget."
        )
        raise ValueError(msg)
    needed, least = COVERED / defect, math.sqrt(MIN_PIXELS / (height * width))
    scale = min(max(needed, least), 1.0)
    rows, columns = (_round_up(side * scale) for side in (height, width))
    limit = "the original resolution"
    if rows * columns > max_pixels:
        rows, columns = _fit((height, width), max_pixels)
        limit = "the budget"
    covered = defect * min(rows / height, columns / width)
    reason = f"a defect of {defect:g} pixels covers {covered:.3g} pixels of the input"
    if covered < COVERED - 0.5:
        reason += f", not {COVERED}, because of {limit}"
    least_covered = defect * min(min(rows / size[0], columns / size[1]) for size in sizes)
    if least_covered < covered / 2:
        reason += f", and only {least_covered:.2g} in the largest image"
    return InputSize(rows, columns, reason)


def _round_up(side: float) -> int:
    """Next multiple, and not the one after it because of a rounding error."""
    return max(1, math.ceil(round(side / MULTIPLE, 3))) * MULTIPLE


def _fit(size: tuple[float, float], max_pixels: float) -> tuple[int, int]:
    """Largest multiples of about the same aspect that have no more than a number of pixels."""
    scale = math.sqrt(max_pixels / (size[0] * size[1]))
    rows, columns = (max(1, math.floor(side * scale / MULTIPLE)) * MULTIPLE for side in size)
    return rows, columns
