# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Optimiser and learning rate schedule of the DDPM and the detector."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

# Bound that Lightning sets if it is given none.
LIGHTNING_EPOCHS = 1000


def one_cycle_adamw(
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: float,
    steps: int,
    warm_up: float,
) -> OptimizerLRSchedulerConfig:
    """AdamW with a one-cycle schedule.

    Args:
        parameters (Iterable[torch.nn.Parameter]): Parameters to train.
        learning_rate (float): Peak learning rate.
        steps (int): Number of training steps.
        warm_up (float): Fraction of the steps in which the learning rate rises.

    Returns:
        OptimizerLRSchedulerConfig: Optimiser and scheduler, as Lightning takes them.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=learning_rate,
        # One more, since the scheduler also steps after the last update.
        total_steps=steps + 1,
        pct_start=warm_up,
        cycle_momentum=False,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def allow_other_length(checkpoint: dict[str, Any]) -> None:
    """Let a training that resumes from a checkpoint have another length than the one that wrote it.

    The learning rate goes on as in a schedule of the new length at this step: it rises again if the old schedule was
    over.

    Args:
        checkpoint (dict[str, Any]): Checkpoint of Lightning; the lengths of its one-cycle schedules are removed.
    """
    for state in checkpoint.get("lr_schedulers", []):
        for name in ("total_steps", "_schedule_phases"):
            state.pop(name, None)


def replace_default_epochs(trainer: Trainer, steps: int) -> None:
    """Let a schedule of steps run to its end on few images.

    Without a bound by the user, Lightning silently ends training after 1000 epochs: with 20 images in batches of 32
    these are 1000 steps. A bound of exactly 1000 epochs looks the same and is replaced, too.

    Args:
        trainer (Trainer): Trainer, before it configures the optimisers.
        steps (int): Length of the schedule, the new bound.
    """
    if trainer.max_steps == -1 and trainer.max_epochs == LIGHTNING_EPOCHS:
        trainer.fit_loop.max_epochs = -1
        trainer.fit_loop.epoch_loop.max_steps = steps
