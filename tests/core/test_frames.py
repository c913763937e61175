# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of frames around images; those of the foreground within them are in tests/synthesis/test_foreground.py."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import Pad

from anomalib_ddpm_st.core.frames import fill_frames, find_frames, restore_frames
from anomalib_ddpm_st.synthesis.foreground import find_foreground


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> torch.Tensor:
    """Boolean disc of shape ``(H, W)``."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def pad(images: torch.Tensor, margins: list[int], fill: float) -> torch.Tensor:
    """Add a frame of left, top, right and bottom margins."""
    return Pad(margins, fill=fill)(images)


def test_frame_around_a_dark_side() -> None:
    """A side of the image that is nearly as dark as the frame ends the frame, too."""
    image = 0.3 + 0.2 * torch.rand(1, 3, 128, 128)
    image[..., :20] = 0.01 + 0.02 * torch.rand(1, 3, 128, 20)
    assert find_frames(pad(image, [16, 16, 16, 16], 0.0)).tolist() == [[16, 16, 16, 16]]


def test_plain_backgrounds_are_no_frames() -> None:
    """A saturated background around a part is no frame, whether the part is round, pointed or cut by the border."""
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc_ = disc((128, 128), (64, 64), 40)
    wedge = (columns > 30) & (columns < 100) & ((rows - 64).abs() < (columns - 30) / 2)
    bullet = (columns > 40) & (((rows - 64) ** 2 + (columns - 40) ** 2) < 40**2)
    cut = disc((128, 128), (0, 64), 50)
    images = torch.stack([torch.where(part, 0.3, 1.0).expand(3, -1, -1) for part in (disc_, wedge, bullet, cut)])
    # The flat ends of wedge and bullet look like one side of a frame.
    assert not find_frames(images).any()
    # A background with a little noise cannot be taken for a frame.
    noisy = images - 0.02 * torch.rand(images.shape)
    assert torch.equal(find_foreground(images).mask, find_foreground(noisy).mask)


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 64, 64), torch.ones(2, 3, 40, 70), torch.rand(1, 3, 32, 32)])
def test_images_without_a_frame(image: torch.Tensor) -> None:
    """Images of one colour, and small ones, have no frame."""
    assert not find_frames(image).any()
    assert find_foreground(image).mask.all()


def test_frames_are_filled_by_reflection() -> None:
    """Within the frame nothing changes; outside, the image is reflected as often as needed."""
    images = torch.rand(2, 3, 12, 10)
    padded = torch.zeros(2, 3, 40, 24)
    padded[0, :, 3:15, 6:16], padded[1, :, 20:32, 14:] = images
    frames = torch.tensor([[3, 25, 6, 8], [20, 8, 14, 0]])
    filled = fill_frames(padded, frames)
    for index, (top, bottom, left, right) in enumerate(frames.tolist()):
        expected = np.pad(images[index].numpy(), ((0, 0), (top, bottom), (left, right)), mode="symmetric")
        assert np.array_equal(filled[index].numpy(), expected)
    assert fill_frames(padded, torch.zeros_like(frames)) is padded


def test_frames_are_put_back() -> None:
    """The frame is that of the original, bit for bit, and the rest that of the changed image."""
    originals, changed = torch.rand(2, 3, 30, 40), torch.rand(2, 3, 30, 40)
    frames = torch.tensor([[3, 5, 6, 8], [0, 0, 0, 0]])
    restored = restore_frames(changed, originals, frames)
    expected = originals[0].clone()
    expected[:, 3:-5, 6:-8] = changed[0, :, 3:-5, 6:-8]
    assert torch.equal(restored[0], expected)
    assert torch.equal(restored[1], changed[1])
    assert restore_frames(changed, originals, torch.zeros_like(frames)) is changed
