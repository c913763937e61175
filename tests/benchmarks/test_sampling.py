# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of sampling steps."""

import json
import sys
from pathlib import Path

import pytest
import sampling
import torch
from common import read_table

from anomalib_ddpm_st import DefectPipeline


def test_rows_are_measured_once(
    tmp_path: Path,
    data_root: Path,
    pipeline: DefectPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row for each number of steps, with a plot; existing rows are not measured again."""
    monkeypatch.setattr(sampling, "SIZE", (32, 32))
    monkeypatch.setattr(sampling, "TEXTURES", 2)
    asked: list[str | None] = []
    monkeypatch.setattr(sampling.Teacher, "load_weights", lambda _, path: asked.append(path))
    pipeline.save_pretrained(tmp_path / "ddpm")
    output = tmp_path / "sampling.csv"
    options = {
        "data-root": data_root,
        "categories": "bottle",
        "diffusion-paths": json.dumps({"bottle": str(tmp_path / "ddpm")}),
        "teacher-weights": "weights.pth",
        "output": output,
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    measured: list[int] = []
    measure_steps = sampling.measure_steps
    monkeypatch.setattr(
        sampling,
        "measure_steps",
        lambda *arguments: measured.append(arguments[-1]) or measure_steps(*arguments),
    )
    for steps in (["2"], ["2", "3"]):
        monkeypatch.setattr(sys, "argv", ["benchmarks/sampling.py", *given, "--steps", *steps])
        sampling.main()
    assert measured == [2, 3]
    assert asked == ["weights.pth"] * 2
    rows = read_table(output)
    assert rows[["category", "steps"]].to_numpy().tolist() == [["bottle", 2], ["bottle", 3]]
    assert (rows[list(sampling.PANELS)] > 0).all(axis=None)
    # Samples of an untrained network are further from images than these are from each other.
    assert (rows["from_noise"] > 1).all()
    assert output.with_suffix(".png").stat().st_size > 1000


def test_health_of_too_few_images(tmp_path: Path, pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Nothing is left to compare with."""
    pipeline.save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ValueError, match="needs more than 2 images"):
        sampling.measure_steps(tmp_path / "ddpm", normal_images[:2], sampling.Teacher("resnet18", ["layer2"]), 2)
