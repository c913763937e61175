# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of optimiser and schedule."""

import pytest
import torch
from torch import nn

from anomalib_ddpm_st.core.optimization import one_cycle_adamw


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
