# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the input size that the smallest defect needs."""

import math
from typing import Any

import pytest

from anomalib_ddpm_st.core.input_size import COVERED, MIN_PIXELS, MULTIPLE, InputSize, choose_input_size

NATIVE = (1200, 1600)


def covered(size: InputSize, native: tuple[int, int], defect: float) -> float:
    """Pixels of the input that a defect covers."""
    return defect * min(size.height / native[0], size.width / native[1])


@pytest.mark.parametrize("native", [(1200, 1600), (900, 900), (2000, 500)])
@pytest.mark.parametrize("defect", [COVERED, 1.7 * COVERED, 50, 133])
def test_the_defect_covers_enough_pixels(native: tuple[int, int], defect: float) -> None:
    """At no more than one step above the size needed, and at the aspect of the images."""
    size = choose_input_size([native], defect)
    assert covered(size, native, defect) >= COVERED
    for side, original in zip(size.image_size, native, strict=True):
        assert side % MULTIPLE == 0
        assert side - MULTIPLE < original * max(COVERED / defect, math.sqrt(MIN_PIXELS / math.prod(native)))
    assert "because of" not in size.reason


def test_the_choice_follows_the_defect() -> None:
    sizes = [choose_input_size([NATIVE], defect) for defect in (16, 32, 64, 128)]
    pixels = [math.prod(size.image_size) for size in sizes]
    assert pixels == sorted(pixels, reverse=True)
    assert len(set(pixels)) == 4


@pytest.mark.parametrize("native", [(1200, 1600), (277.5, 324.5)])
def test_never_above_the_original_resolution(native: tuple[float, float]) -> None:
    """But for the next multiple; then the reason says that the defect covers too few pixels."""
    size = choose_input_size([native], 2)
    assert all(original <= side < original + MULTIPLE for side, original in zip(size.image_size, native, strict=True))
    assert f"not {COVERED}, because of the original resolution" in size.reason


def test_large_defects_leave_enough_pixels() -> None:
    size = choose_input_size([NATIVE], 1500)
    assert MIN_PIXELS <= math.prod(size.image_size) < 2 * MIN_PIXELS


def test_budget() -> None:
    size = choose_input_size([NATIVE], 16, max_pixels=4 * 256**2)
    assert 0.85 * 4 * 256**2 <= math.prod(size.image_size) <= 4 * 256**2
    assert size.width / size.height == pytest.approx(4 / 3, rel=0.1)
    assert f"not {COVERED}, because of the budget" in size.reason
    assert choose_input_size([NATIVE], 100, max_pixels=4 * 256**2) == choose_input_size([NATIVE], 100)


def test_millimetres() -> None:
    assert choose_input_size([NATIVE], 2.0, pixel_size=0.05) == choose_input_size([NATIVE], 40)


def test_images_of_several_sizes() -> None:
    """The median counts, and the reason says if the defect nearly vanishes in the largest image."""
    sizes = [(1200, 1600), (1200, 1600), (3600, 4800)]
    size = choose_input_size(sizes, 40)
    assert size.image_size == choose_input_size([NATIVE], 40).image_size
    assert "in the largest image" in size.reason
    assert "in the largest image" not in choose_input_size(sizes[:2], 40).reason


def test_in_words() -> None:
    assert str(InputSize(480, 640, "")) == "480 x 640"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, "There are no images to choose an input size for"),
        ({"smallest_defect": 0}, "smallest_defect must be a finite number above 0, got 0"),
        ({"smallest_defect": -3}, "smallest_defect must be a finite number above 0, got -3"),
        ({"smallest_defect": None}, "smallest_defect must be a finite number above 0, got None"),
        ({"smallest_defect": None, "pixel_size": 0.1}, "pixel_size says nothing without smallest_defect"),
        ({"pixel_size": 0.0}, "pixel_size must be a finite number above 0, got 0.0"),
        ({"pixel_size": math.nan}, "pixel_size must be a finite number above 0, got nan"),
        ({"smallest_defect": 1601}, r"The smallest defect \(1601 pixels\) is larger than the images \(1200 x 1600"),
        ({"max_pixels": 100}, "The budget allows for 100 pixels of an image, but the detector needs at least 16384"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        choose_input_size(**{"sizes": [NATIVE], "smallest_defect": 40, **arguments})
    assert "\n" not in str(error.value)
