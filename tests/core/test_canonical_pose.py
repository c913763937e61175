# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of parts that are turned to one pose."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import Compose, Pad, Resize
from torchvision.tv_tensors import Image, Mask

from anomalib_ddpm_st.core.canonical_pose import PARTS, STRIDE, CanonicalPose, PoseFrame

from .conftest import HEAD, LENGTH, draw

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
