# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Time of a step, and how it is told."""

import time
from itertools import count

import pytest
import torch

from anomalib_ddpm_st.core.timing import describe_duration, mixed_precision, seconds_per_call

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than 10 s"),
        (44, "about 40 s"),
        (89, "about 90 s"),
        (90, "about 2 min"),
        (12.4 * 60, "about 12 min"),
        (59.4 * 60, "about 59 min"),
        (59.6 * 60, "about 1 h"),
        (83 * 60, "about 1 h 20 min"),
        (119 * 60, "about 2 h"),
    ],
)
def test_describe_duration(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


@pytest.mark.parametrize(("durations", "calls", "expected"), [([0.6], 1, 0.6), ([0.4, 0.1, 0.2, 0.3], 4, 0.2)])
def test_warm_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch, durations: list[float], calls: int, expected: float
) -> None:
    """But a first call that takes longer than the budget is the only one."""
    now = 0.0
    number = count()

    def step() -> None:
        nonlocal now
        now += durations[next(number)]

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert seconds_per_call(step, CPU) == pytest.approx(expected)
    assert next(number) == calls


def test_first_call_on_a_gpu_never_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads the kernels, which takes longer than the budget."""
    now, durations = 0.0, iter([4.0, 0.3, 0.3])

    def step() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert seconds_per_call(step, torch.device("cuda")) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_mixed_precision(precision: str, dtype: torch.dtype) -> None:
    with mixed_precision(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_random_state_stays() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    seconds_per_call(lambda: torch.rand(10), CPU)
    assert torch.equal(torch.rand(4), expected)
