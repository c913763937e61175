# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the canonical pose of parts."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import Compose, Pad, Resize
from torchvision.tv_tensors import Image, Mask

from anomalib_ddpm_st.core.pose import (
    PARTS,
    STRIDE,
    CanonicalPose,
    PoseFrame,
    estimate_pose,
    part_weights,
)

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


DEFECTIVE = {
    "cut": lambda: draw(40, keep=(-0.4, 1.0))[0],
    "bent": lambda: torch.minimum(draw(40, keep=(-1.0, 0.0))[0], draw(70, keep=(0.0, 1.0))[0]),
    "doubled": lambda: torch.minimum(draw(40, (0.1, 0.1))[0], draw(40, (-0.2, 0.2))[0]),
    "two": lambda: torch.minimum(draw(0, (0, -0.6))[0], draw(90, (-0.6, 0.2), keep=(-0.4, 0.4))[0]),
    "missing": lambda: 0.8 + 0.01 * torch.randn(3, 128, 128),
    "touching": lambda: draw(10, (0.6, 0.2))[0],
    "flat": lambda: torch.full((3, 128, 128), 0.5),
    "black": lambda: torch.zeros(3, 128, 128),
    "white": lambda: torch.ones(3, 128, 128),
    "noise": lambda: torch.rand(3, 128, 128),
}


@pytest.mark.parametrize("name", DEFECTIVE)
@pytest.mark.parametrize("end", [None, 0, 1])
def test_any_image_has_a_pose(name: str, end: int | None) -> None:
    """Whatever is wrong with the part, everything stays finite, and what is turned comes back to its place."""
    image = DEFECTIVE[name]()[None].clamp(0, 1)
    canonical = CanonicalPose(PoseFrame(PARTS, 2 * PARTS, 1.0, end))
    pose = canonical.estimate(image)
    for values in pose:
        assert values.isfinite().all()
    assert pose.direction.norm(dim=1).item() == pytest.approx(1, abs=1e-5)
    turned = canonical.align(image, pose)
    assert turned.shape == (1, 3, 128, 256)
    shown = canonical.restore(torch.ones_like(turned), pose, (128, 128))
    restored = canonical.restore(turned, pose, (128, 128))
    seen = (shown > 0.999).expand_as(image)
    assert seen.any()
    if name != "noise":  # interpolated twice
        assert (restored - image)[seen].abs().mean() < 0.02


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (256, 192)])
@pytest.mark.parametrize("angle", [0, 25, 130, 250])
def test_parts_are_turned_and_maps_come_back(angle: int, size: tuple[int, int]) -> None:
    """The turned part is centred, along the rows with its head to the right; a map lands on the right pixels."""
    image, head = draw(angle, (0.05, -0.1), size)
    canonical = CanonicalPose(PoseFrame(40, 70, size[1] / size[0]))
    pose = canonical.estimate(image[None])
    turned = canonical.align(image[None], pose)
    assert turned.shape[-2:] == canonical.frame.size(*size)
    # As large as before: in units of half the image's height.
    rows, columns = (turned[0].mean(dim=0) < 0.55).nonzero(as_tuple=True)
    assert columns.float().mean().sub(turned.shape[-1] / 2).abs() < 0.12 * size[0]
    assert (columns.max() - columns.min()).item() / size[0] * 2 == pytest.approx(LENGTH, abs=0.08)
    assert (rows.max() - rows.min()).item() / size[0] * 2 == pytest.approx(HEAD, abs=0.08)
    right = columns > columns.float().quantile(0.9)
    assert (rows[right].max() - rows[right].min()).item() / size[0] * 2 == pytest.approx(HEAD, abs=0.08)
    marked = canonical.align(head[None, None].float(), pose, "zeros")
    back = canonical.restore(marked, pose, size)[0, 0] > 0.5
    overlap = (back & head).sum() / (back | head).sum()
    assert overlap > 0.85


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


def test_frame_shows_all_parts() -> None:
    """The frame holds the longest part with a margin, even where it did not fit the image's width."""
    images = torch.stack([draw(angle)[0] for angle in range(0, 360, 24)])
    canonical = CanonicalPose.fit((images * 255).to(torch.uint8))
    frame = canonical.frame
    assert frame.end is not None
    assert frame.rows / PARTS == pytest.approx(HEAD / 2 + 0.1, abs=0.06)
    assert frame.columns / PARTS == pytest.approx(LENGTH / 2 + 0.1, abs=0.06)
    assert all(side % STRIDE == 0 for side in frame.size(130, 200))
    assert frame == PoseFrame.from_numbers(torch.tensor(frame.as_numbers()).tolist())
    alike = torch.stack([draw(angle, keep=(-0.45, 0.45))[0] for angle in range(0, 360, 24)])
    frame = CanonicalPose.fit((alike * 255).to(torch.uint8)).frame
    assert frame.end is None
    assert frame == PoseFrame.from_numbers(frame.as_numbers())


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


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_step_of_a_pre_processor(batched: bool, dtype: torch.dtype) -> None:
    """Image and mask are turned together and keep their types; a mask keeps its pixels."""
    image, head = draw(130, (0.1, 0.1), (140, 140))
    image = (image * 255).round().to(torch.uint8) if dtype == torch.uint8 else image
    given = (Image(image[None] if batched else image), Mask(head[None] if batched else head))
    transform = Compose([Resize((128, 128), antialias=True), CanonicalPose()])
    turned, mask = transform(*given)
    assert isinstance(turned, Image)
    assert isinstance(mask, Mask)
    assert turned.dtype == dtype
    assert mask.dtype == torch.bool
    assert turned.shape == ((1,) if batched else ()) + (3, 128, 128)
    assert mask.shape == ((1,) if batched else ()) + (128, 128)
    dark = turned.reshape(3, 128, 128).float().mean(dim=0) < (140 if dtype == torch.uint8 else 0.55)
    assert dark[mask.reshape(128, 128)].float().mean() > 0.9
    assert mask.sum().item() == pytest.approx(head.sum().item() * (128 / 140) ** 2, rel=0.15)
    alone = transform(given[0])
    assert torch.equal(alone, turned)


@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("margins", [(16, 16, 16, 16), (0, 30, 20, 0)])
def test_padding_is_not_part_of_the_image(margins: tuple[int, int, int, int], fill: float) -> None:
    """Padded images are turned as images without padding are, and maps come back to the same pixels."""
    drawn = [draw(angle, (0.05, 0.1)) for angle in range(0, 360, 30)]
    images = (torch.stack([image for image, _ in drawn]) * 255).round().to(torch.uint8)
    top, bottom, left, right = margins
    padded = Pad([left, top, right, bottom], fill=round(255 * fill))(images)
    plain, canonical = CanonicalPose.fit(images), CanonicalPose.fit(padded)
    assert canonical.frame == replace(plain.frame, margins=margins)
    assert torch.equal(canonical.turn(padded), plain.turn(images))
    maps = torch.rand(len(images), 1, *plain.frame.size(128, 128))
    pose = plain.estimate(images / 255)
    restored = canonical.restore(maps, pose, padded.shape[-2:])
    assert torch.equal(restored, Pad([left, top, right, bottom])(plain.restore(maps, pose, (128, 128))))
