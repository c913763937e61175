# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of when parts are turned to one pose."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose
from anomalib_ddpm_st.detector.pose_selection import MIN_IMAGES, select_pose

COUNT = 24


def features(images: torch.Tensor) -> list[torch.Tensor]:
    """Features that are fast to compute: patches of pixels, which know their direction."""
    patches = functional.unfold(images.mean(dim=1, keepdim=True) - 0.5, 8, stride=4)
    side = images.shape[-2] // 4 - 1
    level = patches.reshape(len(images), 64, side, -1)
    return [level, level, level]


def draw(angle: float, centre: tuple[float, float], size: tuple[float, float], head: float) -> torch.Tensor:
    """A bar with a head at one end and a notch, ``uint8`` of shape ``(3, 96, 96)``."""
    rows, columns = torch.meshgrid(*(((torch.arange(96) * 2 + 1) / 96 - 1),) * 2, indexing="ij")
    right, down = columns - centre[0], rows - centre[1]
    cosine, sine = math.cos(angle), math.sin(angle)
    along, across = right * cosine + down * sine, down * cosine - right * sine
    bar = (along.abs() < size[0] / 2) & (across.abs() < size[1] / 2)
    end = (along > size[0] / 2 - 0.15) & (along < size[0] / 2) & (across.abs() < size[1] / 2 + head)
    notch = (along + 0.2).abs() < 0.05
    image = torch.where((bar | end) & ~(notch & (across > 0)), 0.25, 0.8)
    return ((image + 0.01 * torch.randn(3, 96, 96)).clamp(0, 1) * 255).to(torch.uint8)


def parts(
    turned: bool = True, moved: bool = True, size: tuple[float, float] = (1.2, 0.25), head: float = 0.12
) -> torch.Tensor:
    """Images of a part."""
    images = []
    for _ in range(COUNT):
        angle = float(torch.rand(())) * 2 * math.pi if turned else 0.02 * float(torch.randn(()))
        x, y = (0.25 * (torch.rand(2) - 0.5) if moved else torch.zeros(2)).tolist()
        images.append(draw(angle, (x, y), size, head))
    return torch.stack(images)


def surface() -> torch.Tensor:
    """Images of a surface."""
    coarse = functional.interpolate(torch.rand(COUNT, 3, 24, 24), (96, 96), mode="bilinear")
    return (coarse * 255).to(torch.uint8)


def some_surfaces() -> torch.Tensor:
    """Parts among which are two images of a surface."""
    return torch.cat([parts()[:-2], surface()[:2]])


def test_parts_in_any_pose_are_turned() -> None:
    """The poses differ and turned parts are alike; the frame is smaller than the image."""
    canonical, reason = select_pose(parts(), 1.0, features)
    assert canonical is not None
    assert canonical.frame.end is not None
    assert canonical.frame.rows < canonical.frame.columns
    assert "more alike when turned" in reason


def test_ends_that_are_alike_are_said() -> None:
    """Then parts are turned by a quarter at most, and the reason says so."""
    images = torch.stack([draw(0.26 * index, (0, 0), (1.2, 0.25), 0.0) for index in range(COUNT)])
    # Without the notch both ends are alike.
    images[images < 200] = 60
    rows, columns = torch.meshgrid(*(((torch.arange(96) * 2 + 1) / 96 - 1),) * 2, indexing="ij")
    for index, image in enumerate(images):
        angle = 0.26 * index
        along = columns * math.cos(angle) + rows * math.sin(angle)
        across = rows * math.cos(angle) - columns * math.sin(angle)
        image[:, (along.abs() < 0.6) & (across.abs() < 0.125)] = 60
    canonical, reason = select_pose(images, 1.0, features)
    assert canonical is not None
    assert canonical.frame.end is None
    assert "by a quarter at most" in reason


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (lambda: parts(turned=False, moved=False), "all parts lie alike"),
        (lambda: parts(size=(0.8, 0.8), head=0.0), "elongated enough"),
        (surface, "plain background"),
        (some_surfaces, "22 of 24 images show a part"),
        (lambda: torch.full((COUNT, 3, 96, 96), 128, dtype=torch.uint8), "plain background"),
        (lambda: parts()[: MIN_IMAGES - 1], "too few"),
    ],
    ids=["fixed", "square", "surface", "some surfaces", "flat", "few"],
)
def test_everything_else_stays_as_it_lies(images: Callable[[], torch.Tensor], reason: str) -> None:
    """Each with the reason."""
    canonical, given = select_pose(images(), 1.0, features)
    assert canonical is None
    assert reason in given


def test_features_decide() -> None:
    """If turning brings parts no nearer to each other for the teacher, they stay as they lie."""
    canonical, reason = select_pose(parts(), 1.0, lambda images: [torch.ones(len(images), 8, 6, 6)] * 3)
    assert canonical is None
    assert "no more alike" in reason


def test_few_parts_that_differ_do_not_matter() -> None:
    """One odd image in 24 does not keep the others from being turned."""
    images = parts()
    images[5] = 200
    assert isinstance(select_pose(images, 1.0, features)[0], CanonicalPose)
