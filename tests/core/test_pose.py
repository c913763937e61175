# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the pose of parts."""

import pytest
import torch
from torchvision.transforms.v2 import Resize

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose
from anomalib_ddpm_st.core.pose import estimate_pose, part_weights

from .conftest import HEAD, LENGTH, angle_between, draw


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("angle", [0, 1, 37, 44, 46, 89, 90, 91, 135, 180, 201, 270, 300])
def test_pose_of_a_part(angle: int, end: int) -> None:
    """Direction, centre and extent of a part at any angle; its head is always at the same end."""
    image, _ = draw(angle, (0.1, -0.15))
    pose = estimate_pose(image[None], end=end)
    assert angle_between(pose.direction[0], angle) < 1.0
    assert torch.allclose(pose.centre[0], torch.tensor([0.1, -0.15]), atol=0.03)
    assert pose.length.item() == pytest.approx(LENGTH, abs=0.06)
    assert pose.half_width.item() == pytest.approx(HEAD / 2, abs=0.06)
    assert pose.elongation > 2
    assert pose.fringe < 0.01
    assert pose.asymmetry[0, end] != 0


def test_ends_that_are_alike() -> None:
    """Without an end that differs, parts are turned by a quarter at most."""
    for angle in range(0, 360, 20):
        image, _ = draw(angle, keep=(-0.45, 0.45))
        direction = estimate_pose(image[None], end=None).direction[0]
        assert direction[0] >= 0
        assert min(angle_between(direction, angle), angle_between(direction, angle + 180)) < 1.0


@pytest.mark.parametrize(("part", "background"), [(0.3, 0.8), (0.9, 0.05), (0.1, 0.4), (0.75, 0.45)])
def test_light_changes_no_pose(part: float, background: float) -> None:
    """Exposure, gamma and a gradient over the background leave the pose as it is."""
    image, _ = draw(30, (0.1, 0.1), part=part, background=background)
    gradient = 1 + 0.3 * torch.linspace(-1, 1, 128)
    changed = [image * 0.75, (image * 1.25).clamp(0, 1), image**0.67, image**1.5, (image * gradient).clamp(0, 1)]
    changed.append((image * gradient[:, None]).clamp(0, 1))
    pose = estimate_pose(image[None])
    others = estimate_pose(torch.stack(changed))
    for direction, centre in zip(others.direction, others.centre, strict=True):
        assert angle_between(direction, 30) < 1.5
        assert torch.allclose(centre, pose.centre[0], atol=0.04)


def test_specks_do_not_count() -> None:
    """Dust on the background has no weight and does not move the extent."""
    image, _ = draw(30)
    dirty = image.clone()
    dirty[:, 5:7, 5:7], dirty[:, 120:122, 100:102] = 0.3, 0.3
    clean, other = estimate_pose(image[None]), estimate_pose(dirty[None])
    assert part_weights(dirty[None])[0, :10, :10].max() < 0.1
    assert torch.allclose(clean.centre, other.centre, atol=0.02)
    assert torch.allclose(clean.length, other.length, atol=0.03)


def test_stretched_images() -> None:
    """A part in images that were resized to another aspect is turned without being sheared."""
    lengths = []
    for angle in (0, 30, 60, 90):
        image, _ = draw(angle, size=(128, 256))
        squeezed = Resize((128, 128), antialias=True)(image)
        pose = estimate_pose(squeezed[None], aspect=2.0)
        assert angle_between(pose.direction[0], angle) < 2.0
        lengths.append(pose.length.item())
    assert max(lengths) - min(lengths) < 0.1


def test_poses_do_not_depend_on_the_batch() -> None:
    """Images in a batch have the poses that they have alone; in 32 bit nearly those of 64 bit."""
    images = torch.stack([draw(angle)[0] for angle in (10, 100, 200)])
    together = estimate_pose(images)
    pixels = (images * 255).round().to(torch.uint8)
    exact = CanonicalPose().estimate_all(pixels)
    for index in range(3):
        alone = estimate_pose(images[index : index + 1])
        torch.testing.assert_close(alone.centre[0], together.centre[index])
        torch.testing.assert_close(alone.direction[0], together.direction[index])
    rounded = estimate_pose(pixels.float() / 255)
    torch.testing.assert_close(rounded.direction, exact.direction.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(rounded.centre, exact.centre.float(), atol=1e-5, rtol=0)
