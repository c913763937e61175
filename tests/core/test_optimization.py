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

from anomalib_ddpm_st.core.optimization import LIGHTNING_EPOCHS, lift_default_epochs, one_cycle_adamw


@pytest.mark.parametrize("warm_up", [0.1, 0.5])
def test_learning_rate_rises_and_falls(warm_up: float) -> None:
    """It peaks after the warm-up and is almost zero at the last step; one more step of the scheduler is allowed."""
    layer = nn.Linear(2, 2)
    configured = one_cycle_adamw(layer.parameters(), 0.1, 40, warm_up)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates.index(max(rates)) == pytest.approx(40 * warm_up, abs=1)
    assert rates[-1] < 0.005


class Module(BoringModel):
    """Model that lifts the default bound as a detector does, and ends training at once."""

    bounds: tuple[int | None, int | None] = (None, None)

    def setup(self, stage: str) -> None:
        """Keep the bound before and after."""
        assert stage == "fit"
        before = self.trainer.max_epochs
        lift_default_epochs(self.trainer, 6000)
        self.bounds = before, self.trainer.max_epochs

    def on_train_batch_end(self, *args: object) -> None:
        """End training."""
        del args
        self.trainer.should_stop = True


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [
        ({}, (LIGHTNING_EPOCHS, 6000)),
        ({"max_epochs": 7}, (7, 7)),
        ({"max_epochs": 2000}, (2000, 2000)),
        ({"max_epochs": -1}, (-1, -1)),
        ({"max_steps": 50}, (-1, -1)),
    ],
)
def test_default_epochs_are_lifted(arguments: dict[str, Any], bounds: tuple[int, int], tmp_path: Path) -> None:
    """Only the bound that Lightning sets itself; it fails if Lightning changes that bound."""
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
