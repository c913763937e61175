# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the generator of synthetic defects."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from anomalib_ddpm_st.core.geometry import shift_and_flip, warp
from anomalib_ddpm_st.synthesis import AnomalyParameters, DefectConfig, DiffusionAnomalyGenerator, TextureBank
from anomalib_ddpm_st.synthesis import blending as blending_module
from anomalib_ddpm_st.synthesis import generator as generator_module
from anomalib_ddpm_st.synthesis import textures as textures_module
from anomalib_ddpm_st.synthesis.config import Foreground, Source
from anomalib_ddpm_st.synthesis.foreground import find_foreground
from anomalib_ddpm_st.synthesis.masks import CENTRE_SIZE, Windows
from anomalib_ddpm_st.synthesis.parts import change_parts
from anomalib_ddpm_st.synthesis.textures import BankTextureParameters, ShuffledTiles

SOURCES: list[Source] = ["diffusion", "mixture", "self_texture"]
# Every image gets a defect, with unchanged textures.
PLAIN = DefectConfig(
    source="diffusion", probability=1.0, opacity=(1.0, 1.0), contrast=(0.0, 0.0), foreground="off", p_parts=0.0
)


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Textures of the bank keep their colours."""
    monkeypatch.setattr(generator_module, "P_JITTERED", 0.0)


def plain_bank(level: int, size: tuple[int, int] = (16, 16)) -> TextureBank:
    """Bank of one flat texture."""
    return TextureBank(torch.full((1, 3, *size), level, dtype=torch.uint8), torch.tensor([0]), torch.zeros(1, 768))


def make(bank: TextureBank | None = None, **defects: Any) -> DiffusionAnomalyGenerator:  # noqa: ANN401
    """Generator that puts a texture into every image; one of the bank if there is one, unless said otherwise."""
    generator = defects.pop("generator", None)
    defects = {"source": "diffusion" if bank else "self_texture", "probability": 1.0, "p_parts": 0.0, **defects}
    return DiffusionAnomalyGenerator(bank, defects, generator)


def textures_in_place(count: int) -> BankTextureParameters:
    """The first texture of the bank for each image."""
    return BankTextureParameters(
        indices=torch.zeros(count, dtype=torch.long),
        shifts=torch.zeros(count, 2, dtype=torch.long),
        flips=torch.zeros(count, 2, dtype=torch.bool),
        scales=torch.ones(count),
        angles=torch.zeros(count),
    )


def choices(masks: torch.Tensor, **values: Any) -> AnomalyParameters:  # noqa: ANN401
    """Parameters that blend the first texture of the bank, opaque and in place, into every mask, unless said so."""
    count = len(masks)
    defaults: dict[str, Any] = {
        "anomalous": torch.ones(count, 1, 1, 1, dtype=torch.bool),
        "perlin_masks": masks,
        "windows": Windows(
            scores=torch.rand(count, 1, CENTRE_SIZE, CENTRE_SIZE),
            axes=torch.full((count, 2), 0.1),
            angles=torch.zeros(count),
            used=torch.zeros(count, 1, 1, 1, dtype=torch.bool),
            filled=torch.zeros(count, 1, 1, 1, dtype=torch.bool),
        ),
        "softness": torch.zeros(count),
        "opacity": torch.ones(count, 1, 1, 1),
        "contrast": torch.zeros(count, 1, 1, 1),
        "from_bank": torch.ones(count, 1, 1, 1, dtype=torch.bool),
        "gain": torch.ones(count, 3, 1, 1),
        "offset": torch.zeros(count, 3, 1, 1),
        "bank_textures": textures_in_place(count),
    }
    return AnomalyParameters(**{**defaults, **values})


def only(choices: Any, index: int) -> Any:  # noqa: ANN401
    """Choices for one image of a batch."""
    if is_dataclass(choices):
        return type(choices)(**{field.name: only(getattr(choices, field.name), index) for field in fields(choices)})
    return None if choices is None else choices[index : index + 1]


def smooth_images(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Images that a blend changes only in part: smooth, with dark and bright areas."""
    return functional.interpolate(torch.rand(count, 3, 3, 3), size, mode="bilinear")


def object_images(count: int) -> torch.Tensor:
    """A dark square on a bright background."""
    images = torch.full((count, 3, 64, 64), 0.9)
    images[..., 20:44, 20:44] = 0.2
    return images


@pytest.mark.parametrize("source", SOURCES)
def test_mask_is_what_changed(bank: TextureBank, generator: torch.Generator, source: Source) -> None:
    """In hundreds of calls: outside the mask nothing changes, inside it every pixel or a neighbour does."""
    transform = make(bank, source=source, probability=0.8, opacity=(0.05, 1.0), generator=generator)
    defects = 0
    for call in range(170):
        size = ((32, 32), (24, 40), (17, 33))[call % 3]
        images = object_images(4) if call % 10 == 0 else smooth_images(4, size)
        kept = images.clone()
        augmented, masks = transform(images)
        assert torch.equal(images, kept), "the input was modified"
        assert augmented.shape == images.shape
        assert masks.shape == (4, 1, *images.shape[-2:])
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        inside = masks.bool()
        changed = (augmented != images).any(dim=1, keepdim=True)
        assert not (changed & ~inside).any()
        change = (augmented - images).abs().amax(dim=1, keepdim=True)
        least = (change.amax(dim=(1, 2, 3), keepdim=True) / 3 - 1e-6).clamp(0.01, 0.04)
        much = (change > least).float()
        assert not (inside & (functional.max_pool2d(much, 3, stride=1, padding=1) == 0)).any()
        assert augmented.min() >= 0
        assert augmented.max() <= 1
        defects += int(inside.flatten(1).any(dim=1).sum())
    assert defects > 170


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 3, 64, 64), (3, 3, 64, 48)])
def test_called_like_the_generator_of_anomalib(bank: TextureBank, shape: tuple[int, ...]) -> None:
    """Shapes and types are those of ``PerlinAnomalyGenerator``, for single images and batches."""
    image = torch.rand(shape)
    expected_image, expected_mask = PerlinAnomalyGenerator(probability=1.0)(image)
    for transform in (make(bank), make()):
        augmented, mask = transform(image)
        assert augmented.shape == expected_image.shape
        assert mask.shape == expected_mask.shape
        assert augmented.dtype == expected_image.dtype
        assert mask.dtype == expected_mask.dtype


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 3, 40, 56), (1, 40, 40), (2, 1, 33, 40)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_kinds_of_images(bank: TextureBank, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Images keep their range and type; outside the mask they are unchanged."""
    image = torch.rand(shape, dtype=torch.float64)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    augmented, mask = make(bank)(image)
    assert augmented.dtype == dtype
    assert augmented.shape == image.shape
    assert mask.shape == (*shape[:-3], 1, *shape[-2:])
    assert mask.any()
    changed = (augmented != image).any(dim=-3, keepdim=True)
    assert changed.any()
    assert not (changed & ~mask.bool()).any()


def test_integers_are_rounded_floats(bank: TextureBank) -> None:
    """The same choices give the same image, rounded."""
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    results = [make(bank, generator=torch.Generator().manual_seed(1))(given) for given in (image, image / 255)]
    assert torch.equal(results[0][0], (results[1][0] * 255).round().to(torch.uint8))
    assert torch.equal(results[0][1], results[1][1])


def test_precision_in_mixed_precision_training(bank: TextureBank) -> None:
    """Autocast changes no bit of images and masks."""
    images = smooth_images(4, (32, 32))
    expected = make(bank, source="mixture", generator=torch.Generator().manual_seed(1))(images)
    with torch.autocast("cpu", torch.bfloat16):
        result = make(bank, source="mixture", generator=torch.Generator().manual_seed(1))(images)
    assert all(map(torch.equal, result, expected))


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 3, 24, 24)])
@pytest.mark.parametrize(("dtype", "value"), [(torch.uint8, 255), (torch.uint8, 1), (torch.bool, 1), (torch.float, 1)])
@pytest.mark.parametrize("channel", [True, False])
def test_existing_masks(
    bank: TextureBank,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    value: int,
    channel: bool,
) -> None:
    """New defects are added to the given mask, in its own shape, type and values."""
    mask = torch.zeros(*shape[:-3], *([1] if channel else []), *shape[-2:], dtype=dtype)
    mask[..., 2:5, 3:9] = value
    image = torch.rand(shape)
    augmented, result = make(bank, generator=torch.Generator().manual_seed(3))(image, mask)
    expected, new = make(bank, generator=torch.Generator().manual_seed(3))(image)
    assert torch.equal(augmented, expected)
    assert (result.shape, result.dtype) == (mask.shape, dtype)
    assert torch.equal(result != 0, (mask != 0) | new.reshape(mask.shape).bool())
    assert set(result.unique().tolist()) <= {0, value}


@pytest.mark.parametrize("shape", [(16, 15), (2, 16, 16), (3, 16, 16)])
def test_masks_that_do_not_match(bank: TextureBank, shape: tuple[int, ...]) -> None:
    """The message gives both shapes."""
    with pytest.raises(ValueError, match=r"mask of shape \(.*does not match the image of shape \(3, 16, 16\)"):
        make(bank)(torch.rand(3, 16, 16), torch.zeros(shape))


def test_augmentation_of_a_dataset(bank: TextureBank) -> None:
    """Datasets call augmentations with an image and a mask of torchvision's own types, alone or in a chain."""
    image, mask = tv_tensors.Image(torch.rand(3, 24, 24)), tv_tensors.Mask(torch.zeros(24, 24, dtype=torch.uint8))
    chain = v2.Compose([v2.RandomHorizontalFlip(), make(bank), v2.RandomVerticalFlip()])
    augmented, marked = chain(image, mask)
    assert isinstance(augmented, tv_tensors.Image)
    assert isinstance(marked, tv_tensors.Mask)
    assert marked.any()


@pytest.mark.usefixtures("no_jitter")
def test_make_defects(generator: torch.Generator) -> None:
    """Every image gets a defect, whatever the probability, even if a first attempt fails."""
    half = torch.full((1, 3, 32, 32), 0.3)
    half[..., :20] = 51 / 255
    images = half.expand(20, -1, -1, -1)
    settings = {"probability": 0.0, "contrast": (0, 0), "p_local": 1.0, "foreground": "off", "generator": generator}
    transform = make(plain_bank(51), **settings)
    parameters = replace(
        transform.sample_parameters(images),
        anomalous=torch.ones(20, 1, 1, 1, dtype=torch.bool),
    )
    assert not transform.apply_parameters(images, parameters)[1].flatten(1).any(dim=1).all()
    augmented, masks = transform.make_defects(images)
    assert masks.flatten(1).any(dim=1).all()
    assert not ((augmented != images).any(dim=1, keepdim=True) & ~masks.bool()).any()
    single, mask = transform.make_defects(images[0], torch.zeros(32, 32))
    assert single.shape == (3, 32, 32)
    assert mask.shape == (32, 32)
    assert mask.any()


@pytest.mark.usefixtures("no_jitter")
def test_defects_that_cannot_be_made() -> None:
    """A texture that equals the image: the message says what to do."""
    with pytest.raises(RuntimeError, match=r"100 attempts produced no defect.*Raise bank\.delta or defects\.contrast"):
        make(plain_bank(51)).make_defects(torch.full((3, 16, 16), 51 / 255))


def test_large_images_keep_their_grain() -> None:
    """A texture that was sampled at a fraction of the size does not look blurred."""
    transform = DiffusionAnomalyGenerator(plain_bank(200), PLAIN)
    images = 0.3 + 0.1 * torch.rand(1, 1, 64, 64).expand(-1, 3, -1, -1)
    augmented, _ = transform.apply_parameters(images, choices(torch.ones(1, 1, 64, 64, dtype=torch.bool)))
    assert augmented.mean().item() == pytest.approx(200 / 255, abs=0.01)
    assert augmented.std().item() == pytest.approx(images.std().item(), rel=0.2)


def test_probability_zero(bank: TextureBank) -> None:
    """Nothing changes."""
    images = torch.rand(16, 3, 32, 32)
    augmented, masks = make(bank, probability=0.0)(images)
    assert torch.equal(augmented, images)
    assert not masks.any()


def test_probability_one(bank: TextureBank, generator: torch.Generator) -> None:
    """Every image gets a defect."""
    images = torch.rand(100, 3, 48, 48)
    transform = make(bank, generator=generator)
    assert transform.sample_parameters(images).anomalous.all()
    assert transform(images)[1].flatten(1).any(dim=1).all()


def test_probability_between(generator: torch.Generator) -> None:
    """The fraction of images with a defect is the probability."""
    transform = make(probability=0.3, generator=generator)
    fraction = transform.sample_parameters(torch.rand(2000, 3, 2, 2)).anomalous.float().mean().item()
    assert fraction == pytest.approx(0.3, abs=0.05)


@pytest.mark.usefixtures("no_jitter")
def test_small_objects_are_not_missed(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the Perlin mask misses the object, a window on the object replaces it."""
    monkeypatch.setattr(textures_module, "P_DISPLACED", 0.0)
    images = torch.full((100, 3, 64, 64), 0.9)
    images[..., 40:50, 12:24] = 0.2
    transform = make(plain_bank(140), opacity=(1.0, 1.0), p_local=0.0, generator=generator)
    parameters = transform.sample_parameters(images)
    missed = ~(parameters.perlin_masks & find_foreground(images).mask).flatten(1).any(dim=1)
    assert missed.any()
    assert transform.apply_parameters(images, parameters)[1][missed].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("with_bank", [True, False])
def test_replay(bank: TextureBank, with_bank: bool) -> None:
    """The same parameters give the same result, and a call only samples and applies them."""
    images = torch.rand(4, 3, 32, 32)
    own = bank if with_bank else None
    transform = make(own)
    parameters = transform.sample_parameters(images)
    first = transform.apply_parameters(images, parameters)
    torch.rand(9)
    second = transform.apply_parameters(images, parameters)
    assert all(map(torch.equal, first, second))
    assert first[1].any()

    seeded = [make(own, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    called = seeded[0](images)
    applied = seeded[1].apply_parameters(images, seeded[1].sample_parameters(images))
    assert all(map(torch.equal, called, applied))


@pytest.mark.parametrize("source", SOURCES)
def test_images_of_a_batch_do_not_mix(bank: TextureBank, source: Source) -> None:
    """Replayed one by one, each image gets what it got in the batch."""
    images = smooth_images(5, (32, 32))
    images[1] = images[1, :1]  # a grey image among coloured ones
    transform = make(bank, source=source)
    parameters = transform.sample_parameters(images)
    augmented, masks = transform.apply_parameters(images, parameters)
    assert masks.any()
    for index in range(5):
        single = transform.apply_parameters(images[index : index + 1], only(parameters, index))
        torch.testing.assert_close(single[0][0], augmented[index])
        assert torch.equal(single[1][0], masks[index])


@pytest.mark.parametrize("with_bank", [True, False])
def test_own_generator_leaves_global_random_state(bank: TextureBank, with_bank: bool) -> None:
    """The global random state is not touched."""
    state = torch.get_rng_state()
    transform = make(bank if with_bank else None, generator=torch.Generator().manual_seed(0))
    transform(torch.rand(2, 3, 32, 32, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)


def test_global_seed_decides(bank: TextureBank) -> None:
    """Without its own generator, ``torch.manual_seed`` decides."""
    images = torch.rand(4, 3, 32, 32)
    transform = make(bank)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(images)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_blend_formula() -> None:
    """Within the mask, ``y = (1 - beta) x + beta texture``."""
    transform = DiffusionAnomalyGenerator(plain_bank(204), PLAIN)
    images = torch.rand(2, 3, 16, 16) * 0.5
    masks = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    masks[:, :, 4:9, 5:12] = True
    opacity = torch.tensor([0.25, 1.0]).reshape(2, 1, 1, 1)
    augmented, result = transform.apply_parameters(images, choices(masks, opacity=opacity))
    assert torch.equal(result, masks.float())
    torch.testing.assert_close(augmented, torch.where(masks, (1 - opacity) * images + opacity * 0.8, images))


def test_contrast_is_for_textures_of_the_bank(bank: TextureBank, generator: torch.Generator) -> None:
    """Small contrasts are drawn as often as large ones; shuffled tiles, and zero, exaggerate nothing."""
    transform = make(bank, source="mixture", contrast=(0.5, 8.0), generator=generator)
    parameters = transform.sample_parameters(torch.rand(3000, 3, 2, 2))
    contrast, from_bank = parameters.contrast.flatten(), parameters.from_bank.flatten()
    assert not contrast[~from_bank].any()
    assert 0.5 <= contrast[from_bank].min() < 0.52
    assert 7.7 < contrast[from_bank].max() <= 8.0
    assert contrast[from_bank].median().item() == pytest.approx(2.0, abs=0.3)
    none = make(bank, contrast=(0.0, 0.0)).sample_parameters(torch.rand(9, 3, 2, 2))
    assert not none.contrast.any()


@pytest.mark.usefixtures("no_jitter")
def test_defects_stand_out_from_the_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slightly different texture is exaggerated four times as much on a surface that is four times as rough."""
    monkeypatch.setattr(textures_module, "P_DISPLACED", 0.0)
    largest = []
    for spread in (0.03, 0.12):
        images = torch.full((16, 3, 32, 32), 0.5 + spread)
        images[:, :, ::2] -= 2 * spread
        normal = (images[:1] * 255).round()
        bank = TextureBank((normal + 10).to(torch.uint8), torch.tensor([0]), torch.zeros(1, 768))
        augmented, _ = DiffusionAnomalyGenerator(bank, replace(PLAIN, contrast=(2.0, 2.0)))(images)
        largest.append((augmented - images).abs().amax(dim=(1, 2, 3)))
    torch.testing.assert_close(largest[0].amax().item(), 0.06, atol=0.01, rtol=0)
    torch.testing.assert_close(largest[1].amax().item(), 0.24, atol=0.01, rtol=0)


@pytest.mark.parametrize(("count", "is_kept"), [(1, False), (2, True)])
def test_defects_of_hardly_any_area_are_dropped(count: int, is_kept: bool) -> None:
    """A few pixels are not a defect: the image stays as it was."""
    transform = DiffusionAnomalyGenerator(plain_bank(200), PLAIN)
    images = torch.zeros(1, 3, 64, 64)
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 7, 5 : 5 + count] = True
    augmented, result = transform.apply_parameters(images, choices(masks))
    assert torch.equal(result.bool(), masks & is_kept)
    assert torch.equal(augmented, images) != is_kept


@pytest.mark.usefixtures("no_jitter")
def test_texture_equal_to_the_image_marks_nothing() -> None:
    """A blend that changes nothing is not annotated."""
    images = torch.full((3, 3, 16, 16), 51 / 255)
    augmented, masks = make(plain_bank(51))(images)
    assert not masks.any()
    assert torch.equal(augmented, images)


def test_opacity_stays_in_range(bank: TextureBank) -> None:
    """The opacity fills the given range; a single number is used as it is."""
    opacity = make(bank, opacity=[0.3, 0.4]).sample_parameters(torch.rand(500, 3, 2, 2)).opacity
    assert 0.3 <= opacity.min() < 0.31
    assert 0.39 < opacity.max() <= 0.4
    fixed = make(bank, opacity=1)
    assert torch.equal(fixed.sample_parameters(torch.rand(9, 3, 2, 2)).opacity, torch.ones(9, 1, 1, 1))


def test_foreground(generator: torch.Generator) -> None:
    """Defects stay on the object with ``auto`` and reach the background with ``off``."""
    images = object_images(60)
    away = ~functional.max_pool2d(find_foreground(images).mask.float(), 3, stride=1, padding=1).bool()
    assert away.any()
    auto = make(foreground="auto", generator=generator)(images)[1].bool()
    off = make(foreground="off", generator=generator)(images)[1].bool()
    assert auto.any()
    assert not (auto & away).any()
    assert (off & away).any()


@pytest.mark.parametrize("source", ["diffusion", "self_texture"])
def test_defects_of_grey_images_are_grey(
    source: Source,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A grey image stays grey, whatever the jitter; a coloured one does not."""
    monkeypatch.setattr(generator_module, "P_JITTERED", 1.0)
    grey = torch.rand(8, 1, 32, 32).expand(-1, 3, -1, -1)
    transform = make(plain_bank(100), source=source, generator=generator)
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
    augmented, masks = make()(torch.rand(2, 3, *size))
    assert augmented.shape == (2, 3, *size)
    assert masks.shape == (2, 1, *size)


def test_bank_from_a_folder(bank: TextureBank, tmp_path: Path) -> None:
    """A saved bank is read from its path, given as a path or a string."""
    bank.save(tmp_path)
    images = torch.rand(3, 3, 32, 32)
    results = [
        DiffusionAnomalyGenerator(source, generator=torch.Generator().manual_seed(1))(images)[0]
        for source in (bank, tmp_path, str(tmp_path))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DiffusionAnomalyGenerator(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(3, 16, 16) * 2,
        torch.rand(2, 3, 16, 16) - 0.5,
        torch.randn(3, 16, 16),
        torch.rand(3, 16, 16) * 255,
        torch.full((3, 16, 16), torch.nan),
    ],
)
def test_wrong_range(image: torch.Tensor) -> None:
    """Images of another scale raise an error that gives the reason."""
    with pytest.raises(ValueError, match=r"\[0, 1\].*another scale, such as 0 to 255, or are normalised"):
        DiffusionAnomalyGenerator()(image)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_overshoot_of_an_interpolation(mode: str) -> None:
    """Values slightly outside [0, 1] are accepted; outside the mask the image stays as it was, bit for bit."""
    image = torch.ones(1, 3, 60, 60)
    image[..., 20:40, 20:40] = 0
    resized = torch.nn.functional.interpolate(image, size=(44, 44), mode=mode, antialias=True) * 1.0000005
    assert resized.max() > 1
    augmented, mask = DiffusionAnomalyGenerator().make_defects(resized)
    assert mask.any()
    outside = ~mask.bool().expand_as(resized)
    assert torch.equal(augmented[outside], resized[outside])
    assert augmented[~outside].min() >= 0
    assert augmented[~outside].max() <= 1


@pytest.mark.parametrize("shape", [(2, 16, 16), (4, 16, 16), (2, 4, 16, 16), (16, 16), (1, 2, 3, 16, 16)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    """The message gives the shape."""
    with pytest.raises(ValueError, match=r"\(C, H, W\).*16, 16\)"):
        DiffusionAnomalyGenerator()(torch.rand(shape))


@pytest.mark.parametrize("source", ["diffusion", "mixture"])
def test_sources_that_need_a_bank(source: Source) -> None:
    """The message names the source and the remedy."""
    with pytest.raises(ValueError, match=rf"source '{source}' needs a bank.*'self_texture'"):
        DiffusionAnomalyGenerator(defects={"source": source})


@pytest.mark.parametrize("arguments", [{"opacity": (0.8, 0.2)}, {"probability": 1.5}, {"foreground": "on"}])
def test_bad_settings(arguments: dict[str, Any]) -> None:
    """A dictionary is checked like the dataclass."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DiffusionAnomalyGenerator(defects=arguments)


@pytest.mark.parametrize("foreground", ["auto", "off"])
@pytest.mark.usefixtures("no_jitter")
def test_objects_are_shifted_and_surfaces_zoomed(foreground: Foreground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A texture that equals the image marks nothing in place, and its differences when displaced."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    inside = (rows - 32) ** 2 + (columns - 32) ** 2 < 18**2
    image = torch.where(inside, torch.rand(1, 3, 64, 64) * 0.3, 0.9)
    bank = TextureBank((image * 255).round().to(torch.uint8), torch.tensor([0]), torch.zeros(1, 768))
    transform = DiffusionAnomalyGenerator(bank, replace(PLAIN, foreground=foreground))
    for p_displaced in (0.0, 1.0):
        monkeypatch.setattr(textures_module, "P_DISPLACED", p_displaced)
        masks = [transform(image)[1] for _ in range(20)]
        assert any(mask.any() for mask in masks) == bool(p_displaced)
    parameters = transform.sample_parameters(image)
    displaced = parameters.bank_textures
    assert displaced is not None
    parameters = choices(torch.ones(1, 1, 64, 64, dtype=torch.bool), bank_textures=displaced)
    shifted = shift_and_flip(image, displaced.shifts, displaced.flips)
    expected = shifted if foreground == "auto" else warp(image, displaced.angles, displaced.scales)
    augmented, masks = transform.apply_parameters(image, parameters)
    inside = masks.bool().expand_as(image)
    assert inside.any()
    torch.testing.assert_close(augmented[inside], expected[inside], atol=1 / 255, rtol=0)


@pytest.mark.parametrize("p_soft", [0.0, 0.4, 1.0])
def test_probability_of_soft_edges(bank: TextureBank, p_soft: float) -> None:
    """Masks have soft edges with the given probability."""
    parameters = make(bank, p_soft=p_soft).sample_parameters(torch.rand(300, 3, 16, 16))
    fraction = (parameters.softness > 0).float().mean().item()
    assert fraction == pytest.approx(p_soft, abs=0.1 if 0 < p_soft < 1 else 0)


def test_soft_edges_fade_out() -> None:
    """The change falls with the distance from the mask, down to the threshold at which the mask ends."""
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[:, :, :, :32] = True
    images = torch.full((1, 3, 64, 64), 0.2)
    transform = DiffusionAnomalyGenerator(plain_bank(204), PLAIN)
    augmented, marked = transform.apply_parameters(images, choices(masks, softness=torch.tensor([0.05])))
    change = (augmented - images)[0, 0, 32, 20:50]
    assert (change.diff() <= 1e-6).all()
    assert 0.1 < change[12] < 0.5
    assert marked[0, 0, 32, 34] == 1
    assert change[change > 0].min() < 0.12


def test_default_source(bank: TextureBank) -> None:
    """The mixture if there is a bank, else shuffled tiles."""
    assert DiffusionAnomalyGenerator(bank).defects == DefectConfig()
    without = DiffusionAnomalyGenerator()
    assert without.defects == DefectConfig(source="self_texture")
    parameters = without.sample_parameters(torch.rand(50, 3, 4, 4))
    assert not parameters.from_bank.any()
    assert parameters.tile_order is not None


@pytest.mark.parametrize(("source", "fraction"), [("diffusion", 1.0), ("mixture", 0.5), ("self_texture", 0.0)])
def test_fractions_of_sources(bank: TextureBank, source: Source, fraction: float, generator: torch.Generator) -> None:
    """Textures come from the bank with the probability of the source, and only what is needed is drawn."""
    parameters = make(bank, source=source, generator=generator).sample_parameters(torch.rand(2000, 3, 2, 2))
    found = parameters.from_bank.float().mean().item()
    assert found == pytest.approx(fraction, abs=0.05 if 0 < fraction < 1 else 0)
    assert (parameters.bank_textures is not None) == (fraction > 0)
    assert (parameters.tile_order is not None) == (fraction < 1)


def test_each_image_gets_the_texture_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bank and shuffled tiles in one batch."""
    monkeypatch.setattr(blending_module, "CHANGE_THRESHOLD", 0.0)
    transform = DiffusionAnomalyGenerator(plain_bank(51), replace(PLAIN, source="mixture"))
    images = torch.rand(3, 3, 16, 16) * 0.5 + 0.3
    order = torch.stack([torch.randperm(64) for _ in range(3)])
    from_bank = torch.tensor([False, True, False]).reshape(3, 1, 1, 1)
    parameters = choices(torch.ones(3, 1, 16, 16, dtype=torch.bool), from_bank=from_bank, tile_order=order)
    augmented, _ = transform.apply_parameters(images, parameters)
    shuffled = ShuffledTiles.apply(images, order)
    torch.testing.assert_close(augmented[0], shuffled[0])
    torch.testing.assert_close(augmented[1], torch.full((3, 16, 16), 0.2))
    torch.testing.assert_close(augmented[2], shuffled[2])


def test_jitter(bank: TextureBank, generator: torch.Generator) -> None:
    """The colours of half of the bank's textures are changed, within their ranges; those of shuffled tiles always."""
    images = torch.rand(1000, 3, 2, 2)
    parameters = make(bank, generator=generator).sample_parameters(images)
    changed = (parameters.gain != 1).flatten(1)
    assert torch.equal(changed.any(dim=1), changed.all(dim=1))
    assert torch.equal(changed, (parameters.offset != 0).flatten(1))
    assert changed[:, 0].float().mean().item() == pytest.approx(0.5, abs=0.05)
    gain, offset = (values[changed[:, 0]] for values in (parameters.gain, parameters.offset))
    assert 0.5 <= gain.min() < 0.52
    assert 1.48 < gain.max() <= 1.5
    assert -0.2 <= offset.min() < -0.19
    assert 0.19 < offset.max() <= 0.2
    assert (gain[:, 0] != gain[:, 1]).all()
    parameters = make(generator=generator).sample_parameters(images)
    assert (parameters.gain != 1).all()
    assert (parameters.offset != 0).all()


@pytest.mark.parametrize("p_local", [0.0, 0.3, 1.0])
def test_probability_of_local_defects(bank: TextureBank, p_local: float, generator: torch.Generator) -> None:
    """With this probability a defect lies in a window of at most half of the image's side; others lie anywhere."""
    images = torch.rand(150, 3, 16, 16)
    transform = make(bank, p_local=p_local, generator=generator)
    parameters = transform.sample_parameters(images)
    used = parameters.windows.used.flatten()
    assert used.float().mean().item() == pytest.approx(p_local, abs=0.12 if 0 < p_local < 1 else 0)
    masks = transform.apply_parameters(images, parameters)[1].flatten(1)
    if p_local:
        assert masks[used].mean(dim=1).max() < 0.3
    if p_local < 1:
        assert masks[~used].mean(dim=1).max() > 0.3


@pytest.mark.parametrize("foreground", ["auto", "off"])
def test_defects_of_padded_images_show_no_padding(foreground: Foreground) -> None:
    """Shuffled tiles come from within the frame, and with a foreground no defect lies in the frame."""
    image = torch.zeros(1, 3, 96, 96)
    image[..., 20:-20, 12:-12] = 0.6 + 0.1 * torch.rand(3, 56, 72)
    shuffled = replace(PLAIN, source="self_texture", foreground=foreground)
    transform = DiffusionAnomalyGenerator(defects=shuffled, generator=torch.Generator().manual_seed(3))
    changed = 0
    for _ in range(20):
        parameters = transform.sample_parameters(image)
        plain = replace(parameters, gain=torch.ones(1, 3, 1, 1), offset=torch.zeros(1, 3, 1, 1))
        augmented, mask = transform.apply_parameters(image, plain)
        inside = mask[..., 20:-20, 12:-12] > 0
        changed += int(inside.sum())
        assert augmented[..., 20:-20, 12:-12].min() > 0.5
        if foreground == "auto":
            assert mask.sum() == inside.sum()
    assert changed > 0


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def test_parts_of_objects(generator: torch.Generator) -> None:
    """On an object, the defect is a part of it; on a surface it is a texture, unless its images are alike."""
    images = torch.rand(40, 3, 64, 64, generator=generator)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[12:52, 12:52] = True
    images[:20] = torch.where(inside, 0.4 * images[:20], 0.9 + 0.02 * images[:20])
    transform = make(p_parts=1.0, generator=generator)
    parameters = transform.sample_parameters(images)
    assert parameters.parts is not None
    foreground, is_surface, _ = find_foreground(images)
    assert is_surface.tolist() == [False] * 20 + [True] * 20
    expected, parts = change_parts(images, foreground, parameters.parts)
    seen = parts.flatten(1).any(dim=1)
    assert seen.float().mean() > 0.8
    for alike in (False, True):
        transform.parts_lie_alike = alike
        augmented, masks = transform.apply_parameters(images, parameters)
        used = seen & (~is_surface | alike)
        assert torch.equal(masks[used].bool(), parts[used])
        assert torch.equal(augmented[used], expected[used])
        others = seen & is_surface & (not alike)
        assert not (masks[others].bool() == parts[others]).flatten(1).all(dim=1).any()


def test_part_that_is_invisible_leaves_the_texture(generator: torch.Generator) -> None:
    """A part of a plain object that would look the same."""
    images = torch.full((30, 3, 64, 64), 0.9)
    images[..., 20:44, 20:44] = 0.2
    with_parts, without = (make(plain_bank(140), p_parts=share, generator=generator) for share in (1.0, 0.0))
    parameters = with_parts.sample_parameters(images)
    invisible = ~change_parts(images, find_foreground(images).mask, parameters.parts)[1].flatten(1).any(dim=1)
    assert invisible.any()
    expected = without.apply_parameters(images, replace(parameters, parts=None))
    for value, other in zip(with_parts.apply_parameters(images, parameters), expected, strict=True):
        assert torch.equal(value[invisible], other[invisible])


@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
def test_probability_of_parts(share: float) -> None:
    """0 draws none."""
    parts = make(p_parts=share).sample_parameters(torch.rand(400, 3, 16, 16)).parts
    assert (0 if parts is None else parts.used.float().mean()) == pytest.approx(share, abs=0.05)
