# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of the memory bank, and of the assemblies."""

import sys
from pathlib import Path

import assembly
import memory
import numpy as np
import pytest
import torch
from common import METRICS, read_table
from PIL import Image

from anomalib_ddpm_st.detector.teacher import Teacher


@pytest.fixture
def three_categories(tmp_path: Path) -> Path:
    """Normal images of the three categories that assemblies are made of."""
    rng = np.random.default_rng(0)
    for category, _, _ in assembly.SLOTS:
        for part in ("train", "test"):
            folder = tmp_path / "data" / category / part / "good"
            folder.mkdir(parents=True)
            for index in range(2):
                Image.fromarray(rng.integers(90, 250, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_assemblies(three_categories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of defect is annotated, the same seed gives the same files, and existing ones stay."""
    monkeypatch.setattr(assembly, "COUNTS", dict.fromkeys(assembly.COUNTS, 2))
    for folder in ("first", "second"):
        assembly.write_assemblies(three_categories, tmp_path / folder)
    first, second = (sorted((tmp_path / folder).rglob("*.png")) for folder in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(first) == 2 * (2 + 2 * 4)
    assembly.write_assemblies(tmp_path / "none", tmp_path / "first")


@pytest.mark.parametrize(
    ("kind", "places"),
    [("good", 0), ("missing", 1), ("swapped", 2), ("wrong", 1), ("turned", 1)],
)
def test_defects_of_assemblies(kind: str, places: int) -> None:
    """The annotation covers the places that differ."""
    pools = [torch.full((1, 3, *size), 150.0 + 30 * slot) for slot, (_, size, _) in enumerate(assembly.SLOTS)]
    pools[2][..., :100] = 255
    image, mask = assembly.assemble(pools, kind, torch.Generator().manual_seed(1))
    areas = [height * width for _, (height, width), _ in assembly.SLOTS]
    assert int(mask.sum()) in {0: {0}, 1: set(areas), 2: {2 * areas[0]}}[places]
    is_empty = image[0] < 0.4
    if kind == "missing":
        assert is_empty[mask.bool()].all()
    else:
        assert not is_empty[mask.bool()].any()
    if kind == "turned":
        assert image[0][mask.bool()].reshape(assembly.SLOTS[2][1])[:, -100:].min() == 1


@pytest.mark.usefixtures("small_images", "quiet")
def test_rows(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each weight, of which one is chosen."""
    monkeypatch.setattr(Teacher, "load_weights", lambda *_: None)
    output = tmp_path / "memory.csv"
    options = [
        "--categories",
        "bottle",
        f"--data-root={data_root}",
        f"--output={output}",
        "--position-weights",
        "0",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmarks/memory.py", *options])
    for _ in range(2):
        memory.main()
    table = read_table(output)
    assert table["position_weight"].tolist() == [0, 1]
    assert table["chosen"].tolist() == [False, True]
    assert table[list(METRICS)].map(lambda value: 0 <= value <= 100).all(axis=None)
    assert table[list(METRICS)].nunique().max() == 2
