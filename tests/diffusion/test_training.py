# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the training of the DDPM."""

import os
import random
import signal
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from anomalib_ddpm_st.core.training_loader import ResumableSampler
from anomalib_ddpm_st.diffusion import DefectPipeline, DiffusionConfig, DiffusionModule, train_diffusion, training
from anomalib_ddpm_st.diffusion.training import CHECKPOINT_NAME, ENOUGH_IMAGES, SaveOnSignal

SETTINGS: dict[str, Any] = {"training_steps": 4, "batch_size": 2, "block_out_channels": (8, 8)}
TRAINER: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
INTERRUPTIONS = (KeyboardInterrupt, SystemExit)


@pytest.fixture(autouse=True)
def _short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps an epoch, so that a checkpoint is written half way."""
    monkeypatch.setattr(training, "STEPS_PER_EPOCH", 2)


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
    trained = train_diffusion(normal_images, tmp_path, SETTINGS, **TRAINER)
    assert steps == [0, 1, 2, 3]
    assert not (tmp_path / CHECKPOINT_NAME).exists()
    loaded = DefectPipeline.from_pretrained(tmp_path)
    assert torch.equal(weights(loaded), weights(trained))
    assert trained.unet.device.type == "cpu"
    assert not trained.unet.training
    result = trained(images=normal_images[:1] / 255, start_timestep=100, num_inference_steps=2).images
    assert result.isfinite().all()


def test_seed_decides_the_weights(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """Same seed, same weights, whatever the global random state; another seed, others."""
    first = weights(train_diffusion(normal_images, tmp_path / "a", {**SETTINGS, "seed": 3}, **TRAINER))
    torch.rand(7)
    second = weights(train_diffusion(normal_images, tmp_path / "b", {**SETTINGS, "seed": 3}, **TRAINER))
    other = weights(train_diffusion(normal_images, tmp_path / "c", {**SETTINGS, "seed": 4}, **TRAINER))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_leaves_random_state(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """The random state of the caller stays as it was."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    train_diffusion(normal_images, tmp_path, SETTINGS, **TRAINER)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    after = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(after[1], before[2][1])
    assert after[2] == before[2][2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_goes_on_after_an_interruption(
    error: type[BaseException],
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupted training leaves a checkpoint, and the next call resumes from it."""
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        steps = count_steps(patch, stop_at=3, error=error)
        with pytest.raises((*INTERRUPTIONS, RuntimeError)):
            train_diffusion(normal_images, tmp_path, SETTINGS, **TRAINER)
    assert steps == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "model_index.json").exists()
    assert torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)["global_step"] == 2

    steps = count_steps(monkeypatch)
    train_diffusion(normal_images, tmp_path, SETTINGS, **TRAINER)
    assert steps == [2, 3]
    assert (tmp_path / "model_index.json").exists()
    assert not (tmp_path / CHECKPOINT_NAME).exists()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("few", "interruption", "steps"),
    [(False, KeyboardInterrupt, (2, 3, 6)), (True, signal.SIGINT, (1, 2, 5)), (True, signal.SIGTERM, (3, 4))],
    ids=["error", "SIGINT", "SIGTERM"],
)
def test_resumed_training_equals_an_uninterrupted_one(
    few: bool,
    interruption: Any,  # noqa: ANN401
    steps: tuple[int, ...],
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses, weights and averaged weights, bit for bit, with and without random augmentations.

    A signal leaves a checkpoint of its step; after an error, the steps since the last checkpoint are repeated.
    """
    monkeypatch.setattr(training, "ENOUGH_IMAGES", len(normal_images) + few)
    settings = {**SETTINGS, "training_steps": 7, "seed": 3}
    losses: list[float] = []
    modules: list[DiffusionModule] = []
    training_step, pipeline = DiffusionModule.training_step, DiffusionModule.pipeline

    def train(folder: Path, stop_at: int | None = None) -> None:
        """Train, with an interruption before the end of a step."""

        def step(self: DiffusionModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            if self.global_step == stop_at and interruption is KeyboardInterrupt:
                raise KeyboardInterrupt
            if self.global_step + 1 == stop_at and interruption is not KeyboardInterrupt:
                os.kill(os.getpid(), interruption)
            loss = training_step(self, batch, batch_idx)
            del losses[self.global_step :]
            losses.append(loss.item())
            return loss

        monkeypatch.setattr(DiffusionModule, "training_step", step)
        train_diffusion(normal_images, folder, settings, **TRAINER)

    def keep(self: DiffusionModule) -> DefectPipeline:
        modules.append(self)
        return pipeline(self)

    monkeypatch.setattr(DiffusionModule, "pipeline", keep)
    train(tmp_path / "whole")
    expected = list(losses)
    assert len(set(expected)) == 7
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for stop_at in steps:
        folder = tmp_path / str(stop_at)
        with pytest.raises(INTERRUPTIONS, match=f"stopped at step {stop_at} of 7"):
            train(folder, stop_at)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        saved = torch.load(folder / CHECKPOINT_NAME, weights_only=True)["global_step"]
        assert saved == (stop_at // 2 * 2 if interruption is KeyboardInterrupt else stop_at)
        torch.rand(stop_at)
        train(folder)
        assert losses == expected
        for one, other in zip(modules[-1].unet.parameters(), modules[0].unet.parameters(), strict=True):
            assert torch.equal(one, other)
        for one, other in zip(modules[-1].ema.shadow_params, modules[0].ema.shadow_params, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_signals_are_given_back(number: int | None, tmp_path: Path) -> None:
    """At the end, where only a signal makes a checkpoint."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    stop = SaveOnSignal(tmp_path / CHECKPOINT_NAME, ResumableSampler(range(3), 2))
    trainer = MagicMock(world_size=1)
    stop.on_train_start(trainer, None)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] != before
    if number is not None:
        os.kill(os.getpid(), number)
    stop.on_train_end(trainer, None)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert trainer.save_checkpoint.called == (number is not None)


def test_training_is_lengthened(normal_images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of a shorter training resumes with more steps, at the learning rates of the longer schedule."""
    with pytest.raises(INTERRUPTIONS):
        train_diffusion(normal_images, tmp_path, SETTINGS, **TRAINER, max_epochs=1)
    rates: dict[int, float] = {}
    original = DiffusionModule.on_train_batch_end

    def on_train_batch_end(self: DiffusionModule, *arguments: object) -> None:
        rates[self.global_step] = self.optimizers().param_groups[0]["lr"]
        original(self, *arguments)

    monkeypatch.setattr(DiffusionModule, "on_train_batch_end", on_train_batch_end)
    longer = {**SETTINGS, "training_steps": 9}
    train_diffusion(normal_images, tmp_path, longer, **TRAINER)
    resumed = dict(rates)
    assert list(resumed) == [3, 4, 5, 6, 7, 8, 9]
    train_diffusion(normal_images, tmp_path / "whole", longer, **TRAINER)
    assert resumed == {step: pytest.approx(rate) for step, rate in rates.items() if step > 2}


def test_stopped_short_is_an_interruption(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """A Trainer that ends too soon does not pass for a whole training."""
    with pytest.raises(KeyboardInterrupt, match="2 of 4"):
        train_diffusion(normal_images, tmp_path, SETTINGS, **TRAINER, max_epochs=1)
    assert not (tmp_path / "model_index.json").exists()
    assert (tmp_path / CHECKPOINT_NAME).exists()


def test_averaged_weights_are_in_the_checkpoint(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """The checkpoint holds averaged weights apart from the trained ones, and a module takes them back."""
    with pytest.raises(INTERRUPTIONS):
        train_diffusion(normal_images, tmp_path, SETTINGS, **TRAINER, max_epochs=1)
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


@pytest.mark.parametrize(("count", "few"), [(1, True), (ENOUGH_IMAGES - 1, True), (ENOUGH_IMAGES, False)])
def test_what_few_images_are(count: int, few: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than twenty; one is enough to train with."""
    asked: list[bool] = []
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        asked.append(self.few_images)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", training_step)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    train_diffusion(images, tmp_path, {**SETTINGS, "training_steps": 2}, **TRAINER)
    assert asked == [few, few]


@pytest.mark.parametrize("few", [False, True])
def test_large_images_are_learnt_and_sampled_in_windows(
    few: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in training nor in sampling does the network see more than a window, and the folder keeps that."""
    monkeypatch.setattr(training, "MAX_WHOLE_SIZE", 48)
    monkeypatch.setattr(training, "WINDOW_SIZE", 32)
    monkeypatch.setattr(training, "ENOUGH_IMAGES", 4 if few else 3)
    images = torch.randint(0, 256, (3, 3, 40, 72), dtype=torch.uint8)
    sizes: list[tuple[int, ...]] = []
    forward = UNet2DModel.forward

    def spy(self: UNet2DModel, sample: torch.Tensor, *arguments: torch.Tensor) -> object:
        sizes.append((sample.shape[-2], sample.shape[-1]))
        return forward(self, sample, *arguments)

    monkeypatch.setattr(UNet2DModel, "forward", spy)
    train_diffusion(images, tmp_path, SETTINGS, **TRAINER)
    assert sizes == [(8, 8)] * SETTINGS["training_steps"]
    loaded = DefectPipeline.from_pretrained(tmp_path)
    for start in (None, 300):
        samples = loaded(images=images[:2] / 255, start_timestep=start, num_inference_steps=2, delta=0.2).images
        assert samples.shape == (2, 3, 40, 72)
        assert samples.isfinite().all()
    assert set(sizes) == {(8, 8)}

    sizes.clear()
    train_diffusion(images[..., :48], tmp_path / "small", SETTINGS, **TRAINER)
    assert (10, 12) in sizes


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """Thirty steps on one flat image bring samples near to it."""
    images = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    settings = {**SETTINGS, "training_steps": 30, "learning_rate": 1e-2}
    trained = train_diffusion(images, tmp_path, settings, **TRAINER)
    trained.set_progress_bar_config(disable=True)
    sample = trained(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    assert (sample.mean() - 200 / 255).abs() < 0.12
    assert sample.std() < 0.12


def test_config_or_dictionary(normal_images: torch.Tensor, tmp_path: Path) -> None:
    """Both give the same weights; a bad setting is named before anything is written."""
    first = weights(train_diffusion(normal_images, tmp_path / "a", SETTINGS, **TRAINER))
    second = weights(train_diffusion(normal_images, tmp_path / "b", DiffusionConfig(**SETTINGS), **TRAINER))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match=r"diffusion\.batch_size"):
        train_diffusion(normal_images, tmp_path / "c", {"batch_size": 0})
    assert not (tmp_path / "c").exists()
