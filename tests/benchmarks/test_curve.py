# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the curve of accuracy against training time."""

import sys
import time
from pathlib import Path
from typing import Any

import curve
import pytest
import torch
from common import METRICS, read_table

from anomalib_ddpm_st import DdpmSt


def test_weights_along_the_way_are_measured(short_curve: tuple[list[dict[str, Any]], list[torch.Tensor], Path]) -> None:
    """One training gives a row for each fraction of the schedule, with different weights and calibrated scores."""
    rows, spreads, folder = short_curve
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["seconds"] < rows[1]["seconds"]
    assert [bool((spread < 1).all()) for spread in spreads] == [True, True]
    assert all(0 <= row[metric] <= 100 for row in rows for metric in METRICS)
    early, late = (torch.load(folder / f"step{step}.pt") for step in (1, 2))
    assert any(not torch.equal(early[name], late[name]) for name in early)


@pytest.mark.usefixtures("small_images")
def test_interrupted_training_resumes(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its checkpoint, with the training time and the weights up to there."""
    arguments = {"pre_trained": False, "defects": {"source": "self_texture"}, "memory_size": 8, "training_steps": 3}
    monkeypatch.setattr(curve, "CHECKPOINT_STEPS", 1)
    measured: list[int] = []
    step = DdpmSt.training_step

    def training_step(model: DdpmSt, *inputs: Any, **more: Any) -> Any:  # noqa: ANN401
        measured.append(model.trainer.global_step)
        if len(measured) == 3:
            raise RuntimeError("power cut")  # noqa: EM101, TRY003
        return step(model, *inputs, **more)

    monkeypatch.setattr(DdpmSt, "training_step", training_step)
    settings = ("bottle", 1, [1 / 3, 1.0], arguments, data_root, "32-true", tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        curve.run(*settings)
    first = torch.load(tmp_path / "step1.pt")
    began = time.perf_counter()
    rows = curve.run(*settings)
    assert measured == [0, 1, 2, 2]
    assert [row["step"] for row in rows] == [1, 3]
    assert rows[0]["seconds"] < rows[1]["seconds"] < 60 + time.perf_counter() - began
    again = torch.load(tmp_path / "step1.pt")
    assert all(torch.equal(first[name], again[name]) for name in first)

    assert curve.run(*settings) == rows
    assert len(measured) == 4, "a complete training is only measured"


def test_finished_curves_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call only runs the new category and draws both."""
    categories = []

    def run(category: str, seed: int, *arguments: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        del arguments
        categories.append(category)
        row = {"category": category, "seed": seed, "commit": "abc"}
        return [{**row, "step": step, "seconds": 60.0 * step, **dict.fromkeys(METRICS, 90.0 + step)} for step in (1, 2)]

    monkeypatch.setattr(curve, "run", run)
    output, table = tmp_path / "curve.csv", tmp_path / "accuracy.csv"
    command = ["curve.py", "--output", str(output), "--accuracy-output", str(table), "--categories"]
    for names in (["bottle"], ["bottle", "screw"]):
        monkeypatch.setattr(sys, "argv", [*command, *names])
        curve.main()
    assert categories == ["bottle", "screw"]
    assert read_table(output)[["category", "step"]].to_numpy().tolist() == [
        ["bottle", 1],
        ["bottle", 2],
        ["screw", 1],
        ["screw", 2],
    ]
    assert output.with_suffix(".png").stat().st_size > 0
    assert read_table(table)[["model", "category", "seconds", "pixel_AUPR"]].to_numpy().tolist() == [
        ["DdpmSt", "bottle", 120.0, 92.0],
        ["DdpmSt", "screw", 120.0, 92.0],
    ]
    output.unlink()
    monkeypatch.setattr(sys, "argv", [*command, "screw", "--fractions", "0.5"])
    curve.main()
    assert len(read_table(table)) == 2, "half of a schedule is no result"
