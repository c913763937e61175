# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the textures of defects."""

from dataclasses import fields

import pytest
import torch

from anomalib_ddpm_st.core.geometry import shift_and_flip, warp
from anomalib_ddpm_st.synthesis import TextureBank
from anomalib_ddpm_st.synthesis.textures import (
    TILES,
    ZOOM_RANGE,
    BankTextureParameters,
    BankTextures,
    ShuffledTiles,
    jitter_colours,
)

NO_FRAMES = torch.zeros(4, 4, dtype=torch.long)


def parameters(indices: list[int], **values: torch.Tensor) -> BankTextureParameters:
    """Parameters of textures that stay in place, unless said otherwise."""
    count = len(indices)
    defaults = {
        "shifts": torch.zeros(count, 2, dtype=torch.long),
        "flips": torch.zeros(count, 2, dtype=torch.bool),
        "scales": torch.ones(count),
        "angles": torch.zeros(count),
    }
    return BankTextureParameters(torch.tensor(indices), **{**defaults, **values})


def test_displaced_textures(bank: TextureBank, generator: torch.Generator) -> None:
    """Half of the textures are displaced in every way, the others in none."""
    drawn = BankTextures(bank).sample(torch.rand(400, 3, 20, 12), generator)
    displaced = drawn.scales != 1
    assert displaced.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert drawn.angles[displaced].unique().numel() == displaced.sum()
    assert drawn.angles.min() >= 0
    assert drawn.angles.max() < 360
    assert drawn.shifts[displaced].amax(dim=0).tolist() == [19, 11]
    assert drawn.shifts.min() == 0
    assert drawn.flips[displaced].float().mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.12)
    for values in (drawn.shifts, drawn.flips, drawn.angles):
        assert not values[~displaced].any()


def test_zooms_are_large(bank: TextureBank, generator: torch.Generator) -> None:
    """No texture is enlarged or shrunk by so little that it would look normal."""
    scales = BankTextures(bank).sample(torch.rand(400, 3, 16, 16), generator).scales
    scales = scales[scales != 1]
    factors = torch.maximum(scales, 1 / scales)
    assert factors.min() >= ZOOM_RANGE[0] - 1e-4
    assert factors.max() <= ZOOM_RANGE[1] + 1e-4
    assert 0.35 < (scales > 1).float().mean() < 0.65


def test_bank_textures_are_seeded(bank: TextureBank) -> None:
    """The parameters depend on the generator alone, and the global random state is not touched."""
    images = torch.rand(8, 3, 16, 16)
    state = torch.get_rng_state()
    first, second, other = (
        BankTextures(bank).sample(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name in (field.name for field in fields(first)):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.shifts, other.shifts)


def test_shifted_on_objects_and_zoomed_on_surfaces(bank: TextureBank) -> None:
    """Each texture by its own parameters; one that stays in place is that of the bank."""
    images = torch.rand(4, 3, 16, 16)
    drawn = parameters(
        [3, 1, 3, 1],
        shifts=torch.tensor([[2, 5], [0, 0], [2, 5], [0, 0]]),
        flips=torch.tensor([[True, False], [False, False], [True, False], [False, False]]),
        scales=torch.tensor([2.0, 1.0, 2.0, 1.0]),
        angles=torch.tensor([30.0, 0.0, 30.0, 0.0]),
    )
    textures = BankTextures(bank).apply(images, drawn, torch.tensor([True, True, False, False]), NO_FRAMES)
    plain = bank.textures[drawn.indices] / 255
    torch.testing.assert_close(textures[:1], shift_and_flip(plain[:1], drawn.shifts[:1], drawn.flips[:1]))
    torch.testing.assert_close(textures[2:3], warp(plain[2:3], drawn.angles[2:3], drawn.scales[2:3]))
    torch.testing.assert_close(textures[1], plain[1])
    torch.testing.assert_close(textures[3], plain[3])


@pytest.mark.parametrize("has_object", [True, False])
def test_displaced_textures_show_no_frame(has_object: bool) -> None:
    """Padding around the textures of a bank never comes into the image; in place, a texture stays as it is."""
    framed = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    framed[..., 4:-4, 6:-6] = torch.randint(100, 256, (3, 24, 20), dtype=torch.uint8)
    bank = TextureBank(framed, torch.tensor([0]), torch.zeros(1, 768))
    drawn = parameters(
        [0, 0],
        shifts=torch.tensor([[11, 7], [0, 0]]),
        scales=torch.tensor([0.5, 1.0]),
        angles=torch.tensor([30.0, 0.0]),
    )
    frames = torch.tensor([[4, 4, 6, 6]]).expand(2, -1)
    textures = BankTextures(bank).apply(torch.rand(2, 3, 32, 32), drawn, torch.tensor([has_object] * 2), frames)
    assert textures[0].min() > 0.3
    torch.testing.assert_close(textures[1], framed[0] / 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_textures_have_the_detail_and_type_of_the_images(bank: TextureBank, dtype: torch.dtype) -> None:
    """Textures at the size of large images get back what they are too small to hold."""
    images = torch.rand(2, 3, 40, 32, dtype=torch.float64).to(dtype)
    textures = BankTextures(bank).apply(images, parameters([0, 5]), torch.zeros(2, dtype=torch.bool), NO_FRAMES[:2])
    assert textures.dtype == dtype
    expected = bank.get(torch.tensor([0, 5]), (40, 32)) + bank.missing_detail(images)
    torch.testing.assert_close(textures, expected.to(dtype))


def test_order_of_tiles(generator: torch.Generator) -> None:
    """Each image gets its own random permutation."""
    order = ShuffledTiles.sample(torch.rand(5, 3, 4, 4), generator)
    assert order.shape == (5, TILES**2)
    assert torch.equal(order.sort(dim=1).values, torch.arange(TILES**2).expand(5, -1))
    assert order.unique(dim=0).shape[0] == 5
    assert torch.equal(order, ShuffledTiles.sample(torch.rand(5, 3, 9, 9), torch.Generator().manual_seed(1)))


def test_shuffled_tiles_hold_the_same_pixels() -> None:
    """The pixels are only moved; the identity order changes nothing."""
    images = torch.rand(2, 3, 32, 16)
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    shuffled = ShuffledTiles.apply(images, order)
    assert torch.equal(shuffled.flatten(2).sort().values, images.flatten(2).sort().values)
    tile = order[1, 11].item()
    row, column = divmod(tile, 8)
    assert torch.equal(shuffled[1, :, 4:8, 6:8], images[1, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2])
    assert torch.equal(ShuffledTiles.apply(images, torch.arange(64).expand(2, -1)), images)


def test_jitter_by_formula() -> None:
    """Contrast about mid grey, then brightness, channel by channel; values stay in [0, 1]."""
    images, textures = torch.rand(4, 3, 8, 6), torch.rand(4, 3, 8, 6)
    gain, offset = torch.rand(4, 3, 1, 1) + 0.5, torch.rand(4, 3, 1, 1) - 0.5
    expected = textures.clone()
    for index in range(4):
        for channel in range(3):
            plane = (textures[index, channel] - 0.5) * gain[index, channel] + 0.5 + offset[index, channel]
            expected[index, channel] = plane.clamp(0, 1)
    torch.testing.assert_close(jitter_colours(images, textures, gain, offset), expected)
    assert torch.equal(jitter_colours(images, textures, gain, offset + 3), torch.ones_like(textures))
    assert torch.equal(jitter_colours(images, textures, gain, offset - 3), torch.zeros_like(textures))
    same = jitter_colours(images, textures, torch.ones_like(gain), torch.zeros_like(gain))
    torch.testing.assert_close(same, textures)


def test_jitter_keeps_grey_images_grey() -> None:
    """The image decides, not the texture: for a grey image, the first channel is used for all three."""
    grey = torch.rand(1, 1, 8, 8).expand(-1, 3, -1, -1) * 0.9
    compressed = (grey + torch.tensor([0.0, 0.008, 0.0]).reshape(1, 3, 1, 1)).clamp(0, 1)
    coloured = (grey + torch.tensor([0.0, 0.05, 0.0]).reshape(1, 3, 1, 1)).clamp(0, 1)
    images = torch.cat([grey, compressed, coloured])
    textures = torch.tensor([0.5, 0.3, 0.5]).reshape(1, 3, 1, 1).expand(3, -1, 8, 8)
    gain = torch.ones(3, 3, 1, 1)
    offset = torch.tensor([0.1, -0.1, 0.2]).reshape(1, 3, 1, 1).expand(3, -1, -1, -1)
    colours = jitter_colours(images, textures, gain, offset)[:, :, 0, 0]
    torch.testing.assert_close(colours, torch.tensor([[0.6, 0.6, 0.6], [0.6, 0.6, 0.6], [0.6, 0.2, 0.7]]))
