# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the patchified UNet."""

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput

from anomalib_ddpm_st.diffusion.unet import (
    build_unet,
    denoise,
    patchify,
    position_encoding,
    size_multiple,
    unet_patch_size,
    unpatchify,
)


def loop_patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Reference: one pixel at a time."""
    count, channels, height, width = images.shape
    result = torch.empty(count, channels * patch_size**2, height // patch_size, width // patch_size)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                inner = channel * patch_size**2 + (row % patch_size) * patch_size + column % patch_size
                result[:, inner, row // patch_size, column // patch_size] = images[:, channel, row, column]
    return result


@pytest.mark.parametrize(("patch_size", "height", "width"), [(1, 5, 3), (2, 8, 6), (4, 8, 12), (3, 9, 6)])
def test_patchify_equals_loop(patch_size: int, height: int, width: int) -> None:
    """Each pixel lands where the loop puts it."""
    images = torch.rand(2, 3, height, width)
    assert torch.equal(patchify(images, patch_size), loop_patchify(images, patch_size))


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_round_trip(patch_size: int) -> None:
    """``unpatchify`` undoes ``patchify``, and the other way round."""
    images = torch.rand(2, 3, 8, 16)
    assert torch.equal(unpatchify(patchify(images, patch_size), patch_size), images)
    patches = torch.rand(2, 3 * patch_size**2, 4, 5)
    assert torch.equal(patchify(unpatchify(patches, patch_size), patch_size), patches)


def test_patchify_refuses_sizes_that_do_not_divide() -> None:
    """Nothing is cut off silently."""
    with pytest.raises(Exception, match=r"[Dd]ivi"):
        patchify(torch.rand(1, 3, 9, 8), 4)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "widths", "expected"),
    [
        ((32, 32), 4, (8, 8), (8, 8)),
        ((32, 64), 4, (8, 16), (8, 16)),
        ((16, 16), 2, (8, 8, 8), (8, 8)),
        ((30, 45), 4, (8, 8), (8, 12)),
        ((33, 1), 4, (8, 8, 8), (12, 4)),
        ((12, 20), 4, (12,), (3, 5)),
    ],
)
def test_build_unet_shapes(
    image_size: tuple[int, int],
    patch_size: int,
    widths: tuple[int, ...],
    expected: tuple[int, int],
) -> None:
    """The network keeps the shape, at the next size that it accepts."""
    unet = build_unet(image_size, patch_size, widths)
    assert tuple(unet.config.sample_size) == expected
    sample = torch.randn(2, 3 * patch_size**2, *expected)
    with torch.no_grad():
        output = denoise(unet, sample, torch.tensor([3, 900]))
    assert output.shape == sample.shape
    assert output.isfinite().all()


def test_output_depends_on_timestep() -> None:
    """The network is told the timestep."""
    unet = build_unet((32, 32), block_out_channels=(8, 8)).eval()
    sample = torch.randn(1, 48, 8, 8)
    with torch.no_grad():
        early, late = (denoise(unet, sample, torch.tensor(timestep)) for timestep in (1, 900))
    assert not torch.allclose(early, late)


@pytest.mark.parametrize(("patch_size", "widths", "multiple"), [(4, (8,), 4), (4, (8, 8, 8), 16), (2, (8, 8), 4)])
def test_size_multiple(patch_size: int, widths: tuple[int, ...], multiple: int) -> None:
    """Patch size and multiple are read back from the configuration."""
    unet = build_unet((32, 32), patch_size, widths)
    assert unet_patch_size(unet) == patch_size
    assert size_multiple(unet) == multiple
    side = multiple // patch_size
    with torch.no_grad():
        output = denoise(unet, torch.randn(1, 3 * patch_size**2, side, 3 * side), torch.tensor(5))
    assert output.shape[-2:] == (side, 3 * side)


def test_default_widths_leave_room_for_a_patch() -> None:
    """The base width of the default network exceeds the number of channels of a patch."""
    unet = build_unet((64, 64))
    assert unet.config.block_out_channels[0] > unet.config.out_channels


def test_network_is_told_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the sample, the network gets the same position encoding for each image."""
    unet = build_unet((32, 48), block_out_channels=(8, 8))
    seen: list[torch.Tensor] = []

    def forward(sample: torch.Tensor, _: torch.Tensor) -> UNet2DOutput:
        seen.append(sample)
        return UNet2DOutput(sample=sample[:, :48])

    monkeypatch.setattr(unet, "forward", forward)
    sample = torch.randn(2, 48, 8, 12)
    denoise(unet, sample, torch.tensor(5))
    assert seen[0].shape[1] == unet.config.in_channels
    assert torch.equal(seen[0][:, :48], sample)
    assert torch.equal(seen[0][:, 48:], position_encoding(8, 12).expand(2, -1, -1, -1))


def test_position_encoding_is_one_of_a_kind() -> None:
    """Any two places are told apart, values stay in [-1, 1], and corners are the same at any size."""
    encoding = position_encoding(6, 9)
    assert encoding.abs().max() <= 1 + 1e-6
    places = encoding[0].flatten(1).T
    distance = torch.cdist(places, places) + torch.eye(len(places)) * 9
    assert distance.min() > 0.05
    larger = position_encoding(12, 5)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(encoding[..., row, column], larger[..., row, column])


def test_denoise_treats_samples_apart() -> None:
    """A sample and its timestep do not reach into its neighbours."""
    unet = build_unet((32, 32), block_out_channels=(8, 8)).eval()
    sample = torch.randn(2, 48, 8, 8)
    with torch.no_grad():
        both = denoise(unet, sample, torch.tensor([3, 900]))
        alone = denoise(unet, sample[1:], torch.tensor([900]))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
