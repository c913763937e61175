# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what the benchmarks share: tables, settings and where pictures go."""

import csv
from pathlib import Path
from typing import Any

import pytest
from common import append_row, ddpm_st_arguments, has_row, merge, picture_file, read_table

KEY = ["variant", "category", "seed", "budget"]


def cell(**values: str | float) -> dict[str, Any]:
    """Row of a cell."""
    return {"variant": "default", "category": "bottle", "seed": 1, "budget": "short", "pixel_AUROC": 97.125, **values}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def test_table_without_a_file(tmp_path: Path) -> None:
    """A new table has no rows."""
    assert read_table(tmp_path / "none.csv").empty
    assert not has_row(tmp_path / "none.csv", category="bottle")


def test_rows_are_found_again(tmp_path: Path) -> None:
    """Rows are appended under one header, in a folder that need not exist, and each is found."""
    path = tmp_path / "results" / "table.csv"
    rows = [cell(), cell(variant="soft=0", seed=2), cell(category="screw", budget="full")]
    for count, row in enumerate(rows, start=1):
        assert not has_row(path, **{name: row[name] for name in KEY})
        append_row(path, row)
        assert has_row(path, **{name: row[name] for name in KEY})
        assert len(read_table(path)) == count
    assert list(read_table(path)[KEY].itertuples(index=False, name=None)) == [
        ("default", "bottle", 1, "short"),
        ("soft=0", "bottle", 2, "short"),
        ("default", "screw", 1, "full"),
    ]
    assert not has_row(path, variant="soft=0", seed=1), "each value is in the table, but not in one row"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "variant,category,seed,budget,pixel_AUROC"
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]


def test_awkward_values(tmp_path: Path) -> None:
    """Commas and quotes of a value do not move the columns, and names that look like numbers stay names."""
    path = tmp_path / "table.csv"
    append_row(path, cell(variant='strength=[1, 2], "so"', category="01"))
    assert has_row(path, variant='strength=[1, 2], "so"', category="01", seed=1, budget="short")
    assert read_table(path)["category"].tolist() == ["01"]


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_nested_settings_are_merged() -> None:
    """Later values win at every level, and the inputs stay as they were."""
    first = {"top_k": 25, "bank": {"size": 160, "seed": 1}, "defects": None}
    second = {"top_k": 30, "bank": {"size": 128}, "defects": {"p_soft": 0.0}}
    expected = {"top_k": 30, "bank": {"size": 128, "seed": 1}, "defects": {"p_soft": 0.0}}
    assert merge(first, second) == expected
    assert merge(first, second, {"defects": {"p_local": 0.5}, "bank": None}) == {
        **expected,
        "defects": {"p_soft": 0.0, "p_local": 0.5},
        "bank": None,
    }
    assert first == {"top_k": 25, "bank": {"size": 160, "seed": 1}, "defects": None}
    assert merge() == {}


def test_arguments_of_the_detector(tmp_path: Path) -> None:
    """The cache is a new one of the run by default; what the user passes wins."""
    assert ddpm_st_arguments("a.pth", None, tmp_path, {"bank": {"size": 8}}) == {
        "teacher_weights": "a.pth",
        "cache_dir": str(tmp_path / "cache"),
        "bank": {"size": 8},
    }
    assert ddpm_st_arguments("a.pth", "cache", tmp_path, {"teacher_weights": None}) == {
        "teacher_weights": None,
        "cache_dir": "cache",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize(
    ("category", "folder"), [("magnetic_tile", "results"), ("bottle", "pictures"), ("my_parts", "pictures")]
)
def test_pictures_that_may_not_be_passed_on_stay_out_of_the_results(category: str, folder: str, tmp_path: Path) -> None:
    """Only images of a data set whose licence is known to allow it are saved next to the table."""
    path = picture_file(tmp_path / "results" / f"quick_{category}", "maps", category, tmp_path / "pictures")
    assert path == tmp_path / folder / f"quick_{category}_maps.png"
    assert path.parent.is_dir()
