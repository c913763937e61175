# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the generator of synthetic defects."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from torch.nn import functional

from anomalib_ddpm_st.synthesis import AnomalyParameters, DiffusionAnomalyGenerator, TextureBank
from anomalib_ddpm_st.synthesis.bank import thumbnails
from anomalib_ddpm_st.synthesis.generator import displace, self_texture
from anomalib_ddpm_st.synthesis.masks import foreground_mask


@pytest.fixture
def bank() -> TextureBank:
    """Bank of random textures, two of them for each of three random normal images and two for any."""
    textures = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    return TextureBank(textures, torch.tensor([0, 1, 2, -1, 2, 1, 0, -1]), thumbnails(torch.rand(3, 3, 16, 16)))


def smooth_images(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Images that a blend changes in some places only: smooth, with dark and bright parts."""
    return functional.interpolate(torch.rand(count, 3, 3, 3), size, mode="bilinear")


def object_images(count: int) -> torch.Tensor:
    """A dark square on a bright background."""
    images = torch.full((count, 3, 64, 64), 0.9)
    images[..., 20:44, 20:44] = 0.2
    return images


@pytest.mark.parametrize("with_bank", [True, False])
def test_mask_is_what_changed(bank: TextureBank, generator: torch.Generator, with_bank: bool) -> None:
    """Over hundreds of images: outside of the mask nothing changed, within it every pixel or one next to it did."""
    threshold = 0.1
    transform = DiffusionAnomalyGenerator(
        bank if with_bank else None,
        probability=0.8,
        blend_factor=(0.05, 1.0),
        change_threshold=threshold,
        generator=generator,
    )
    defects = 0
    for call in range(100):
        size = ((32, 32), (24, 40), (17, 33))[call % 3]
        images = object_images(4) if call % 10 == 0 else smooth_images(4, size)
        kept = images.clone()
        augmented, masks = transform(images)
        assert torch.equal(images, kept), "the input was written to"
        assert augmented.shape == images.shape
        assert masks.shape == (4, 1, *images.shape[-2:])
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        inside = masks.bool()
        changed = (augmented != images).any(dim=1, keepdim=True)
        assert not (changed & ~inside).any()
        much = ((augmented - images).abs().amax(dim=1, keepdim=True) > threshold).float()
        assert not (inside & (functional.max_pool2d(much, 3, stride=1, padding=1) == 0)).any()
        assert augmented.min() >= 0
        assert augmented.max() <= 1
        defects += int(inside.flatten(1).any(dim=1).sum())
    assert defects > 100


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 3, 64, 64), (3, 3, 64, 48)])
def test_called_like_the_generator_of_anomalib(bank: TextureBank, shape: tuple[int, ...]) -> None:
    """Shapes and kinds are those of ``PerlinAnomalyGenerator``, for single images and batches."""
    image = torch.rand(shape)
    expected_image, expected_mask = PerlinAnomalyGenerator(probability=1.0)(image)
    for transform in (DiffusionAnomalyGenerator(bank, 1.0), DiffusionAnomalyGenerator(probability=1.0)):
        augmented, mask = transform(image)
        assert augmented.shape == expected_image.shape
        assert mask.shape == expected_mask.shape
        assert augmented.dtype == expected_image.dtype
        assert mask.dtype == expected_mask.dtype


def test_probability_zero(bank: TextureBank) -> None:
    """Nothing changes."""
    images = torch.rand(16, 3, 32, 32)
    augmented, masks = DiffusionAnomalyGenerator(bank, probability=0.0)(images)
    assert torch.equal(augmented, images)
    assert not masks.any()


def test_probability_one(bank: TextureBank, generator: torch.Generator) -> None:
    """Next to every image gets a defect; only a rotation that carries the mask out of the image prevents it."""
    images = torch.rand(100, 3, 48, 48)
    transform = DiffusionAnomalyGenerator(bank, probability=1.0, generator=generator)
    assert transform.sample_parameters(images).anomalous.all()
    assert transform(images)[1].flatten(1).any(dim=1).float().mean() > 0.9


def test_probability_between(generator: torch.Generator) -> None:
    """The share of images with a defect is the probability."""
    transform = DiffusionAnomalyGenerator(probability=0.3, generator=generator)
    share = transform.sample_parameters(torch.rand(2000, 3, 2, 2)).anomalous.float().mean().item()
    assert share == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("with_bank", [True, False])
def test_replay(bank: TextureBank, with_bank: bool) -> None:
    """The same choices give the same result, and the call itself is nothing but choosing and applying."""
    images = torch.rand(4, 3, 32, 32)
    transform = DiffusionAnomalyGenerator(bank if with_bank else None, probability=1.0)
    parameters = transform.sample_parameters(images)
    first = transform.apply_parameters(images, parameters)
    torch.rand(9)
    second = transform.apply_parameters(images, parameters)
    assert all(map(torch.equal, first, second))
    assert first[1].any()

    seeded = [
        DiffusionAnomalyGenerator(
            bank if with_bank else None, probability=1.0, generator=torch.Generator().manual_seed(4)
        )
        for _ in range(2)
    ]
    called = seeded[0](images)
    applied = seeded[1].apply_parameters(images, seeded[1].sample_parameters(images))
    assert all(map(torch.equal, called, applied))


def test_images_of_a_batch_do_not_mix(bank: TextureBank) -> None:
    """Replayed one by one, each image gets what it got in the batch."""
    images = smooth_images(5, (32, 32))
    for transform in (DiffusionAnomalyGenerator(bank, 1.0), DiffusionAnomalyGenerator(probability=1.0)):
        parameters = transform.sample_parameters(images)
        augmented, masks = transform.apply_parameters(images, parameters)
        for index in range(5):
            values = {field.name: getattr(parameters, field.name) for field in fields(AnomalyParameters)}
            one = {name: None if value is None else value[index : index + 1] for name, value in values.items()}
            single = transform.apply_parameters(images[index : index + 1], AnomalyParameters(**one))
            torch.testing.assert_close(single[0][0], augmented[index])
            assert torch.equal(single[1][0], masks[index])


@pytest.mark.parametrize("with_bank", [True, False])
def test_own_generator_leaves_global_random_state(bank: TextureBank, with_bank: bool) -> None:
    """The global random numbers go on as if nothing had happened."""
    state = torch.get_rng_state()
    transform = DiffusionAnomalyGenerator(bank if with_bank else None, generator=torch.Generator().manual_seed(0))
    transform(torch.rand(2, 3, 32, 32, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)


def test_global_seed_decides(bank: TextureBank) -> None:
    """Without a generator of its own, ``torch.manual_seed`` decides."""
    images = torch.rand(4, 3, 32, 32)
    transform = DiffusionAnomalyGenerator(bank, 1.0)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(images)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_blend_formula() -> None:
    """Within the mask, ``y = (1 - beta) x + beta texture``."""
    textures = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    bank = TextureBank(textures, torch.tensor([-1]), torch.zeros(1, 768))
    transform = DiffusionAnomalyGenerator(bank, 1.0, foreground="off")
    images = torch.rand(2, 3, 16, 16) * 0.5
    masks = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    masks[:, :, 4:9, 5:12] = True
    opacity = torch.tensor([0.25, 1.0]).reshape(2, 1, 1, 1)
    parameters = AnomalyParameters(torch.ones(2, 1, 1, 1, dtype=torch.bool), masks, opacity, torch.tensor([0, 0]))
    augmented, result = transform.apply_parameters(images, parameters)
    assert torch.equal(result, masks.float())
    expected = torch.where(masks, (1 - opacity) * images + opacity, images)
    torch.testing.assert_close(augmented, expected)


def test_texture_equal_to_the_image_marks_nothing() -> None:
    """A blend that changes nothing is not annotated."""
    images = torch.full((3, 3, 16, 16), 51 / 255)
    bank = TextureBank(torch.full((1, 3, 16, 16), 51, dtype=torch.uint8), torch.tensor([-1]), torch.zeros(1, 768))
    augmented, masks = DiffusionAnomalyGenerator(bank, 1.0)(images)
    assert not masks.any()
    assert torch.equal(augmented, images)


def test_opacity_stays_in_range(bank: TextureBank) -> None:
    """The opacity fills the range that was asked for."""
    transform = DiffusionAnomalyGenerator(bank, blend_factor=[0.3, 0.4])
    opacity = transform.sample_parameters(torch.rand(500, 3, 2, 2)).opacity
    assert 0.3 <= opacity.min() < 0.31
    assert 0.39 < opacity.max() <= 0.4


def test_foreground(generator: torch.Generator) -> None:
    """Defects stay on the object with ``auto`` and reach the background with ``off``."""
    images = object_images(60)
    away = ~functional.max_pool2d(foreground_mask(images).float(), 3, stride=1, padding=1).bool()
    assert away.any()
    auto = DiffusionAnomalyGenerator(probability=1.0, foreground="auto", generator=generator)(images)[1].bool()
    off = DiffusionAnomalyGenerator(probability=1.0, foreground="off", generator=generator)(images)[1].bool()
    assert auto.any()
    assert not (auto & away).any()
    assert (off & away).any()


def test_self_texture_is_a_shuffle() -> None:
    """With no change of contrast, the pixels are the same ones in other places; the identity order changes nothing."""
    images = torch.rand(2, 3, 32, 16)
    one, zero = torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1)
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    shuffled = self_texture(images, order, one, zero)
    torch.testing.assert_close(shuffled.flatten(2).sort().values, images.flatten(2).sort().values)
    tile = order[1, 11].item()
    row, column = divmod(tile, 8)
    torch.testing.assert_close(
        shuffled[1, :, 4:8, 6:8], images[1, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
    )
    identity = torch.arange(64).expand(2, -1)
    torch.testing.assert_close(self_texture(images, identity, one, zero), images)
    brighter = self_texture(images, identity, one * 0.5, zero + 0.1)
    torch.testing.assert_close(brighter, (images - 0.5) * 0.5 + 0.6)


@pytest.mark.parametrize("size", [(8, 8), (33, 65), (5, 70)])
def test_sizes_that_do_not_divide(size: tuple[int, int]) -> None:
    """Any size works without a bank."""
    augmented, masks = DiffusionAnomalyGenerator(probability=1.0)(torch.rand(2, 3, *size))
    assert augmented.shape == (2, 3, *size)
    assert masks.shape == (2, 1, *size)


def test_bank_from_a_folder(bank: TextureBank, tmp_path: Path) -> None:
    """A saved bank is read by its path, given either way."""
    bank.save(tmp_path)
    images = torch.rand(3, 3, 32, 32)
    results = [
        DiffusionAnomalyGenerator(source, 1.0, generator=torch.Generator().manual_seed(1))(images)[0]
        for source in (bank, tmp_path, str(tmp_path))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DiffusionAnomalyGenerator(tmp_path / "nowhere")


@pytest.mark.parametrize("image", [torch.rand(3, 16, 16) * 2, torch.rand(2, 3, 16, 16) - 0.5, torch.randn(3, 16, 16)])
def test_wrong_range(image: torch.Tensor) -> None:
    """Normalised images are refused with the reason."""
    with pytest.raises(ValueError, match=r"\[0, 1\].*before Normalize"):
        DiffusionAnomalyGenerator()(image)


@pytest.mark.parametrize("shape", [(1, 16, 16), (4, 16, 16), (2, 1, 16, 16), (16, 16), (1, 2, 3, 16, 16)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    """The message names the shape that came."""
    with pytest.raises(ValueError, match=r"\(3, H, W\).*16, 16\)"):
        DiffusionAnomalyGenerator()(torch.rand(shape))


@pytest.mark.parametrize("blend_factor", [(0.0, 1.0), (0.8, 0.2), (0.5, 1.2), (0.5,), (0.1, 0.2, 0.3), (-1.0, 0.5)])
def test_bad_blend_factor(blend_factor: tuple[float, ...]) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match="blend_factor"):
        DiffusionAnomalyGenerator(blend_factor=blend_factor)


@pytest.mark.parametrize("arguments", [{"probability": -0.1}, {"probability": 1.5}, {"foreground": "on"}])
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DiffusionAnomalyGenerator(**arguments)


def test_displace_against_roll_and_flip() -> None:
    """Each texture is flipped and moved by its own numbers."""
    textures = torch.rand(4, 3, 6, 5)
    shifts = torch.tensor([[0, 0], [2, 0], [1, 3], [5, 4]])
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    moved = displace(textures, shifts, flips)
    for texture, shift, flip, result in zip(textures, shifts.tolist(), flips.tolist(), moved, strict=True):
        dims = [axis + 1 for axis in range(2) if flip[axis]]
        assert torch.equal(result, texture.flip(dims).roll(shift, dims=(1, 2)))


@pytest.mark.parametrize("displacement", [0.0, 1.0])
def test_share_of_displaced_textures(bank: TextureBank, displacement: float) -> None:
    transform = DiffusionAnomalyGenerator(bank, 1.0, displacement=displacement)
    parameters = transform.sample_parameters(torch.rand(64, 3, 16, 16))
    assert parameters.shifts is not None
    assert bool(parameters.shifts.any()) == bool(displacement)


@pytest.mark.parametrize(("foreground", "moves"), [("auto", True), ("off", False)])
def test_textures_move_on_objects_only(foreground: Literal["auto", "off"], moves: bool) -> None:
    """A texture that equals the image marks nothing in place, and the object's shape where it is moved."""
    image = torch.full((1, 3, 64, 64), 0.9)
    image[:, :, 16:48, 16:48] = torch.rand(3, 32, 32) * 0.3
    bank = TextureBank((image * 255).round().to(torch.uint8), torch.tensor([-1]), torch.zeros(1, 768))
    transform = DiffusionAnomalyGenerator(bank, 1.0, (1.0, 1.0), displacement=1.0, foreground=foreground)
    masks = [transform(image)[1] for _ in range(20)]
    assert any(mask.any() for mask in masks) == moves
    surface = torch.rand(1, 3, 64, 64)
    transform.bank = TextureBank((surface * 255).round().to(torch.uint8), torch.tensor([-1]), torch.zeros(1, 768))
    assert not any(transform(surface)[1].any() for _ in range(20))
