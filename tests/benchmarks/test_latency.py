# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of exported models."""

import json
import subprocess
import sys
from pathlib import Path

import latency
import pytest
import torch
from common import read_rows

COLUMNS = [
    "model",
    "precision",
    "latency_ms",
    "throughput",
    "macs",
    "size_mb",
    "peak_rss_mb",
    "ratio_to_stfpm",
    "latency_spread_ms",
    "weights",
]


ROOT = Path(__file__).parents[2]
# As from a shell, but small.
SCRIPT = """
import sys
sys.path.insert(0, "benchmarks")
import latency
latency.SIZE, latency.CALIBRATION_IMAGES, latency.THROUGHPUT_SECONDS = 64, 2, 0.05
sys.argv = ["benchmarks/latency.py", *sys.argv[1:]]
latency.main()
"""


def test_table(tmp_path: Path) -> None:
    """A row for each model and precision; what is known before it is measured is right."""
    output = tmp_path / "latency.csv"
    output.write_text("of another run\n", encoding="utf-8")
    arguments = ["--models", "DdpmSt", "Stfpm", "--runs", "6", "--output", str(output)]
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, check=True)
    rows = read_rows(output)
    assert list(rows[0]) == COLUMNS
    assert [(row["model"], row["precision"]) for row in rows] == [
        (model, precision) for model in ("DdpmSt", "Stfpm") for precision in latency.PRECISIONS
    ]
    values = [{name: float(row[name]) for name in COLUMNS[2:-1]} for row in rows]
    assert all(value > 0 for row in values for name, value in row.items() if name != "latency_spread_ms")
    assert [row["ratio_to_stfpm"] for row in values[3:]] == [1.0] * 3
    for own, other in zip(values[:3], values[3:], strict=True):
        assert own["ratio_to_stfpm"] == pytest.approx(own["latency_ms"] / other["latency_ms"], rel=0.05)
        assert own["macs"] < other["macs"]
    for full, half, eighth in (values[:3], values[3:]):
        assert half["size_mb"] < 0.6 * full["size_mb"]
        assert eighth["size_mb"] < 0.6 * half["size_mb"]
    record = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["not_quantised_by_nncf"] == []
    assert record["command"].startswith("python benchmarks/latency.py --models")


def test_weights_are_random_and_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in evaluation mode, whose scores are normalised."""
    monkeypatch.setattr(latency, "SIZE", 64)
    model = latency.build("Stfpm")
    assert not model.training
    with torch.no_grad():
        output = model(torch.rand(1, 3, 64, 64))
    assert 0 <= float(output.pred_score) <= 1
    assert 0 <= float(output.anomaly_map.min()) <= float(output.anomaly_map.max()) <= 1
    # Two ResNet-18 up to the third level.
    assert latency.count_macs(model) == pytest.approx(2 * 1.832e9 / 16, rel=0.01)
