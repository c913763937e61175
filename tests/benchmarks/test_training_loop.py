# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of the training loop."""

import json
import sys
from pathlib import Path

import pytest
import training_loop

from anomalib_ddpm_st.detector.training_run import TrainingRun


def test_record(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of both data loaders and of a training with validation; the package is left as it was."""
    original = TrainingRun._resumable
    monkeypatch.setattr(training_loop, "VALIDATION_SHARE", 20.0)
    monkeypatch.setattr("anomalib_ddpm_st.detector.training_run.VALIDATION_SHARE", 20.0)
    script = str(Path(training_loop.__file__))
    output = tmp_path / "record.json"
    arguments = ["--data-root", str(data_root), "--categories", "bottle", "--images", "2", "--steps", "3"]
    further = ["--image-size", "64", "--workers", "0", "--teacher-weights", "null", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [script, *arguments, *further])
    training_loop.main()
    record = json.loads(output.read_text(encoding="utf-8"))
    (row,) = record["rows"]
    assert row["images"] == 2
    for part in ("datamodule", "training_loader", "validated"):
        shares = [row[part][f"{name}_percent"] for name in ("steps", "waiting", "validation")]
        assert sum(shares) == pytest.approx(100, abs=0.1)
        assert (row[part]["validation_percent"] > 0) == (part == "validated")
    assert record["command"].startswith("python benchmarks/training_loop.py")
    assert TrainingRun._resumable is original
