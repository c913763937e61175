# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of the input size."""

import sys
from pathlib import Path

import input_size
import numpy as np
import pytest
import torch
from common import read_table
from PIL import Image

from anomalib_ddpm_st.detector.teacher import Teacher


def write_surfaces(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Images of a noisy surface."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{index:03d}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(100, 130, (*size, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def test_candidate_sizes(tmp_path: Path) -> None:
    """Fractions of the median size, in multiples of 32."""
    paths = write_surfaces(tmp_path / "good", 2, (100, 200))
    assert input_size.candidate_sizes(paths, [0.1, 1.0, 2.0]) == [(32, 32), (96, 192), (192, 384)]


def test_samples(tmp_path: Path) -> None:
    """Each image once without and once with a defect of each size, the same for the same seed."""
    paths = write_surfaces(tmp_path / "good", 2, (160, 160))
    samples = input_size.draw_samples(paths, seed=1)
    assert [size for _, _, _, size in samples] == 2 * [0, *input_size.DEFECT_SIZES]
    assert all(mask.any() == (size > 0) == (family in input_size.FAMILIES) for _, mask, family, size in samples)
    again = input_size.draw_samples(paths, seed=1)
    assert all(np.array_equal(first[0], second[0]) for first, second in zip(samples, again, strict=True))


@pytest.mark.usefixtures("quiet")
def test_rows_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each input size and size of defect, measured once; a larger defect is found by the memory bank."""
    write_surfaces(tmp_path / "data" / "plate" / "train" / "good", 10, (96, 96))
    monkeypatch.setattr(Teacher, "load_weights", lambda *_: None)
    monkeypatch.setattr(input_size, "MEMORY_SIZE", 20)
    monkeypatch.setattr(input_size, "DEFECT_SIZES", (4, 24))
    output = tmp_path / "input_size.csv"
    options = ["--categories", "plate", f"--data-root={tmp_path / 'data'}", f"--output={output}", "--images=3"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/input_size.py", *options, "--fractions", "0.75", "1"])
    torch.manual_seed(0)
    for _ in range(2):
        input_size.main()
    table = read_table(output)
    assert table[["height", "defect"]].to_numpy().tolist() == [[64, 4], [64, 24], [96, 4], [96, 24]]
    assert table[["image_AUROC", "pixel_AUPR"]].map(lambda value: 0 <= value <= 100).all(axis=None)
    assert (table["images"] == 3).all()
    assert Image.open(output.with_suffix(".png")).size[0] == 400
