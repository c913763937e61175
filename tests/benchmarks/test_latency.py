# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of exported models."""

import json
import sys
from pathlib import Path

import latency
import pytest
import torch
from common import read_table

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


@pytest.mark.slow
@pytest.mark.usefixtures("quiet", "traced_once")
def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each model and precision; figures that are known in advance are right."""
    for name, value in {"SIZE": 64, "CALIBRATION_IMAGES": 2, "THROUGHPUT_SECONDS": 0.05}.items():
        monkeypatch.setattr(latency, name, value)
    output = tmp_path / "latency.csv"
    output.write_text("of another run\n", encoding="utf-8")
    arguments = ["--models", "DdpmSt", "Stfpm", "--runs", "6", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/latency.py", *arguments])
    latency.main()
    rows = read_table(output)
    assert list(rows) == COLUMNS
    assert list(rows[["model", "precision"]].itertuples(index=False, name=None)) == [
        (model, precision) for model in ("DdpmSt", "Stfpm") for precision in latency.PRECISIONS
    ]
    values = rows[COLUMNS[2:-1]].to_dict("records")
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
