# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The plan of a training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from anomalib_ddpm_st import BankConfig, DefectConfig, DiffusionConfig
from anomalib_ddpm_st.detector import DdpmStModel, plan
from anomalib_ddpm_st.detector.loss import DdpmStLoss
from anomalib_ddpm_st.detector.plan import describe_training
from anomalib_ddpm_st.detector.training_data import TrainingData
from anomalib_ddpm_st.synthesis import preparation

from .conftest import make_datamodule


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    """Five good images for training, two good and two defective ones for validation and test."""
    datamodule = make_datamodule(tmp_path)
    datamodule.setup()
    return TrainingData.from_datamodule(datamodule, None)


@pytest.fixture
def model(network: DdpmStModel, tmp_path: Path) -> Any:  # noqa: ANN401
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision="32-true",
        max_steps=-1,
        max_epochs=-1,
        default_root_dir="results/DdpmSt/parts/v0",
        ckpt_path=None,
    )
    return SimpleNamespace(
        trainer=trainer,
        model=network,
        loss=DdpmStLoss(),
        diffusion=DiffusionConfig(training_steps=120, block_out_channels=(8, 8)),
        bank=BankConfig(size=10, num_inference_steps=3),
        defects=DefectConfig(),
        diffusion_path=None,
        cache_dir=str(tmp_path / "cache"),
        training_steps=600,
    )


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A step of the DDPM takes a second, a reverse step of a texture five, a step of the detector half a second."""
    timed = MagicMock(return_value=(1.0, 5.0))
    monkeypatch.setattr(preparation, "time_diffusion", timed)
    monkeypatch.setattr(plan, "time_detector", lambda *_: 0.5)
    return timed


def test_nothing_is_in_the_cache(model: Any, data: TrainingData, timed: MagicMock) -> None:  # noqa: ANN401
    assert describe_training(model, data).splitlines() == [
        "Training plan",
        "  Images   5 good for training, 2 good and 2 defective for validation, 2 good and 2 defective for test",
        "  Input    64 x 64 pixels, batches of 2",
        "  Stage 1  DDPM of the good images, 120 steps: about 2 min",
        "  Stage 2  10 defect textures: about 5 min",  # 2 x 10 samples of 3 steps of 5 s
        "  Stage 3  detector, 600 steps: about 5 min",
        "  Time     about 12 min on this machine (cpu)",
        "  Results  results/DdpmSt/parts/v0",
    ]
    timed.assert_called_once()


@pytest.mark.parametrize(
    ("found", "times", "total"),
    [
        ((True, False), ("in the cache", "about 5 min"), "about 10 min"),
        ((True, True), ("in the cache", "in the cache"), "about 5 min"),
    ],
)
def test_stages_in_the_cache(
    model: Any,  # noqa: ANN401
    data: TrainingData,
    timed: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
    found: tuple[bool, bool],
    times: tuple[str, str],
    total: str,
) -> None:
    monkeypatch.setattr(plan, "find_prepared", lambda *_, **__: found)
    lines = describe_training(model, data).splitlines()
    assert [line.rpartition(": ")[2] for line in lines[3:5]] == list(times)
    assert lines[6] == f"  Time     {total} on this machine (cpu)"
    assert timed.called != all(found), "what is there is not timed"


def test_no_bank_is_needed(model: Any, data: TrainingData, timed: MagicMock) -> None:  # noqa: ANN401
    model.defects = DefectConfig(source="self_texture")
    lines = describe_training(model, data).splitlines()
    assert [line.endswith(": not needed") for line in lines[3:5]] == [True, True]
    timed.assert_not_called()


@pytest.mark.parametrize(("bound", "steps"), [({"max_steps": 7}, 7), ({"max_epochs": 2}, 6), ({"max_steps": 900}, 600)])
def test_bounds_of_the_trainer(
    model: Any,  # noqa: ANN401
    data: TrainingData,
    timed: MagicMock,
    bound: dict[str, int],
    steps: int,
) -> None:
    del timed
    vars(model.trainer).update(bound)
    assert f"Stage 3  detector, {steps} steps: " in describe_training(model, data)


def test_resumed_training_has_no_estimate(model: Any, data: TrainingData, timed: MagicMock) -> None:  # noqa: ANN401
    del timed
    model.trainer.ckpt_path = "last.ckpt"
    text = describe_training(model, data)
    assert "Stage 3  detector, up to step 600: resumed from a checkpoint" in text
    assert "Time" not in text


def test_real_steps_leave_no_trace(model: Any, data: TrainingData) -> None:  # noqa: ANN401
    """Neither in the network nor in the random state."""
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lines = describe_training(model, data).splitlines()
    assert torch.equal(torch.rand(3), expected)
    assert len(lines) == 8
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert not model.model.training
