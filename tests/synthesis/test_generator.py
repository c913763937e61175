# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the generator of synthetic defects."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from anomalib_ddpm_st.images import warp
from anomalib_ddpm_st.synthesis import AnomalyParameters, DiffusionAnomalyGenerator, TextureBank
from anomalib_ddpm_st.synthesis.bank import thumbnails
from anomalib_ddpm_st.synthesis.generator import CONTOUR_RANGE, ZOOM_RANGE, adjust, move, self_texture
from anomalib_ddpm_st.synthesis.masks import FOREGROUND_SIZE, Windows, close_holes, foreground_mask


@pytest.fixture
def bank() -> TextureBank:
    """Bank of random textures, two of them for each of three random normal images and two for any."""
    textures = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    return TextureBank(textures, torch.tensor([0, 1, 2, -1, 2, 1, 0, -1]), thumbnails(torch.rand(3, 3, 16, 16)))


@pytest.fixture
def inpainted_bank(bank: TextureBank) -> TextureBank:
    """The same bank, in-painted: each texture was perturbed in a rectangle of its own."""
    masks = torch.zeros(8, 1, 16, 16, dtype=torch.bool)
    for index in range(8):
        masks[index, :, index : index + 5, 2 : 6 + index] = True
    return TextureBank(bank.textures, bank.sources, bank.source_thumbnails, masks)


# Every kind of source, alone and together, and whether the bank is an in-painted one.
MIXTURES: list[tuple[dict[str, float], bool]] = [
    ({"bank": 1.0}, False),
    ({"bank": 1.0}, True),
    ({"self_texture": 1.0}, False),
    ({"noise": 1.0}, False),
    ({"bank": 1.0, "self_texture": 1.0, "noise": 1.0}, False),
    ({"bank": 1.0, "self_texture": 1.0, "noise": 1.0}, True),
]


def plain_bank(level: int, size: tuple[int, int] = (16, 16), masks: torch.Tensor | None = None) -> TextureBank:
    """Bank of one flat texture that goes with any image."""
    textures = torch.full((1, 3, *size), level, dtype=torch.uint8)
    return TextureBank(textures, torch.tensor([-1]), torch.zeros(1, 768), masks)


def choices(masks: torch.Tensor, **values: torch.Tensor) -> AnomalyParameters:
    """Parameters that blend a texture of the bank into every mask, opaque and as it is, where nothing else is said."""
    count = len(masks)
    defaults: dict[str, Any] = {
        "anomalous": torch.ones(count, 1, 1, 1, dtype=torch.bool),
        "perlin_masks": masks,
        "windows": Windows(
            scores=torch.rand(count, 1, FOREGROUND_SIZE, FOREGROUND_SIZE),
            axes=torch.full((count, 2), 0.1),
            angles=torch.zeros(count),
            used=torch.zeros(count, 1, 1, 1, dtype=torch.bool),
            filled=torch.zeros(count, 1, 1, 1, dtype=torch.bool),
        ),
        "softness": torch.zeros(count),
        "opacity": torch.ones(count, 1, 1, 1),
        "contrast": torch.zeros(count, 1, 1, 1),
        "contour": torch.zeros(count, 1, 1, 1),
        "sources": torch.zeros(count, 1, 1, 1, dtype=torch.long),
        "gain": torch.ones(count, 3, 1, 1),
        "offset": torch.zeros(count, 3, 1, 1),
    }
    return AnomalyParameters(**{**defaults, **values})


def only(choices: Any, index: int) -> Any:  # ruff: ignore[any-type]
    """Choices for one image of a batch."""
    if is_dataclass(choices):
        return type(choices)(**{field.name: only(getattr(choices, field.name), index) for field in fields(choices)})
    return None if choices is None else choices[index : index + 1]


def smooth_images(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Images that a blend changes in some places only: smooth, with dark and bright parts."""
    return functional.interpolate(torch.rand(count, 3, 3, 3), size, mode="bilinear")


def object_images(count: int) -> torch.Tensor:
    """A dark square on a bright background."""
    images = torch.full((count, 3, 64, 64), 0.9)
    images[..., 20:44, 20:44] = 0.2
    return images


@pytest.mark.parametrize(("sources", "inpaint"), MIXTURES)
def test_mask_is_what_changed(
    bank: TextureBank,
    inpainted_bank: TextureBank,
    generator: torch.Generator,
    sources: dict[str, float],
    inpaint: bool,
) -> None:
    """In over a thousand calls: outside of the mask nothing changed, within it every pixel or one next to it did."""
    threshold = 0.1
    transform = DiffusionAnomalyGenerator(
        inpainted_bank if inpaint else bank,
        probability=0.8,
        blend_factor=(0.05, 1.0),
        contour=0.5,
        sources=sources,
        change_threshold=threshold,
        generator=generator,
    )
    defects = 0
    for call in range(170):
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
        change = (augmented - images).abs().amax(dim=1, keepdim=True)
        least = (change.amax(dim=(1, 2, 3), keepdim=True) / 3 - 1e-6).clamp(0.01, threshold)
        much = (change > least).float()
        assert not (inside & (functional.max_pool2d(much, 3, stride=1, padding=1) == 0)).any()
        assert augmented.min() >= 0
        assert augmented.max() <= 1
        defects += int(inside.flatten(1).any(dim=1).sum())
    assert defects > 170


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


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 3, 40, 56), (1, 40, 40), (2, 1, 33, 40)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_kinds_of_images(bank: TextureBank, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Values come back in the range and type that they came in; outside of the mask they are the same."""
    image = torch.rand(shape, dtype=torch.float64)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    augmented, mask = DiffusionAnomalyGenerator(bank, 1.0)(image)
    assert augmented.dtype == dtype
    assert augmented.shape == image.shape
    assert mask.shape == (*shape[:-3], 1, *shape[-2:])
    assert mask.any()
    changed = (augmented != image).any(dim=-3, keepdim=True)
    assert changed.any()
    assert not (changed & ~mask.bool()).any()


def test_integers_are_those_of_floats(bank: TextureBank) -> None:
    """The same choices give the same image, rounded."""
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    results = []
    for given in (image, image / 255):
        transform = DiffusionAnomalyGenerator(bank, 1.0, generator=torch.Generator().manual_seed(1))
        results.append(transform(given))
    assert torch.equal(results[0][0], (results[1][0] * 255).round().to(torch.uint8))
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 3, 24, 24)])
@pytest.mark.parametrize(("dtype", "value"), [(torch.uint8, 255), (torch.uint8, 1), (torch.bool, 1), (torch.float, 1)])
@pytest.mark.parametrize("channel", [True, False])
def test_masks_that_are_there_already(
    bank: TextureBank,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    value: int,
    channel: bool,
) -> None:
    """New defects are added to them, in their own shape, type and values."""
    mask = torch.zeros(*shape[:-3], *([1] if channel else []), *shape[-2:], dtype=dtype)
    mask[..., 2:5, 3:9] = value
    transform = DiffusionAnomalyGenerator(bank, 1.0, generator=torch.Generator().manual_seed(3))
    image = torch.rand(shape)
    augmented, result = transform(image, mask)
    transform = DiffusionAnomalyGenerator(bank, 1.0, generator=torch.Generator().manual_seed(3))
    expected, new = transform(image)
    assert torch.equal(augmented, expected)
    assert (result.shape, result.dtype) == (mask.shape, dtype)
    assert torch.equal(result != 0, (mask != 0) | new.reshape(mask.shape).bool())
    assert set(result.unique().tolist()) <= {0, value}


@pytest.mark.parametrize("shape", [(16, 15), (2, 16, 16), (3, 16, 16)])
def test_masks_that_do_not_match(bank: TextureBank, shape: tuple[int, ...]) -> None:
    """The sentence gives both shapes."""
    with pytest.raises(ValueError, match=r"mask of shape \(.*does not match the image of shape \(3, 16, 16\)"):
        DiffusionAnomalyGenerator(bank)(torch.rand(3, 16, 16), torch.zeros(shape))


def test_augmentation_of_a_dataset(bank: TextureBank) -> None:
    """Datasets call augmentations with image and mask of torchvision's own types, alone or in a chain."""
    image, mask = tv_tensors.Image(torch.rand(3, 24, 24)), tv_tensors.Mask(torch.zeros(24, 24, dtype=torch.uint8))
    chain = v2.Compose([v2.RandomHorizontalFlip(), DiffusionAnomalyGenerator(bank, 1.0), v2.RandomVerticalFlip()])
    augmented, marked = chain(image, mask)
    assert isinstance(augmented, tv_tensors.Image)
    assert isinstance(marked, tv_tensors.Mask)
    assert marked.any()


def test_make_defects(generator: torch.Generator) -> None:
    """Every image gets one, whatever the probability, also those that a first attempt misses."""
    half = torch.full((1, 3, 32, 32), 0.3)
    half[..., :20] = 51 / 255
    images = half.expand(20, -1, -1, -1)
    transform = DiffusionAnomalyGenerator(
        plain_bank(51), 0.0, contrast=(0, 0), local=1.0, jitter=0.0, foreground="off", generator=generator
    )
    first = transform.apply_parameters(
        images, replace(transform.sample_parameters(images), anomalous=torch.ones(20, 1, 1, 1, dtype=torch.bool))
    )
    assert not first[1].flatten(1).any(dim=1).all()
    augmented, masks = transform.make_defects(images)
    assert masks.flatten(1).any(dim=1).all()
    assert not ((augmented != images).any(dim=1, keepdim=True) & ~masks.bool()).any()
    single, mask = transform.make_defects(images[0], torch.zeros(32, 32))
    assert single.shape == (3, 32, 32)
    assert mask.shape == (32, 32)
    assert mask.any()


def test_defects_that_cannot_be_made() -> None:
    """A texture that equals the image: the sentence says what to do."""
    transform = DiffusionAnomalyGenerator(plain_bank(51), 1.0, jitter=0.0)
    with pytest.raises(RuntimeError, match=r"100 attempts made no defect.*Raise the strength"):
        transform.make_defects(torch.full((3, 16, 16), 51 / 255))


def test_large_images_keep_their_grain() -> None:
    """A texture that was sampled at a fraction of the size does not look blurred."""
    transform = DiffusionAnomalyGenerator(
        plain_bank(200), 1.0, (1.0, 1.0), contrast=(0, 0), jitter=0.0, foreground="off"
    )
    images = 0.3 + 0.1 * torch.rand(1, 1, 64, 64).expand(-1, 3, -1, -1)
    masks = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    augmented, _ = transform.apply_parameters(images, choices(masks, texture_indices=torch.tensor([0])))
    assert augmented.mean().item() == pytest.approx(200 / 255, abs=0.01)
    assert augmented.std().item() == pytest.approx(images.std().item(), rel=0.2)


def test_probability_zero(bank: TextureBank) -> None:
    """Nothing changes."""
    images = torch.rand(16, 3, 32, 32)
    augmented, masks = DiffusionAnomalyGenerator(bank, probability=0.0)(images)
    assert torch.equal(augmented, images)
    assert not masks.any()


def test_probability_one(bank: TextureBank, generator: torch.Generator) -> None:
    """Every image gets a defect."""
    images = torch.rand(100, 3, 48, 48)
    transform = DiffusionAnomalyGenerator(bank, probability=1.0, generator=generator)
    assert transform.sample_parameters(images).anomalous.all()
    assert transform(images)[1].flatten(1).any(dim=1).all()


def test_small_objects_are_not_missed(generator: torch.Generator) -> None:
    """Where the Perlin mask does not meet the object, a window on it takes its place."""
    images = torch.full((100, 3, 128, 128), 0.9)
    images[..., 80:100, 24:48] = 0.2
    transform = DiffusionAnomalyGenerator(
        plain_bank(140), 1.0, 1.0, local=0.0, displacement=0.0, jitter=0.0, generator=generator
    )
    parameters = transform.sample_parameters(images)
    missed = ~(parameters.perlin_masks & foreground_mask(images)).flatten(1).any(dim=1)
    assert missed.any()
    assert transform.apply_parameters(images, parameters)[1][missed].flatten(1).any(dim=1).all()


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


@pytest.mark.parametrize(("sources", "inpaint"), MIXTURES)
def test_images_of_a_batch_do_not_mix(
    bank: TextureBank,
    inpainted_bank: TextureBank,
    sources: dict[str, float],
    inpaint: bool,
) -> None:
    """Replayed one by one, each image gets what it got in the batch."""
    images = smooth_images(5, (32, 32))
    images[1] = images[1, :1]  # a grey image among coloured ones
    source = inpainted_bank if inpaint else bank
    transform = DiffusionAnomalyGenerator(source, 1.0, contour=0.5, sources=sources)
    parameters = transform.sample_parameters(images)
    augmented, masks = transform.apply_parameters(images, parameters)
    assert masks.any()
    for index in range(5):
        single = transform.apply_parameters(images[index : index + 1], only(parameters, index))
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
    transform = DiffusionAnomalyGenerator(plain_bank(204), 1.0, foreground="off")
    images = torch.rand(2, 3, 16, 16) * 0.5
    masks = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    masks[:, :, 4:9, 5:12] = True
    opacity = torch.tensor([0.25, 1.0]).reshape(2, 1, 1, 1)
    parameters = choices(masks, opacity=opacity, texture_indices=torch.tensor([0, 0]))
    augmented, result = transform.apply_parameters(images, parameters)
    assert torch.equal(result, masks.float())
    torch.testing.assert_close(augmented, torch.where(masks, (1 - opacity) * images + opacity * 0.8, images))


def striped(count: int, size: int = 32, spread: float = 0.05) -> torch.Tensor:
    """Surfaces with a standard deviation of ``spread`` in every block: rows of pixels below and above the middle."""
    rows = torch.full((size,), 0.5)
    rows[::2] -= spread
    rows[1::2] += spread
    return rows[:, None].expand(count, 3, size, size).clone()


def test_contrast_exaggerates_small_changes() -> None:
    """The largest change in the mask reaches the contrast, by at most eight times, and never shrinks."""
    spread = 0.05
    images = striped(5, spread=spread)
    change = torch.linspace(0, 0.2, 32)
    transform = DiffusionAnomalyGenerator(None, 1.0, (1.0, 1.0), sources={"noise": 1}, foreground="off")
    masks = torch.zeros(5, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 5:15, :16] = True  # the largest change lies outside
    masks[4] = False
    masks[4, :, 5:15, 1:4] = True
    contrast = torch.tensor([0.0, 1.0, 4.0, 6.0, 16.0]).reshape(5, 1, 1, 1)
    noise = images + change
    parameters = choices(masks, contrast=contrast, noise=noise, sources=torch.full((5, 1, 1, 1), 2))
    augmented, _ = transform.apply_parameters(images, parameters)
    largest, narrow = change[15].item(), change[3].item()
    assert spread < largest < 4 * spread
    assert 8 * narrow < 16 * spread
    for index, scale in enumerate((1.0, 1.0, 4 * spread / largest, 6 * spread / largest, 8.0)):
        is_marked = augmented[index] != images[index]
        assert is_marked.any()
        expected = (images[index] + scale * change).clamp(0, 1)[is_marked]
        torch.testing.assert_close(augmented[index][is_marked], expected, atol=1e-5, rtol=0)
    assert (augmented[3] - images[3]).max().item() == pytest.approx(6 * spread, abs=1e-4)


@pytest.mark.parametrize(
    ("step", "marked"),
    [(0.03, [0.012, 0.015, 0.03]), (0.012, [0.012]), (0.3, [0.06, 0.12, 0.15, 0.3])],
)
def test_masks_of_faint_defects(step: float, marked: list[float]) -> None:
    """What counts as changed is a third of the largest change, at least 0.01 and at most the threshold."""
    changes = torch.tensor([0.0, 0.004, 0.1 * step, 0.2 * step, 0.4 * step, 0.5 * step, step, 0.0])
    images = torch.full((1, 3, 32, 32), 0.4)
    noise = images + changes.repeat_interleave(4)
    masks = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    transform = DiffusionAnomalyGenerator(None, 1.0, sources={"noise": 1}, foreground="off", change_threshold=0.04)
    parameters = choices(masks, noise=noise, sources=torch.full((1, 1, 1, 1), 2))
    augmented, result = transform.apply_parameters(images, parameters)
    found = (augmented - images)[:, :1][result.bool()].unique()
    found = found[torch.cat([torch.tensor([True]), found.diff() > 1e-5])]
    torch.testing.assert_close(found, torch.tensor(marked), atol=1e-5, rtol=0)


def test_exaggeration_is_limited_at_both_ends() -> None:
    """Values stay in [0, 1], and reach the end that the texture leads to."""
    masks = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    images = torch.tensor([0.1, 0.9]).reshape(2, 1, 1, 1).expand(2, 3, 16, 16)
    textures = torch.tensor([10, 245]).reshape(2, 1, 1, 1).expand(2, 3, 16, 16).to(torch.uint8)
    bank = TextureBank(textures, torch.tensor([-1, -1]), torch.zeros(1, 768))
    transform = DiffusionAnomalyGenerator(bank, 1.0, foreground="off")
    parameters = choices(masks, contrast=torch.full((2, 1, 1, 1), 30.0), texture_indices=torch.tensor([0, 1]))
    augmented, result = transform.apply_parameters(images, parameters)
    assert result.all()
    assert torch.equal(augmented[0], torch.zeros(3, 16, 16))
    assert torch.equal(augmented[1], torch.ones(3, 16, 16))


def test_contrast_is_for_textures_of_the_bank(bank: TextureBank, generator: torch.Generator) -> None:
    """For these small ones are drawn as often as large ones; other textures, and zero, are left as they are."""
    transform = DiffusionAnomalyGenerator(
        bank, contrast=(0.5, 8.0), sources={"bank": 1, "self_texture": 1, "noise": 1}, generator=generator
    )
    parameters = transform.sample_parameters(torch.rand(3000, 3, 2, 2))
    contrast, from_bank = parameters.contrast.flatten(), parameters.sources.flatten() == 0
    assert not contrast[~from_bank].any()
    assert 0.5 <= contrast[from_bank].min() < 0.52
    assert 7.7 < contrast[from_bank].max() <= 8.0
    assert contrast[from_bank].median().item() == pytest.approx(2.0, abs=0.3)
    none = DiffusionAnomalyGenerator(bank, contrast=(0.0, 0.0)).sample_parameters(torch.rand(9, 3, 2, 2))
    assert not none.contrast.any()


def test_defects_stand_out_from_the_surface() -> None:
    """A texture of the bank that differs a little is exaggerated four times as much on a surface that is as rough."""
    largest = []
    for spread in (0.03, 0.12):
        images = striped(16, spread=spread)
        normal = (images[:1] * 255).round()
        bank = TextureBank((normal + 10).to(torch.uint8), torch.tensor([-1]), torch.zeros(1, 768))
        transform = DiffusionAnomalyGenerator(
            bank, 1.0, (1.0, 1.0), contrast=(2.0, 2.0), jitter=0.0, displacement=0.0, foreground="off"
        )
        augmented, _ = transform(images)
        largest.append((augmented - images).abs().amax(dim=(1, 2, 3)))
    torch.testing.assert_close(largest[0].amax().item(), 0.06, atol=0.01, rtol=0)
    torch.testing.assert_close(largest[1].amax().item(), 0.24, atol=0.01, rtol=0)


@pytest.mark.parametrize(("count", "is_kept"), [(1, False), (2, True)])
def test_defects_of_next_to_no_area_are_dropped(count: int, is_kept: bool) -> None:
    """What is left of a few pixels is no defect: the image stays as it was."""
    transform = DiffusionAnomalyGenerator(plain_bank(200), 1.0, foreground="off")
    images = torch.zeros(1, 3, 64, 64)
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 7, 5 : 5 + count] = True
    augmented, result = transform.apply_parameters(images, choices(masks, texture_indices=torch.tensor([0])))
    assert torch.equal(result.bool(), masks & is_kept)
    assert torch.equal(augmented, images) != is_kept


def test_texture_equal_to_the_image_marks_nothing() -> None:
    """A blend that changes nothing is not annotated."""
    images = torch.full((3, 3, 16, 16), 51 / 255)
    augmented, masks = DiffusionAnomalyGenerator(plain_bank(51), 1.0, jitter=0.0)(images)
    assert not masks.any()
    assert torch.equal(augmented, images)


def test_opacity_stays_in_range(bank: TextureBank) -> None:
    """The opacity fills the range that was asked for."""
    transform = DiffusionAnomalyGenerator(bank, blend_factor=[0.3, 0.4])
    opacity = transform.sample_parameters(torch.rand(500, 3, 2, 2)).opacity
    assert 0.3 <= opacity.min() < 0.31
    assert 0.39 < opacity.max() <= 0.4
    fixed = DiffusionAnomalyGenerator(bank, blend_factor=1)
    assert torch.equal(fixed.sample_parameters(torch.rand(9, 3, 2, 2)).opacity, torch.ones(9, 1, 1, 1))


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
    """The pixels are the same ones in other places; the identity order changes nothing."""
    images = torch.rand(2, 3, 32, 16)
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    shuffled = self_texture(images, order)
    assert torch.equal(shuffled.flatten(2).sort().values, images.flatten(2).sort().values)
    tile = order[1, 11].item()
    row, column = divmod(tile, 8)
    assert torch.equal(shuffled[1, :, 4:8, 6:8], images[1, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2])
    assert torch.equal(self_texture(images, torch.arange(64).expand(2, -1)), images)


def test_adjust_by_formula() -> None:
    """Contrast about mid grey, then brightness, channel by channel; the values are limited."""
    images, textures = torch.rand(4, 3, 8, 6), torch.rand(4, 3, 8, 6)
    gain, offset = torch.rand(4, 3, 1, 1) + 0.5, torch.rand(4, 3, 1, 1) - 0.5
    expected = textures.clone()
    for index in range(4):
        for channel in range(3):
            plane = (textures[index, channel] - 0.5) * gain[index, channel] + 0.5 + offset[index, channel]
            expected[index, channel] = plane.clamp(0, 1)
    torch.testing.assert_close(adjust(images, textures, gain, offset), expected)
    assert torch.equal(adjust(images, textures, gain, offset + 3), torch.ones_like(textures))
    assert torch.equal(adjust(images, textures, gain, offset - 3), torch.zeros_like(textures))
    torch.testing.assert_close(adjust(images, textures, torch.ones_like(gain), torch.zeros_like(gain)), textures)


def test_adjust_leaves_grey_images_grey() -> None:
    """The image decides, not the texture: for a grey one the first channel stands for all."""
    grey = torch.rand(1, 1, 8, 8).expand(-1, 3, -1, -1) * 0.9
    compressed = (grey + torch.tensor([0.0, 0.008, 0.0]).reshape(1, 3, 1, 1)).clamp(0, 1)
    coloured = (grey + torch.tensor([0.0, 0.05, 0.0]).reshape(1, 3, 1, 1)).clamp(0, 1)
    images = torch.cat([grey, compressed, coloured])
    textures = torch.tensor([0.5, 0.3, 0.5]).reshape(1, 3, 1, 1).expand(3, -1, 8, 8)
    gain = torch.ones(3, 3, 1, 1)
    offset = torch.tensor([0.1, -0.1, 0.2]).reshape(1, 3, 1, 1).expand(3, -1, -1, -1)
    colours = adjust(images, textures, gain, offset)[:, :, 0, 0]
    torch.testing.assert_close(colours, torch.tensor([[0.6, 0.6, 0.6], [0.6, 0.6, 0.6], [0.6, 0.2, 0.7]]))


@pytest.mark.parametrize("source", ["bank", "self_texture"])
def test_defects_of_grey_images_are_grey(source: str, generator: torch.Generator) -> None:
    """A grey image with grey textures stays grey, whatever the jitter; a coloured one does not."""
    grey = torch.rand(8, 1, 32, 32).expand(-1, 3, -1, -1)
    transform = DiffusionAnomalyGenerator(plain_bank(100), 1.0, jitter=1.0, sources={source: 1.0}, generator=generator)
    augmented, masks = transform(grey)
    assert masks.any()
    assert torch.equal(augmented, augmented[:, :1].expand(-1, 3, -1, -1))
    tinted = grey * torch.tensor([1.0, 0.9, 0.8]).reshape(1, 3, 1, 1)
    augmented, masks = transform(tinted)
    hue = (augmented - tinted)[masks.bool().expand(-1, 3, -1, -1)].reshape(-1)
    assert (hue > 0).any()
    assert (hue < 0).any()


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


@pytest.mark.parametrize("shape", [(2, 16, 16), (4, 16, 16), (2, 4, 16, 16), (16, 16), (1, 2, 3, 16, 16)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    """The message names the shape that came."""
    with pytest.raises(ValueError, match=r"\(C, H, W\).*16, 16\)"):
        DiffusionAnomalyGenerator()(torch.rand(shape))


@pytest.mark.parametrize("blend_factor", [(0.0, 1.0), (0.8, 0.2), (0.5, 1.2), (0.5,), (0.1, 0.2, 0.3), (-1.0, 0.5)])
def test_bad_blend_factor(blend_factor: tuple[float, ...]) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match="blend_factor"):
        DiffusionAnomalyGenerator(blend_factor=blend_factor)


@pytest.mark.parametrize("blend_factor", [0, -1, 1.5])
def test_bad_single_blend_factor(blend_factor: float) -> None:
    """A single number is checked like a range."""
    with pytest.raises(ValueError, match="blend_factor"):
        DiffusionAnomalyGenerator(blend_factor=blend_factor)


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            {name: value}
            for name in ("probability", "contour", "local", "filled", "soft", "displacement", "jitter")
            for value in (-0.1, 1.5)
        ),
        *({"contrast": value} for value in ((0.5, 0.2), (-0.1, 0.5), (0.0, 1.5), (0.5,), (0.1, 0.2, 0.3))),
        {"foreground": "on"},
        {"sources": {"pictures": 1.0}},
        {"sources": {"self_texture": 1.0, "pictures": 0.0}},
        {"sources": {"self_texture": 1.0, "noise": -0.5}},
        {"sources": {"self_texture": 0.0, "noise": 0.0}},
        {"sources": {"bank": 1.0}},
        {"sources": {"bank": 0.1, "self_texture": 0.9}},
    ],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DiffusionAnomalyGenerator(**arguments)


def test_move_against_roll_and_flip() -> None:
    """Each texture is flipped and moved by its own numbers."""
    textures = torch.rand(4, 3, 6, 5)
    shifts = torch.tensor([[0, 0], [2, 0], [1, 3], [5, 4]])
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    moved = move(textures, shifts, flips)
    for texture, shift, flip, result in zip(textures, shifts.tolist(), flips.tolist(), moved, strict=True):
        dims = [axis + 1 for axis in range(2) if flip[axis]]
        assert torch.equal(result, texture.flip(dims).roll(shift, dims=(1, 2)))


@pytest.mark.parametrize("displacement", [0.0, 1.0])
def test_share_of_displaced_textures(bank: TextureBank, displacement: float) -> None:
    transform = DiffusionAnomalyGenerator(bank, 1.0, displacement=displacement)
    parameters = transform.sample_parameters(torch.rand(64, 3, 16, 16))
    assert parameters.displacement is not None
    assert bool(parameters.displacement.shifts.any()) == bool(displacement)


@pytest.mark.parametrize("foreground", ["auto", "off"])
def test_objects_are_moved_and_surfaces_zoomed(foreground: Literal["auto", "off"]) -> None:
    """A texture that equals the image marks nothing in place, and what it differs in where it is displaced."""
    image = torch.full((1, 3, 64, 64), 0.9)
    image[:, :, 16:48, 16:48] = torch.rand(3, 32, 32) * 0.3
    bank = TextureBank((image * 255).round().to(torch.uint8), torch.tensor([-1]), torch.zeros(1, 768))
    settings: dict[str, Any] = {"jitter": 0.0, "foreground": foreground, "contrast": (0.0, 0.0)}
    for displacement in (0.0, 1.0):
        transform = DiffusionAnomalyGenerator(bank, 1.0, (1.0, 1.0), displacement=displacement, **settings)
        masks = [transform(image)[1] for _ in range(20)]
        assert any(mask.any() for mask in masks) == bool(displacement)
    parameters = transform.sample_parameters(image)
    displaced = parameters.displacement
    assert displaced is not None
    parameters = replace(parameters, perlin_masks=torch.ones(1, 1, 64, 64, dtype=torch.bool), softness=torch.zeros(1))
    parameters = replace(
        parameters, windows=replace(parameters.windows, used=torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    )
    moved = move(image, displaced.shifts, displaced.flips)
    expected = moved if foreground == "auto" else warp(image, displaced.angles, displaced.scales)
    augmented, masks = transform.apply_parameters(image, parameters)
    inside = masks.bool().expand_as(image)
    assert inside.any()
    torch.testing.assert_close(augmented[inside], expected[inside], atol=1 / 255, rtol=0)


def test_zooms_are_large(bank: TextureBank) -> None:
    """No texture is enlarged or shrunk by so little that it would look normal."""
    parameters = DiffusionAnomalyGenerator(bank, 1.0, displacement=1.0).sample_parameters(torch.rand(200, 3, 16, 16))
    assert parameters.displacement is not None
    scales = parameters.displacement.scales
    factors = torch.maximum(scales, 1 / scales)
    assert factors.min() >= ZOOM_RANGE[0] - 1e-4
    assert factors.max() <= ZOOM_RANGE[1] + 1e-4
    assert 0.35 < (scales > 1).float().mean() < 0.65


@pytest.mark.parametrize("soft", [0.0, 0.4, 1.0])
def test_share_of_soft_defects(bank: TextureBank, soft: float) -> None:
    """That share of masks has soft edges; over them the change grows from nothing to its full size."""
    parameters = DiffusionAnomalyGenerator(bank, 1.0, soft=soft).sample_parameters(torch.rand(300, 3, 16, 16))
    share = (parameters.softness > 0).float().mean().item()
    assert share == pytest.approx(soft, abs=0.1 if 0 < soft < 1 else 0)


def test_soft_edges_fade_out() -> None:
    """The change falls with the distance from the mask, down to the threshold where the mask ends."""
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[:, :, :, :32] = True
    images = torch.full((1, 3, 64, 64), 0.2)
    transform = DiffusionAnomalyGenerator(plain_bank(204), 1.0, foreground="off")
    parameters = choices(masks, softness=torch.tensor([0.05]), texture_indices=torch.zeros(1, dtype=torch.long))
    augmented, marked = transform.apply_parameters(images, parameters)
    change = (augmented - images)[0, 0, 32, 20:50]
    assert (change.diff() <= 1e-6).all()
    assert 0.1 < change[12] < 0.5
    assert marked[0, 0, 32, 34] == 1
    assert change[change > 0].min() < 0.12


@pytest.mark.parametrize("sources", [None, {}])
def test_default_source(bank: TextureBank, sources: dict[str, float] | None) -> None:
    """The bank where there is one, else self-textures."""
    images = torch.rand(50, 3, 4, 4)
    with_bank = DiffusionAnomalyGenerator(bank, sources=sources).sample_parameters(images)
    assert (with_bank.sources == 0).all()
    assert with_bank.texture_indices is not None
    without = DiffusionAnomalyGenerator(sources=sources).sample_parameters(images)
    assert (without.sources == 1).all()
    assert without.tile_order is not None


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"bank": 1, "self_texture": 2, "noise": 1}, (0.25, 0.5, 0.25)),
        ({"noise": 3.0, "bank": 1.0}, (0.25, 0.0, 0.75)),
        ({"self_texture": 0.2, "noise": 0.3}, (0.0, 0.4, 0.6)),
        ({"noise": 0.1}, (0.0, 0.0, 1.0)),
        ({"bank": 0.0, "self_texture": 5.0}, (0.0, 1.0, 0.0)),
    ],
)
def test_shares_of_sources(
    bank: TextureBank,
    sources: Mapping[str, float],
    expected: tuple[float, ...],
    generator: torch.Generator,
) -> None:
    """Sources are drawn by their shares, and only what they need is drawn beside them."""
    transform = DiffusionAnomalyGenerator(bank, sources=sources, generator=generator)
    parameters = transform.sample_parameters(torch.rand(2000, 3, 2, 2))
    counts = torch.bincount(parameters.sources.flatten(), minlength=3)
    for count, share in zip(counts.tolist(), expected, strict=True):
        assert count == 0 if share == 0 else count / 2000 == pytest.approx(share, abs=0.05)
    needed = (parameters.texture_indices, parameters.tile_order, parameters.noise)
    assert [value is not None for value in needed] == [share > 0 for share in expected]


def test_no_share_of_the_bank_needs_no_bank() -> None:
    """A share of zero is as good as none."""
    transform = DiffusionAnomalyGenerator(sources={"bank": 0.0, "noise": 1.0}, probability=1.0)
    assert transform(torch.rand(4, 3, 32, 32))[1].any()


def test_each_image_gets_the_texture_of_its_source() -> None:
    """Bank, self-texture and noise, side by side in one batch."""
    bank = plain_bank(51)
    transform = DiffusionAnomalyGenerator(
        bank, 1.0, sources={"bank": 1.0, "self_texture": 1.0, "noise": 1.0}, foreground="off", change_threshold=0.0
    )
    images = torch.rand(3, 3, 16, 16) * 0.5 + 0.3
    masks = torch.ones(3, 1, 16, 16, dtype=torch.bool)
    order = torch.stack([torch.randperm(64) for _ in range(3)])
    noise = torch.rand(3, 3, 16, 16)
    parameters = choices(
        masks,
        sources=torch.tensor([2, 0, 1]).reshape(3, 1, 1, 1),
        texture_indices=torch.zeros(3, dtype=torch.long),
        tile_order=order,
        noise=noise,
    )
    augmented, _ = transform.apply_parameters(images, parameters)
    torch.testing.assert_close(augmented[0], noise[0])
    torch.testing.assert_close(augmented[1], torch.full((3, 16, 16), 0.2))
    torch.testing.assert_close(augmented[2], self_texture(images, order)[2])


def test_noise_is_a_plain_colour_with_noise(generator: torch.Generator) -> None:
    """Each channel is spread evenly about a colour of its own."""
    transform = DiffusionAnomalyGenerator(sources={"noise": 1.0}, generator=generator)
    noise = transform.sample_parameters(torch.rand(200, 3, 24, 24)).noise
    assert noise is not None
    assert 0 <= noise.min() <= noise.max() <= 1
    width = noise.amax(dim=(2, 3)) - noise.amin(dim=(2, 3))
    assert width.max() <= 0.4
    inside = (noise.amin(dim=(2, 3)) > 0) & (noise.amax(dim=(2, 3)) < 1)
    assert inside.any()
    assert width[inside].min() > 0.38
    colours = noise.median(dim=2).values.median(dim=2).values
    assert colours.min() < 0.1
    assert colours.max() > 0.9
    assert (colours.amax(dim=1) - colours.amin(dim=1)).median() > 0.2


@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])
def test_share_of_jitter(bank: TextureBank, jitter: float, generator: torch.Generator) -> None:
    """That share of textures of the bank is adjusted, in its range; other textures always are."""
    images = torch.rand(1000, 3, 2, 2)
    transform = DiffusionAnomalyGenerator(bank, jitter=jitter, generator=generator)
    parameters = transform.sample_parameters(images)
    changed = (parameters.gain != 1).flatten(1)
    assert torch.equal(changed.any(dim=1), changed.all(dim=1))
    assert torch.equal(changed, (parameters.offset != 0).flatten(1))
    assert changed[:, 0].float().mean().item() == pytest.approx(jitter, abs=0.05 if 0 < jitter < 1 else 0)
    if jitter:
        gain, offset = (values[changed[:, 0]] for values in (parameters.gain, parameters.offset))
        assert 0.5 <= gain.min() < 0.52
        assert 1.48 < gain.max() <= 1.5
        assert -0.2 <= offset.min() < -0.19
        assert 0.19 < offset.max() <= 0.2
        assert (gain[:, 0] != gain[:, 1]).all()
    others = DiffusionAnomalyGenerator(jitter=jitter, sources={"self_texture": 1, "noise": 1}, generator=generator)
    parameters = others.sample_parameters(images)
    assert (parameters.gain != 1).all()
    assert (parameters.offset != 0).all()


@pytest.mark.parametrize("contour", [0.0, 0.3, 1.0])
def test_share_of_contour(bank: TextureBank, contour: float, generator: torch.Generator) -> None:
    """That share of textures of the bank gets a mask of the sampled change; other textures never do."""
    images = torch.rand(1000, 3, 2, 2)
    transform = DiffusionAnomalyGenerator(
        bank, contour=contour, sources={"bank": 2, "self_texture": 1}, generator=generator
    )
    parameters = transform.sample_parameters(images)
    from_bank = parameters.sources.flatten() == 0
    drawn = parameters.contour.flatten()
    assert not drawn[~from_bank].any()
    share = (drawn[from_bank] > 0).float().mean().item()
    assert share == pytest.approx(contour, abs=0.06 if 0 < contour < 1 else 0)
    if contour:
        shaped = drawn[drawn > 0]
        assert CONTOUR_RANGE[0] <= shaped.min() < CONTOUR_RANGE[0] + 0.02
        assert CONTOUR_RANGE[1] - 0.02 < shaped.max() <= CONTOUR_RANGE[1]


def test_contour_keeps_what_changed_most() -> None:
    """Of the Perlin mask the pixels stay whose change exceeds that share of the largest change *in the mask*."""
    columns = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    bank = TextureBank((columns * 255).round().to(torch.uint8), torch.tensor([-1]), torch.zeros(1, 768))
    transform = DiffusionAnomalyGenerator(bank, 1.0, foreground="off")
    images = torch.zeros(4, 3, 32, 32)
    masks = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 4:20, :16] = True
    contour = torch.tensor([0.0, 0.25, 0.5, 0.7]).reshape(4, 1, 1, 1)
    parameters = choices(masks, contour=contour, texture_indices=torch.zeros(4, dtype=torch.long))
    augmented, result = transform.apply_parameters(images, parameters)
    texture = bank.get(torch.tensor([0]), (32, 32))
    largest = texture[0, 0, 0, 15]
    for index, share in enumerate(contour.flatten().tolist()):
        kept = masks[index] & (texture[0, :1] > max(share * largest, 0.04))
        assert torch.equal(result[index].bool(), close_holes(kept[None])[0])
        torch.testing.assert_close(augmented[index], torch.where(result[index].bool(), texture[0], images[index]))
    counts = result.flatten(1).sum(dim=1).tolist()
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[2] > counts[3] > 0


def test_contour_does_not_undercut_the_threshold() -> None:
    """Where all changes are small, the smallest change that counts still counts."""
    transform = DiffusionAnomalyGenerator(plain_bank(2), 1.0, foreground="off", change_threshold=0.05)
    masks = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    parameters = choices(masks, contour=torch.full((1, 1, 1, 1), 0.2), texture_indices=torch.tensor([0]))
    assert not transform.apply_parameters(torch.zeros(1, 3, 16, 16), parameters)[1].any()


def test_inpainted_textures_bring_their_masks(inpainted_bank: TextureBank) -> None:
    """The mask of the texture takes the place of the Perlin mask, at the size of the image.

    Textures that were sampled from pure noise, and those of other sources, keep the Perlin mask.
    """
    transform = DiffusionAnomalyGenerator(
        inpainted_bank, 1.0, sources={"bank": 1, "noise": 1}, foreground="off", change_threshold=0.0
    )
    images = torch.full((4, 3, 32, 32), -1.0)  # no texture equals it
    images[:, 2] = -0.5  # not grey
    perlin = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    perlin[:, :, 20:30, 20:30] = True
    indices = torch.tensor([4, 4, 6, 3])
    assert inpainted_bank.sources[indices].tolist() == [2, 2, 0, -1]
    parameters = choices(
        perlin,
        sources=torch.tensor([0, 2, 0, 0]).reshape(4, 1, 1, 1),
        texture_indices=indices,
        noise=torch.full((4, 3, 32, 32), 0.5),
    )
    augmented, masks = transform.apply_parameters(images, parameters)
    for index, texture in ((0, 4), (2, 6)):
        expected = inpainted_bank.masks[texture].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        assert torch.equal(masks[index].bool(), expected)
        pixels = inpainted_bank.get(torch.tensor([texture]), (32, 32))[0]
        torch.testing.assert_close(augmented[index], torch.where(expected, pixels, images[index]))
    assert torch.equal(masks[1].bool(), perlin[1])
    assert torch.equal(masks[3].bool(), perlin[3])


def test_inpainted_textures_stay_in_place() -> None:
    """Displacement moves what was perturbed all over; an in-painted texture belongs where its mask is."""
    image = torch.full((1, 3, 64, 64), 0.9)
    image[:, :, 16:48, 16:48] = torch.rand(3, 32, 32) * 0.3
    texture = image.clone()
    texture[:, :, 24:30, 20:36] = 0.6
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 22:32, 18:38] = True
    bank = TextureBank((texture * 255).round().to(torch.uint8), torch.tensor([0]), torch.zeros(1, 768), masks)
    transform = DiffusionAnomalyGenerator(bank, 1.0, 1.0, local=0.0, displacement=1.0, jitter=0.0)
    expected = torch.zeros(1, 1, 64, 64)
    expected[:, :, 24:30, 20:36] = 1
    shifts = []
    for _ in range(5):
        parameters = transform.sample_parameters(image)
        assert parameters.displacement is not None
        shifts.append(parameters.displacement.shifts)
        assert torch.equal(transform.apply_parameters(image, parameters)[1], expected)
    assert any(shift.any() for shift in shifts)


@pytest.mark.parametrize("local", [0.0, 0.3, 1.0])
def test_share_of_local_defects(bank: TextureBank, local: float, generator: torch.Generator) -> None:
    """That share of defects lies in a window of at most half of the image's side; the others lie anywhere."""
    images = torch.rand(150, 3, 16, 16)
    transform = DiffusionAnomalyGenerator(bank, 1.0, local=local, generator=generator)
    parameters = transform.sample_parameters(images)
    used = parameters.windows.used.flatten()
    assert used.float().mean().item() == pytest.approx(local, abs=0.12 if 0 < local < 1 else 0)
    masks = transform.apply_parameters(images, parameters)[1].flatten(1)
    if local:
        assert masks[used].mean(dim=1).max() < 0.3
    if local < 1:
        assert masks[~used].mean(dim=1).max() > 0.3
