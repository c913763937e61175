# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the progress of stages."""

from types import SimpleNamespace

import pytest
import torch

from anomalib_ddpm_st.core.progress import StageProgressBar, progress


def test_progress_passes_the_items_on(capsys: pytest.CaptureFixture) -> None:
    """The name of the stage and the count are shown."""
    assert list(progress([1, 2, 3], "Stage")) == [1, 2, 3]
    assert list(progress(iter("ab"), "Other", total=2)) == ["a", "b"]
    shown = capsys.readouterr().err
    assert "Stage: 100%" in shown
    assert "3/3" in shown
    assert "2/2" in shown


def test_stage_progress_bar_resumes(capsys: pytest.CaptureFixture) -> None:
    """It starts at the step of a resumed training, shows the loss and is closed at the end."""
    bar = StageProgressBar("DDPM", 10)
    trainer = SimpleNamespace(global_step=4, callback_metrics={"train_loss": torch.tensor(0.125)})
    bar.on_train_start(trainer, None)
    assert bar.bar is not None
    assert bar.bar.n == 4
    trainer.global_step = 6
    bar.on_train_batch_end(trainer, None)
    assert bar.bar.n == 6
    bar.bar.refresh()
    bar.teardown(trainer, None, "fit")
    assert bar.bar is None
    bar.teardown(trainer, None, "fit")
    shown = capsys.readouterr().err
    assert "DDPM" in shown
    assert "6/10" in shown
    assert "loss=0.1250" in shown


def test_stage_progress_bar_that_was_never_opened() -> None:
    """A training that fails before its first step has nothing to close."""
    bar = StageProgressBar("DDPM", 10)
    bar.on_train_batch_end(SimpleNamespace(global_step=1), None)
    bar.teardown(None, None, "fit")
    assert bar.bar is None
