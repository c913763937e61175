# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the estimate of what training and testing cost."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anomalib_ddpm_st.detector import DdpmStModel, cost
from anomalib_ddpm_st.detector.cost import CostMeter, time_detector, time_prediction
from anomalib_ddpm_st.detector.loss import DdpmStLoss
from anomalib_ddpm_st.diffusion import DiffusionConfig, training
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig
from anomalib_ddpm_st.synthesis.config import Source

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are timed at 64 x 64 pixels."""
    monkeypatch.setattr(cost, "DEFAULT_IMAGE_SIZE", (64, 64))


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a second at the size at which it is timed, and so does a reverse step of a batch of two."""

    def seconds_per_call(step: Callable[[], object], device: torch.device) -> float:
        del device
        step()
        return 1.0

    for module in (cost, training):
        monkeypatch.setattr(module, "seconds_per_call", seconds_per_call)


def make_meter(network: DdpmStModel, source: Source = "diffusion") -> CostMeter:
    """Meter of 120 steps of the detector, 30 of the DDPM and 2 x 5 x 4 reverse steps, in batches of two."""
    module: Any = SimpleNamespace(
        model=network,
        loss=DdpmStLoss(),
        training_steps=120,
        diffusion=DiffusionConfig(training_steps=30, batch_size=2, block_out_channels=(8, 8)),
        bank=BankConfig(size=5, num_inference_steps=4),
        defects=DefectConfig(source=source),
    )
    return CostMeter(module, CPU)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("source", "learned", "others"), [("diffusion", 30, 120 + 20), ("self_texture", 0, 120)])
def test_minutes(network: DdpmStModel, source: Source, learned: int, others: int) -> None:
    """The steps of all stages, in proportion to the pixels; large images are learned in windows of 256 pixels."""
    meter = make_meter(network, source)
    assert 60 * meter.minutes((64, 64)) == pytest.approx(learned + others)
    assert 60 * meter.minutes((64, 128)) == pytest.approx(2 * (learned + others))
    assert 60 * meter.minutes((640, 640)) == pytest.approx(others * 100 + learned * 16)


@pytest.mark.usefixtures("second")
def test_budget(network: DdpmStModel) -> None:
    """The tighter of the two bounds counts."""
    meter = make_meter(network, "self_texture")
    assert meter.max_pixels(None, None) == float("inf")
    assert meter.max_pixels(1.0, None) == pytest.approx(64**2 / 2)
    assert meter.max_pixels(None, 3000.0) == pytest.approx(3 * 64**2)
    assert meter.max_pixels(1.0, 3000.0) == pytest.approx(64**2 / 2)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("batch_size", "timed", "seconds"), [(1, 2, 0.5), (2, 2, 1.0), (24, 8, 3.0)])
def test_timed_images(network: DdpmStModel, batch_size: int, timed: int, seconds: float) -> None:
    """A step is timed with two to eight images, and its time is that of the batch."""
    counts: list[int] = []
    network.register_forward_pre_hook(lambda _, images: counts.append(len(images[0])))
    images = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)
    assert time_detector(network, DdpmStLoss(), images, batch_size, CPU) == pytest.approx(seconds)
    assert counts == [timed]


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precision(network: DdpmStModel, precision: str) -> None:
    """Training and prediction are timed as the Trainer computes."""
    entered: list[bool] = []
    network.register_forward_pre_hook(lambda *_: entered.append(torch.is_autocast_enabled("cpu")))
    images = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)
    time_detector(network, DdpmStLoss(), images, 2, CPU, precision)
    time_prediction(network, (64, 96), CPU, precision)
    assert entered == [precision == "bf16-mixed"] * 2


def test_training_is_not_changed(network: DdpmStModel) -> None:
    """Neither random numbers nor the model."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    meter = make_meter(network)
    assert meter.minutes((64, 64)) > 0
    assert meter.milliseconds((64, 96)) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
