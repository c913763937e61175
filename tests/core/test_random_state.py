# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the random state in checkpoints."""

from pathlib import Path

import pytest
import torch

from anomalib_ddpm_st.core.random_state import random_state, set_random_state


def test_draws_are_repeated(tmp_path: Path) -> None:
    """From the state that a checkpoint of plain tensors holds."""
    torch.rand(3)
    state = random_state()
    torch.save(state, tmp_path / "state.ckpt")
    drawn = torch.rand(5)
    assert not torch.equal(torch.rand(5), drawn)
    set_random_state(state)
    assert torch.equal(torch.rand(5), drawn)
    set_random_state(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert torch.equal(torch.rand(5), drawn)


def test_taking_a_state_draws_nothing() -> None:
    """Nor does it keep the state of later draws."""
    before = torch.get_rng_state()
    state = random_state()
    torch.rand(3)
    assert torch.equal(state["cpu"], before)


@pytest.mark.parametrize(("devices", "restored"), [(2, True), (1, False), (0, False)])
def test_states_of_gpus(devices: int, restored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are part of it once a GPU is used, and put back on a machine with as many of them."""
    states = [torch.tensor([1], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8)]
    put: list[list[int]] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda given: put.append([int(part) for part in given]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert random_state()["cuda"] == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    state = random_state()
    assert state["cuda"] is states
    set_random_state(state)
    assert put == ([[1, 2]] if restored else [])
