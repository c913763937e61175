# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Time of a step on this machine, measured before a long stage starts."""

import time
from collections.abc import Callable

import torch

# Seconds that are spent on measuring, unless a single call takes longer.
BUDGET = 0.5
MIXED_PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def mixed_precision(device: torch.device, precision: str) -> torch.autocast:
    """Context that computes as a Trainer of a mixed precision does; of any other, it changes nothing.

    Args:
        device (torch.device): Device to compute on.
        precision (str): Precision of the Trainer, such as ``"bf16-mixed"``.

    Returns:
        torch.autocast: Context.
    """
    return torch.autocast(device.type, MIXED_PRECISIONS.get(precision), enabled=precision in MIXED_PRECISIONS)


def seconds_per_call(function: Callable[[], object], device: torch.device) -> float:
    """Measure how long a call takes. The random state stays as it was.

    Args:
        function (Callable[[], object]): Called once to warm up, then until half a second is over. If the first call
            takes longer on a CPU, it is the only one. On a GPU it also loads the kernels, so that it never counts.
        device (torch.device): Device that the function computes on.

    Returns:
        float: Seconds, the mean of all calls but the first.
    """

    def timed() -> float:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.random.fork_rng():
        first = timed()
        if first > BUDGET and device.type == "cpu":
            return first
        durations: list[float] = []
        while not durations or sum(durations) < BUDGET:
            durations.append(timed())
    return sum(durations) / len(durations)


def describe_duration(seconds: float) -> str:
    """Duration in the precision of an estimate.

    Args:
        seconds (float): Seconds.

    Returns:
        str: Text such as ``"about 40 s"``, ``"about 12 min"`` or ``"about 1 h 20 min"``.
    """
    if seconds < 10:
        return "less than 10 s"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    return f"about {hours} h" + (f" {minutes} min" if minutes else "")
