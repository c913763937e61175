# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the module that trains the DDPM."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anomalib_ddpm_st.diffusion import DefectPipeline, DiffusionModule, lightning_model
from anomalib_ddpm_st.diffusion.unet import position_encoding, unpatchify


def weights(pipeline: DefectPipeline) -> torch.Tensor:
    """All weights of the network in one vector."""
    return torch.cat([value.flatten() for value in pipeline.unet.state_dict().values()])


def take_step(module: DiffusionModule) -> None:
    """Add one to all weights in the place of an optimiser."""

    def step(**_: Any) -> None:  # noqa: ANN401
        with torch.no_grad():
            for parameter in module.unet.parameters():
                parameter.add_(1.0)

    module.optimizer_step(0, 0, SimpleNamespace(step=step), None)


def test_average_follows_the_weights() -> None:
    """Once the average is warm, a step moves it towards the new weights and not all the way."""
    module = DiffusionModule((32, 32), block_out_channels=(8, 8), ema_decay=0.9)
    module.ema.optimization_step = 10_000
    before = weights(module.pipeline())
    take_step(module)
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

    def denoise(_: Any, noisy: torch.Tensor, __: Any, position: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
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
        # At the position of the window, up to the shift of the image.
        top = (unpatchify(sample, 4)[0, 0].mean() + 1) / 2 * 16
        assert top.item() == pytest.approx(found[0, 0].item() + 4, abs=3)
    assert len(set(places)) > 5
    moved = {round(sample.mean().item(), 5) for (sample, _), is_cut in zip(seen, cut, strict=True) if not is_cut}
    assert len(moved) > 5


@pytest.mark.parametrize(("timestep", "weight"), [(0, 5.0), (150, None), (999, 1.0)])
def test_error_is_weighted_by_the_signal_to_noise_ratio(
    timestep: int, weight: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``alpha_bar / (1 - alpha_bar)`` of the timestep, clamped to [1, 5]."""
    module = DiffusionModule((32, 32), block_out_channels=(8, 8))
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[timestep]
    expected = alpha_bar / (1 - alpha_bar) if weight is None else weight
    assert 1 <= expected <= 5
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    monkeypatch.setattr(torch, "randint", lambda _, shape, **__: torch.full(shape, timestep))
    monkeypatch.setattr(lightning_model, "denoise", lambda _, noisy, *__: torch.full_like(noisy, 1.5))
    assert module.training_step([images], 0).item() == pytest.approx(0.25 * expected, rel=1e-4)


def test_learning_rate_of_one_cycle() -> None:
    """The rate rises in the first twentieth of the steps to its peak, and falls to almost nothing."""
    module = DiffusionModule((32, 32), block_out_channels=(8, 8), learning_rate=0.02, training_steps=100)
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in trained] == [id(parameter) for parameter in module.unet.parameters()]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.02, rel=0.01)
    assert rates.index(max(rates)) == pytest.approx(5, abs=1)
    assert rates[-1] < 1e-4


def test_checkpoint_holds_random_state_and_average() -> None:
    """They go on from there once training starts, not before; a checkpoint without a random state loads, too."""
    module = DiffusionModule((32, 32), block_out_channels=(8, 8))
    take_step(module)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    drawn = torch.rand(3)
    loaded = DiffusionModule((32, 32), block_out_channels=(8, 8))
    loaded.on_load_checkpoint(checkpoint)
    assert not torch.equal(torch.rand(3), drawn)
    loaded.on_train_start()
    assert torch.equal(torch.rand(3), drawn)
    assert loaded.ema.optimization_step == 1
    assert torch.equal(weights(loaded.pipeline()), weights(module.pipeline()))

    old = DiffusionModule((32, 32), block_out_channels=(8, 8))
    old.on_load_checkpoint({"ema": checkpoint["ema"]})
    state = torch.get_rng_state()
    old.on_train_start()
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpoint_of_another_length_loads() -> None:
    """The length of its schedule is left out."""
    module = DiffusionModule((32, 32), block_out_channels=(8, 8))
    checkpoint: dict[str, Any] = {"lr_schedulers": [{"total_steps": 5, "last_epoch": 3}]}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    assert checkpoint["lr_schedulers"] == [{"last_epoch": 3}]
