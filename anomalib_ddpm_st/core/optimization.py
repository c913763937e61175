# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Optimiser and learning rate schedule of the DDPM and the detector."""

from collections.abc import Iterable

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


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
