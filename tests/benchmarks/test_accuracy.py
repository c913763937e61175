# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the accuracy table."""

import json
import sys
from pathlib import Path

import accuracy
import pytest
from common import METRICS, read_rows

ARGUMENTS = {"pre_trained": False, "synthesis": "self_texture", "memory_size": 8}


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("name", ["accuracy.csv", "record.json"])
def test_one_row_for_each_run(name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that would train for long ends after the epochs that are given; the record has pictures beside it."""
    output = tmp_path / "results" / name
    options = {
        "data-root": data_root,
        "output": output,
        "model-arguments": json.dumps(ARGUMENTS),
        "teacher-weights": "null",
        "max-epochs": 1,
    }
    monkeypatch.setattr(
        sys, "argv", ["benchmarks/accuracy.py", *(f"--{key}={value}" for key, value in options.items())]
    )
    accuracy.main()
    if output.suffix == ".csv":
        rows = read_rows(output)
        assert [(row["model"], row["category"], row["seed"]) for row in rows] == [("DdpmSt", "bottle", "1")]
        assert all(0 <= float(rows[0][metric]) <= 100 for metric in METRICS)
        assert float(rows[0]["seconds"]) > 0
    else:
        record = json.loads(output.read_text(encoding="utf-8"))
        assert {"memory", "detector", "total"} <= set(record["seconds"])
        assert sum(value for stage, value in record["seconds"].items() if stage != "total") < record["seconds"]["total"]
        assert set(record["metrics"]) == set(METRICS)
        assert {path.name for path in output.parent.iterdir()} == {name, "record_maps.png", "record_scores.png"}
