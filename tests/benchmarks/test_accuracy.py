# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the accuracy table."""

import json
import sys
from pathlib import Path

import accuracy
import pytest
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from common import METRICS, read_table
from torchvision.transforms.v2 import Normalize, Resize

from anomalib_ddpm_st import CanonicalPose
from anomalib_ddpm_st.core.transforms import flatten_transform

ARGUMENTS = {
    "pre_trained": False,
    "memory_size": 8,
    "diffusion": {"training_steps": 2, "block_out_channels": [8, 8]},
    "bank": {"size": 4, "num_inference_steps": 2},
}


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("name", ["accuracy.csv", "record.json"])
def test_one_row_for_each_run(name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model stops after the given number of epochs; the pictures of a record stay out of the results."""
    output = tmp_path / "results" / name
    options = {
        "data-root": data_root,
        "output": output,
        "pictures": tmp_path / "pictures",
        "model-arguments": json.dumps(ARGUMENTS),
        "teacher-weights": "null",
        "max-epochs": 1,
    }
    monkeypatch.setattr(
        sys, "argv", ["benchmarks/accuracy.py", *(f"--{key}={value}" for key, value in options.items())]
    )
    accuracy.main()
    if output.suffix == ".csv":
        rows = read_table(output)
        assert rows[["model", "category", "seed"]].to_numpy().tolist() == [["DdpmSt", "bottle", 1]]
        assert rows[list(METRICS)].stack().between(0, 100).all()
        assert rows["seconds"].item() > 0
    else:
        record = json.loads(output.read_text(encoding="utf-8"))
        assert set(record["seconds"]) == {"diffusion", "bank", "memory", "detector", "total"}
        assert sum(value for stage, value in record["seconds"].items() if stage != "total") < record["seconds"]["total"]
        assert set(record["metrics"]) == set(METRICS)
        assert {path.name for path in output.parent.iterdir()} == {name, "record_scores.png"}
        pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
        assert pictures == {f"record_{kind}.png" for kind in ("maps", "ddpm_samples", "synthetic")}


def test_canonical_pose_comes_before_the_normalisation() -> None:
    """After every other step of a pre-processor, and at the end where it does not normalise."""
    pose = accuracy.with_canonical_pose(Patchcore.configure_pre_processor((64, 64)))
    assert [type(step) for step in flatten_transform(pose.transform)] == [Resize, CanonicalPose, Normalize]
    plain = accuracy.with_canonical_pose(PreProcessor(transform=Resize((64, 64))))
    assert [type(step) for step in flatten_transform(plain.transform)] == [Resize, CanonicalPose]
