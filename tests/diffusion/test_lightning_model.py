# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the training of the DDPM."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from anomalib_ddpm_st.diffusion import DefectPipeline, DiffusionModule, lightning_model, train_diffusion
from anomalib_ddpm_st.diffusion.lightning_model import CHECKPOINT_NAME, FEW_IMAGES
from anomalib_ddpm_st.diffusion.unet import position_encoding, unpatchify

SETTINGS: dict[str, Any] = {
    "training_steps": 4,
    "batch_size": 2,
    "block_out_channels": (8, 8),
    "accelerator": "cpu",
    "devices": 1,
}
INTERRUPTIONS = (KeyboardInterrupt, SystemExit)


@pytest.fixture(autouse=True)
def _short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps an epoch, so that a checkpoint is written half way."""
    monkeypatch.setattr(lightning_model, "STEPS_PER_EPOCH", 2)


def weights(pipeline: DefectPipeline) -> torch.Tensor:
    """All weights of the network in one vector."""
    return torch.cat([value.flatten() for value in pipeline.unet.state_dict().values()])


def count_steps(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None, error: type | None = None) -> list[int]:
    """Count training steps, and raise an error at one of them."""
    steps: list[int] = []
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if error is not None and len(steps) == stop_at:
            raise error
        steps.append(self.global_step)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", training_step)
    return steps


def test_saves_a_pipeline(normal_images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training leaves a folder that loads to the returned pipeline, and no checkpoint."""
    steps = count_steps(monkeypatch)
    trained = train_diffusion(normal_images, tmp_path, **SETTINGS)
    assert steps == [0, 1, 2, 3]
    assert not (tmp_path / CHECKPOINT_NAME).exists()
    loaded = DefectPipeline.from_pretrained(tmp_path)
    assert torch.equal(weights(loaded), weights(trained))
    assert trained.unet.device.type == "cpu"
    assert not trained.unet.training
    result = trained(images=normal_images[:1] / 255, start=100, num_inference_steps=2).images
    assert result.isfinite().all()


def test_seed_decides_the_weights(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """Same seed, same weights, whatever the global random state; another seed, others."""
    first = weights(train_diffusion(normal_images, tmp_path / "a", seed=3, **SETTINGS))
    torch.rand(7)
    second = weights(train_diffusion(normal_images, tmp_path / "b", seed=3, **SETTINGS))
    other = weights(train_diffusion(normal_images, tmp_path / "c", seed=4, **SETTINGS))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_leaves_random_state(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """The caller's random numbers go on as if nothing had happened."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # ruff: ignore[numpy-legacy-random]
    train_diffusion(normal_images, tmp_path, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    after = np.random.get_state()  # ruff: ignore[numpy-legacy-random]
    assert np.array_equal(after[1], before[2][1])
    assert after[2] == before[2][2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_goes_on_after_an_interruption(
    error: type[BaseException],
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupted training leaves a checkpoint, and the next call goes on from it."""
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        steps = count_steps(patch, stop_at=3, error=error)
        with pytest.raises((*INTERRUPTIONS, RuntimeError)):
            train_diffusion(normal_images, tmp_path, **SETTINGS)
    assert steps == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "model_index.json").exists()
    assert torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)["global_step"] == 2

    steps = count_steps(monkeypatch)
    train_diffusion(normal_images, tmp_path, **SETTINGS)
    assert steps == [2, 3]
    assert (tmp_path / "model_index.json").exists()
    assert not (tmp_path / CHECKPOINT_NAME).exists()


def test_stopped_short_is_an_interruption(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """A Trainer that ends too soon does not pass for a whole training."""
    with pytest.raises(KeyboardInterrupt, match="2 of 4"):
        train_diffusion(normal_images, tmp_path, **SETTINGS, max_epochs=1)
    assert not (tmp_path / "model_index.json").exists()
    assert (tmp_path / CHECKPOINT_NAME).exists()


def test_averaged_weights_are_in_the_checkpoint(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """The checkpoint holds averaged weights apart from the trained ones, and a module takes them back."""
    with pytest.raises(INTERRUPTIONS):
        train_diffusion(normal_images, tmp_path, **SETTINGS, max_epochs=1)
    checkpoint = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)
    assert checkpoint["ema"]["optimization_step"] == 2
    averaged = checkpoint["ema"]["shadow_params"]
    trained = [value for name, value in checkpoint["state_dict"].items() if name.startswith("unet.")]
    assert [value.shape for value in averaged] == [value.shape for value in trained]
    assert any(not torch.equal(one, other) for one, other in zip(averaged, trained, strict=True))

    module = DiffusionModule.load_from_checkpoint(tmp_path / CHECKPOINT_NAME)
    result = weights(module.pipeline())
    assert torch.equal(result, torch.cat([value.flatten() for value in averaged]))
    assert not torch.equal(result, torch.cat([value.flatten() for value in trained]))


def test_average_follows_the_weights() -> None:
    """Once the average is warm, a step moves it towards the weights and not all the way."""
    module = DiffusionModule((32, 32), block_out_channels=(8, 8), ema_decay=0.9)
    module.ema.optimization_step = 10_000
    before = weights(module.pipeline())
    with torch.no_grad():
        for parameter in module.unet.parameters():
            parameter.add_(1.0)
    module.on_train_batch_end()
    torch.testing.assert_close(weights(module.pipeline()), before + 0.1, atol=1e-5, rtol=0)


def test_perfect_prediction_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is the clean image in [-1, 1], padded to the size of the network by its edge."""
    module = DiffusionModule((30, 29), block_out_channels=(8, 8))
    images = torch.randint(0, 256, (3, 3, 30, 29), dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    add_noise = module.noise_scheduler.add_noise

    def spy(sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append(sample)
        return add_noise(sample, noise, timesteps)

    monkeypatch.setattr(module.noise_scheduler, "add_noise", spy)
    monkeypatch.setattr(lightning_model, "denoise", lambda *_: seen[-1])
    assert module.training_step([images], 0).item() == 0
    sample = unpatchify(seen[0], 4)
    assert sample.shape == (3, 3, 32, 32)
    assert sample[0, 0, 0, :2].tolist() == [-1, 1]
    torch.testing.assert_close(sample[..., :30, :29], images / 127.5 - 1)
    assert torch.equal(sample[..., 30, :], sample[..., 29, :])
    assert torch.equal(sample[..., 31], sample[..., 28])

    monkeypatch.setattr(lightning_model, "denoise", lambda *_: seen[-1] + 0.5)
    assert module.training_step([images], 0).item() >= 0.25


def test_few_images_are_moved_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """At half of the steps the network sees a quarter of the image, together with the place that it has there."""
    module = DiffusionModule((64, 96), block_out_channels=(8, 8), few_images=True)
    rows = torch.linspace(0, 255, 64)[:, None].expand(64, 96)
    columns = torch.linspace(0, 255, 96)[None].expand(64, 96)
    images = torch.stack([rows, columns, torch.zeros(64, 96)]).round().to(torch.uint8)[None]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    add_noise = module.noise_scheduler.add_noise
    samples: list[torch.Tensor] = []

    def spy(sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        samples.append(sample)
        return add_noise(sample, noise, timesteps)

    def denoise(_: Any, noisy: torch.Tensor, __: Any, position: torch.Tensor) -> torch.Tensor:  # ruff: ignore[any-type]
        seen.append((samples[-1], position))
        return torch.zeros_like(noisy)

    monkeypatch.setattr(module.noise_scheduler, "add_noise", spy)
    monkeypatch.setattr(lightning_model, "denoise", denoise)
    for _ in range(60):
        module.training_step([images], 0)
    cut = [position.shape[-2:] == (8, 12) for _, position in seen]
    assert 0.25 < sum(cut) / len(cut) < 0.75
    whole = position_encoding(16, 24)
    places = []
    for (sample, position), is_cut in zip(seen, cut, strict=True):
        assert sample.shape[-2:] == position.shape[-2:]
        if not is_cut:
            assert torch.equal(position, whole)
            continue
        windows = whole.unfold(2, 8, 1).unfold(3, 12, 1)
        found = (windows == position[:, :, None, None]).flatten(4).all(dim=4).all(dim=1)[0].nonzero()
        assert len(found) == 1
        places.append(tuple(found[0].tolist()))
        # Where the window says that it is, up to what the image was moved by.
        top = (unpatchify(sample, 4)[0, 0].mean() + 1) / 2 * 16
        assert top.item() == pytest.approx(found[0, 0].item() + 4, abs=3)
    assert len(set(places)) > 5
    moved = {round(sample.mean().item(), 5) for (sample, _), is_cut in zip(seen, cut, strict=True) if not is_cut}
    assert len(moved) > 5


@pytest.mark.parametrize(("count", "few"), [(1, True), (FEW_IMAGES - 1, True), (FEW_IMAGES, False)])
def test_what_few_images_are(count: int, few: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than twenty; one is enough to train with."""
    asked: list[bool] = []
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        asked.append(self.few_images)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", training_step)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    train_diffusion(images, tmp_path, **{**SETTINGS, "training_steps": 2})
    assert asked == [few, few]


@pytest.mark.parametrize("few", [False, True])
def test_large_images_are_learnt_and_sampled_in_windows(
    few: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in training nor in sampling does the network see more than a window, and the folder keeps that."""
    monkeypatch.setattr(lightning_model, "MAX_WHOLE_SIZE", 48)
    monkeypatch.setattr(lightning_model, "WINDOW_SIZE", 32)
    monkeypatch.setattr(lightning_model, "FEW_IMAGES", 4 if few else 3)
    images = torch.randint(0, 256, (3, 3, 40, 72), dtype=torch.uint8)
    sizes: list[tuple[int, ...]] = []
    forward = UNet2DModel.forward

    def spy(self: UNet2DModel, sample: torch.Tensor, *arguments: torch.Tensor) -> object:
        sizes.append((sample.shape[-2], sample.shape[-1]))
        return forward(self, sample, *arguments)

    monkeypatch.setattr(UNet2DModel, "forward", spy)
    train_diffusion(images, tmp_path, **SETTINGS)
    assert sizes == [(8, 8)] * SETTINGS["training_steps"]
    loaded = DefectPipeline.from_pretrained(tmp_path)
    for start in ("noise", 300):
        samples = loaded(images=images[:2] / 255, start=start, num_inference_steps=2, strength=0.2).images
        assert samples.shape == (2, 3, 40, 72)
        assert samples.isfinite().all()
    assert set(sizes) == {(8, 8)}

    sizes.clear()
    train_diffusion(images[..., :48], tmp_path / "small", **SETTINGS)
    assert (10, 12) in sizes


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """Thirty steps on one flat image bring samples near to it."""
    images = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    settings = {**SETTINGS, "training_steps": 30, "learning_rate": 1e-2}
    trained = train_diffusion(images, tmp_path, **settings)
    trained.set_progress_bar_config(disable=True)
    sample = trained(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    assert (sample.mean() - 200 / 255).abs() < 0.12
    assert sample.std() < 0.12
