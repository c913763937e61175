# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the progress of stages."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.file_proxy import FileProxy
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from anomalib_ddpm_st.core.plain_stderr import bars_on_plain_stderr
from anomalib_ddpm_st.core.progress import StageProgressBar, progress


def test_progress_passes_the_items_on(capsys: pytest.CaptureFixture) -> None:
    """The name of the stage and the count are shown."""
    assert list(progress([1, 2, 3], "Stage")) == [1, 2, 3]
    assert list(progress(iter("ab"), "Other", total=2)) == ["a", "b"]
    shown = capsys.readouterr().err
    assert "Stage: 100%" in shown
    assert "3/3" in shown
    assert "2/2" in shown


def test_bars_write_past_a_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich replaces standard error while it shows its own bar; bars of tqdm must not write to the replacement."""
    console, plain = Console(file=io.StringIO()), io.StringIO()
    monkeypatch.setattr(sys, "stderr", FileProxy(console, plain))
    list(progress([1], "Ours"))
    bar = StageProgressBar("Stage", 2)
    bar.on_train_start(SimpleNamespace(global_step=0), None)
    bar.teardown(None, None, "fit")
    with bars_on_plain_stderr():
        list(tqdm([1], desc="Theirs"))
    assert isinstance(sys.stderr, FileProxy)
    assert [name for name in ("Ours", "Stage", "Theirs") if name not in plain.getvalue()] == []
    assert not console.file.getvalue()


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


class FailingModule(LightningModule):
    """Module that fails at a step."""

    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.fail_at = fail_at

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of one batch."""
        del batch_idx
        if self.global_step == self.fail_at:
            msg = "told to fail"
            raise RuntimeError(msg)
        loss = (self.weight * batch[0]).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gradient descent that changes nothing."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_stage_progress_bar_within_a_trainer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One bar over all epochs is closed even if training fails, and continues from a checkpoint."""
    bars = [StageProgressBar("First", 3), StageProgressBar("Second", 9)]
    for bar, start, fail_at in zip(bars, (0, 3), (3, 5), strict=True):
        trainer = Trainer(
            max_steps=bar.total,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[bar],
        )
        checkpoint = tmp_path / "training.ckpt" if start else None
        dataloader = DataLoader(TensorDataset(torch.full((2, 1), 0.5)), batch_size=1)
        capsys.readouterr()
        if fail_at < bar.total:
            with pytest.raises(RuntimeError, match="told to fail"):
                trainer.fit(FailingModule(fail_at), dataloader, ckpt_path=checkpoint)
        else:
            trainer.fit(FailingModule(fail_at), dataloader, ckpt_path=checkpoint)
            trainer.save_checkpoint(tmp_path / "training.ckpt")
        assert bar.bar is None
        shown = capsys.readouterr().err
        assert f"{start}/{bar.total}" in shown
        assert f"{fail_at}/{bar.total}" in shown
        assert "loss=0.5000" in shown
