# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the estimate of what training and testing cost."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest
import torch

from anomalib_ddpm_st.detector import DdpmStModel, cost
from anomalib_ddpm_st.detector.cost import CostMeter, Schedule
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import BankConfig

DIFFUSION = DiffusionConfig(training_steps=30, batch_size=2, block_out_channels=(8, 8))
BANK = BankConfig(size=5, num_inference_steps=4)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a second at the size at which it is timed."""

    def time(self: CostMeter, step: Callable[[], object], repeats: int = 1) -> float:
        del self, repeats
        step()
        return 1.0

    monkeypatch.setattr(cost, "DEFAULT_IMAGE_SIZE", (64, 64))
    monkeypatch.setattr(CostMeter, "_time", time)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(
    ("schedule", "minutes"),
    [
        (Schedule(120, 2, DIFFUSION, BANK), (120 + 30 + 20) / 60),
        (Schedule(120, 2, None, BANK), (120 + 20) / 60),
        (Schedule(120, 2, None, None), 120 / 60),
    ],
)
def test_minutes(network: DdpmStModel, schedule: Schedule, minutes: float) -> None:
    """The steps of all stages, in proportion to the pixels; large images are learned in windows of 256 pixels."""
    meter = CostMeter(network, schedule)
    assert meter.minutes((64, 64)) == pytest.approx(minutes)
    assert meter.minutes((64, 128)) == pytest.approx(2 * minutes)
    learned = 0.5 if schedule.diffusion is not None else 0.0
    assert meter.minutes((640, 640)) == pytest.approx((minutes - learned) * 100 + learned * 16)


@pytest.mark.usefixtures("second")
def test_budget(network: DdpmStModel) -> None:
    """The tighter of the two bounds counts."""
    meter = CostMeter(network, Schedule(120, 2, None, None))
    assert meter.max_pixels(None, None) == float("inf")
    assert meter.max_pixels(1.0, None) == pytest.approx(64**2 / 2)
    assert meter.max_pixels(None, 3000.0) == pytest.approx(3 * 64**2)
    assert meter.max_pixels(1.0, 3000.0) == pytest.approx(64**2 / 2)


def test_training_is_not_changed(network: DdpmStModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither random numbers nor the model, and every step runs in the given context."""
    monkeypatch.setattr(cost, "DEFAULT_IMAGE_SIZE", (64, 64))
    entered = []

    @contextmanager
    def context() -> Generator[None, None, None]:
        entered.append(True)
        yield

    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    meter = CostMeter(network, Schedule(120, 2, DIFFUSION, BANK), context=context)
    assert meter.minutes((64, 64)) > 0
    assert meter.milliseconds((64, 96)) > 0
    assert entered
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
