# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Random state of torch, so that an interrupted training resumes as if it had not been interrupted."""

from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Take the random state of the CPU and of all GPUs.

    Returns:
        dict[str, Any]: State, plain tensors that checkpoints can hold.
    """
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put a random state back.

    Args:
        state (dict[str, Any]): Result of :func:`random_state`. The states of GPUs are left out on a machine with
            another number of them.
    """
    # A checkpoint may have been loaded onto a GPU.
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
