# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the picture of accuracy against latency."""

import sys
from pathlib import Path

import pytest
import tradeoff
from common import append_row, read_table


def metrics(value: float) -> dict[str, float]:
    """Metrics of one value each."""
    return {"image_AUROC": value, "pixel_AUPR": value - 10, "pixel_AUPRO": value - 5}


def test_mean_over_common_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model and precision has its own accuracy, over what all have; unmeasured ones are left out."""
    monkeypatch.setattr(sys, "argv", ["tradeoff.py", f"--results={tmp_path}"])
    with pytest.raises(FileNotFoundError, match=r"latency\.py and accuracy\.py"):
        tradeoff.main()
    for model, bits, time in (("DdpmSt", "FP32", 30), ("DdpmSt", "INT8", 10), ("Patchcore", "FP32", 40)):
        append_row(tmp_path / "latency.csv", {"model": model, "precision": bits, "latency_ms": time})
    append_row(tmp_path / "latency.csv", {"model": "Patchcore", "precision": "INT8", "latency_ms": 20})
    append_row(tmp_path / "latency.csv", {"model": "Draem", "precision": "FP32", "latency_ms": 900})
    for model, category, value in (
        ("DdpmSt", "bottle", 98.0),
        ("DdpmSt", "screw", 96.0),
        ("DdpmSt", "tile", 20.0),
        ("Patchcore", "bottle", 99.0),
        ("Patchcore", "screw", 93.0),
    ):
        append_row(tmp_path / "accuracy.csv", {"model": model, "category": category, **metrics(value)})
    for category, value in (("bottle", 97.0), ("screw", 95.0)):
        append_row(tmp_path / "precision.csv", {"category": category, "precision": "INT8", **metrics(value)})
        append_row(tmp_path / "precision.csv", {"category": category, "precision": "FP32", **metrics(1.0)})
    tables = (read_table(tmp_path / f"{name}.csv") for name in ("latency", "accuracy", "precision"))
    assert tradeoff.points(*tables).to_dict("index") == {
        "DdpmSt FP32": {"latency_ms": 30.0, **metrics(97.0)},
        "DdpmSt INT8": {"latency_ms": 10.0, **metrics(96.0)},
        "Patchcore FP32": {"latency_ms": 40.0, **metrics(96.0)},
    }
    tradeoff.main()
    assert (tmp_path / "tradeoff.png").stat().st_size > 0
