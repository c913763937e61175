# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of optimiser and schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from anomalib_ddpm_st.core.optimization import (
    LIGHTNING_EPOCHS,
    allow_other_length,
    one_cycle_adamw,
    replace_default_epochs,
)


def rates_of(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list:
    """Learning rates of the next steps."""
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warm_up", [0.1, 0.5])
def test_learning_rate_rises_and_falls(warm_up: float) -> None:
    """It peaks after the warm-up and is almost zero at the last step; one more step of the scheduler is allowed."""
    layer = nn.Linear(2, 2)
    configured = one_cycle_adamw(layer.parameters(), 0.1, 40, warm_up)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = rates_of(optimizer, scheduler, 40)
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates.index(max(rates)) == pytest.approx(40 * warm_up, abs=1)
    assert rates[-1] < 0.005


@pytest.mark.parametrize(("old", "new", "step"), [(40, 80, 10), (40, 80, 40), (80, 40, 10), (40, 40, 25)])
def test_resumed_schedule_has_the_new_length(old: int, new: int, step: int) -> None:
    """At each step the rate of a schedule of the new length, whether the old one was shorter or longer."""
    schedules = {}
    for name, steps in (("old", old), ("new", new), ("expected", new)):
        configured = one_cycle_adamw(nn.Linear(2, 2).parameters(), 0.1, steps, 0.3)
        schedules[name] = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates_of(*schedules["old"], step)
    checkpoint = {
        "optimizer_states": [schedules["old"][0].state_dict()],
        "lr_schedulers": [schedules["old"][1].state_dict()],
        "epoch": 3,
    }
    kept = dict(checkpoint["lr_schedulers"][0])
    allow_other_length(checkpoint)
    assert kept.keys() - checkpoint["lr_schedulers"][0].keys() == {"total_steps", "_schedule_phases"}
    assert checkpoint["epoch"] == 3
    optimizer, scheduler = schedules["new"]
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
    resumed, expected = rates_of(optimizer, scheduler, new - step), rates_of(*schedules["expected"], new)[step:]
    # The first one is that of the old schedule.
    assert resumed[1:] == pytest.approx(expected[1:])


def test_checkpoint_without_schedules() -> None:
    """Such as one of the weights alone."""
    checkpoint = {"state_dict": {}}
    allow_other_length(checkpoint)
    assert checkpoint == {"state_dict": {}}


class Module(BoringModel):
    """Model that replaces the default bound as a detector does, and ends training at once."""

    bounds: tuple[tuple[int | None, int], ...] = ()

    def setup(self, stage: str) -> None:
        """Keep the bounds before and after."""
        assert stage == "fit"
        before = self.trainer.max_epochs, self.trainer.max_steps
        replace_default_epochs(self.trainer, 6000)
        self.bounds = before, (self.trainer.max_epochs, self.trainer.max_steps)

    def on_train_batch_end(self, *args: object) -> None:
        """End training."""
        del args
        self.trainer.should_stop = True


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [
        ({}, ((LIGHTNING_EPOCHS, -1), (-1, 6000))),
        ({"max_epochs": 7}, ((7, -1), (7, -1))),
        ({"max_epochs": 2000}, ((2000, -1), (2000, -1))),
        ({"max_epochs": -1}, ((-1, -1), (-1, -1))),
        ({"max_steps": 50}, ((-1, 50), (-1, 50))),
        ({"max_steps": 50, "max_epochs": LIGHTNING_EPOCHS}, ((LIGHTNING_EPOCHS, 50), (LIGHTNING_EPOCHS, 50))),
    ],
)
def test_default_epochs_are_replaced(arguments: dict[str, Any], bounds: tuple[Any, Any], tmp_path: Path) -> None:
    """By the steps of the schedule; only the bound that Lightning sets itself. It fails if Lightning changes it."""
    module = Module()
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=1,
        limit_val_batches=0,
        **arguments,
    )
    trainer.fit(module)
    assert module.bounds == bounds
