# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the sampling of a bank."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from anomalib_ddpm_st.diffusion import DefectPipeline
from anomalib_ddpm_st.diffusion import pipeline as pipeline_module
from anomalib_ddpm_st.synthesis import BankConfig, TextureBank, sample_bank, sampling
from anomalib_ddpm_st.synthesis.sampling import count_reverse_steps
from anomalib_ddpm_st.synthesis.texture_bank import thumbnails


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Banks of a few textures take several batches."""
    monkeypatch.setattr(sampling, "BATCH_SIZE", 3)


def sample(pipeline: DefectPipeline, images: torch.Tensor, **settings: Any) -> TextureBank:  # noqa: ANN401
    """Bank sampled in two steps, unless said otherwise."""
    return sample_bank(pipeline, images, {"num_inference_steps": 2, **settings})


def test_sample_bank(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Shapes, types and values are as documented, and textures start from the normal images in turn."""
    bank = sample(pipeline, normal_images, size=10)
    assert len(bank) == 10
    assert bank.textures.shape == (10, 3, 32, 32)
    assert bank.textures.dtype == torch.uint8
    torch.testing.assert_close(bank.source_thumbnails, thumbnails(normal_images / 255))
    counts = torch.bincount(bank.sources, minlength=4)
    assert counts.min() >= 2
    assert counts.max() <= 3
    assert bank.aspect is None
    aspect = sample_bank(pipeline, normal_images, BankConfig(size=1, num_inference_steps=1), aspect=1.5).aspect
    assert aspect is not None
    assert aspect.tolist() == pytest.approx(1.5)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_any_size(pipeline: DefectPipeline, normal_images: torch.Tensor, size: int) -> None:
    """The number of textures can be smaller than that of the images, and need not be a multiple of it."""
    bank = sample(pipeline, normal_images, size=size)
    assert len(bank) == len(bank.sources) == size
    assert bank.sources.unique().numel() == min(size, 4)


def test_count_reverse_steps(
    pipeline: DefectPipeline, normal_images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the network really takes."""
    counts: list[int] = []
    original = pipeline_module.denoise

    def denoise(unet: UNet2DModel, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        counts.append(len(sample))
        return original(unet, sample, timesteps)

    monkeypatch.setattr(pipeline_module, "denoise", denoise)
    config = BankConfig(size=5, num_inference_steps=4)
    sample_bank(pipeline, normal_images, config)
    assert sum(counts) == count_reverse_steps(config)


def test_sample_bank_is_seeded(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """The bank depends on its seed alone, and the global random state is not touched."""
    state = torch.get_rng_state()
    first = sample(pipeline, normal_images, size=4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = sample(pipeline, normal_images, size=4, seed=1)
    other = sample(pipeline, normal_images, size=4, seed=2)
    assert torch.equal(first.textures, second.textures)
    assert torch.equal(first.sources, second.sources)
    assert not torch.equal(first.textures, other.textures)


def test_texture_is_paired_with_its_source(
    pipeline: DefectPipeline,
    normal_images: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a network that changes nothing, a texture looks like its source."""
    monkeypatch.setattr(pipeline_module, "denoise", lambda _, sample, *__: sample)
    bank = sample(pipeline, normal_images, size=9, delta=(0.0, 0.0), start_timestep=(1, 1))
    difference = bank.textures.float() - normal_images[bank.sources].float()
    assert difference.abs().max() < 16


def test_delta_and_start_stay_in_range(
    pipeline: DefectPipeline,
    normal_images: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each texture has its own delta and each batch its own start; both ranges are filled, ends included."""
    deltas, starts = [], []
    original = DefectPipeline.__call__

    def spy(self: DefectPipeline, **arguments: Any) -> Any:  # noqa: ANN401
        perturbed, unperturbed = arguments["delta"].chunk(2)
        deltas.extend(perturbed.tolist())
        assert not unperturbed.any()
        starts.append(arguments["start_timestep"])
        return original(self, **{**arguments, "num_inference_steps": 1})

    monkeypatch.setattr(DefectPipeline, "__call__", spy)
    sample(pipeline, normal_images, size=60, delta=(0.2, 0.6), start_timestep=(5, 7))
    assert len(deltas) == 60
    assert len(set(deltas)) == 60
    assert 0.2 <= min(deltas) < 0.3
    assert 0.5 < max(deltas) <= 0.6
    assert set(starts) == {5, 6, 7}


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_texture_formula(
    pipeline: DefectPipeline,
    normal_images: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    fraction: float,
) -> None:
    """The perturbed sample plus a fraction of what the unperturbed one lost of the normal image."""
    pairs = []
    original = DefectPipeline.__call__

    def spy(self: DefectPipeline, **arguments: Any) -> Any:  # noqa: ANN401
        pairs.append((arguments["images"], original(self, **arguments)[0]))
        return pairs[-1][1:]

    monkeypatch.setattr(DefectPipeline, "__call__", spy)
    bank = sample(pipeline, normal_images, size=3, detail=(fraction, fraction))
    ((images, samples),) = pairs
    (normal, same), (perturbed, unperturbed) = images.chunk(2), samples.chunk(2)
    assert torch.equal(normal, normal_images[bank.sources] / 255)
    assert torch.equal(same, normal)
    expected = (perturbed + fraction * (normal - unperturbed)).clamp(0, 1)
    assert (perturbed - unperturbed).abs().max() > 0.1
    torch.testing.assert_close(bank.textures / 255, expected, atol=0.51 / 255, rtol=0)


def test_detail_is_added_back(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Without a perturbation, a texture with all of its detail is the normal image; without detail it is not."""
    settings: dict[str, Any] = {"size": 4, "delta": (0.0, 0.0), "start_timestep": (300, 300)}
    whole = sample(pipeline, normal_images, detail=(1.0, 1.0), **settings)
    bare = sample(pipeline, normal_images, detail=(0.0, 0.0), **settings)
    normal = normal_images[whole.sources].int()
    assert (whole.textures.int() - normal).abs().max() <= 1
    assert (bare.textures.int() - normal).abs().max() > 20


def test_default_detail(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Each texture gets back its own fraction, from nothing to everything."""
    assert BankConfig().detail == (0.0, 1.0)
    textures = sample(pipeline, normal_images, size=8, seed=3).textures
    bare, whole = (
        sample(pipeline, normal_images, size=8, seed=3, detail=(fraction, fraction)).textures.float()
        for fraction in (0.0, 1.0)
    )
    free = (whole > 0) & (whole < 255) & (bare > 0) & (bare < 255) & ((whole - bare).abs() > 30)
    fractions = []
    for index in range(8):
        pixels = free[index]
        ratio = (textures[index].float() - bare[index])[pixels] / (whole[index] - bare[index])[pixels]
        assert (ratio - ratio.median()).abs().max() < 0.1
        fractions.append(ratio.median().item())
    assert len({round(fraction, 2) for fraction in fractions}) > 4
    assert min(fractions) > -0.02
    assert max(fractions) < 1.02


def test_bad_settings(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """A dictionary is checked like the dataclass."""
    with pytest.raises(ValueError, match=r"bank\.delta must be"):
        sample(pipeline, normal_images, delta=(2, 1))
