# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the tables of results in README and documentation."""

import shutil
import sys
from pathlib import Path

import pytest
import tables

ROOT = Path(__file__).parents[2]
HEADER = "category,seed,commit,step,seconds,image_AUROC,pixel_AUROC,pixel_AUPR,pixel_AUPRO\n"


def test_pages_are_up_to_date() -> None:
    """Every figure of every table is that of the result files."""
    assert [str(page.relative_to(ROOT)) for page in tables.outdated(ROOT)] == []


def test_every_table_is_shown() -> None:
    shown = {name for page in tables.pages(ROOT) for _, name, _ in tables.MARKERS.findall(page.read_text("utf-8"))}
    assert shown == set(tables.TABLES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Repository with the results of this one and one page."""
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    (tmp_path / "docs").mkdir()
    page = "# Title\n\n<!-- table: overview -->\n<!-- /table -->\n\nText.\n"
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, root: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tables.py", f"--root={root}", *options])
    tables.main()


def test_check_fails_if_a_figure_differs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the tables are written, after a figure of the page was changed, and after a result was."""
    page, table = root / "README.md", root / "benchmarks" / "results" / "accuracy.csv"
    for damaged, old, new in ((page, "", ""), (page, "72.6", "72.7"), (table, "72.612", "74.612")):
        damaged.write_text(damaged.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        before = page.read_text(encoding="utf-8")
        with pytest.raises(SystemExit, match=r"differ from benchmarks/results: README\.md"):
            run(monkeypatch, root, "--check")
        assert page.read_text(encoding="utf-8") == before
        run(monkeypatch, root)
        run(monkeypatch, root, "--check")
    text = page.read_text(encoding="utf-8")
    assert "| PatchCore | **100.0** / 74.6 |" in text
    assert text.startswith("# Title\n\n<!-- table: overview -->\n| Model |")
    assert text.endswith("|\n<!-- /table -->\n\nText.\n")


def test_default_is_the_last_step_of_the_newest_curve(root: Path) -> None:
    """Of each category that a newer file has; the others come from the older one."""
    results = tables.Results(root / "benchmarks" / "results")
    newest, older = (results.folder / name for name in tables.DEFAULT_CURVES)
    older.write_text(f"{HEADER}bottle,1,aaaaaaa,3000,60,1,1,1,1\nscrew,1,aaaaaaa,3000,120,2,2,2,2\n", encoding="utf-8")
    newest.write_text(f"{HEADER}bottle,1,bbbbbbb,3000,60,5,5,5,5\nbottle,1,bbbbbbb,600,9,4,4,4,4\n", encoding="utf-8")
    default = results.accuracy()["DdpmSt (default)"]
    assert (default["bottle"]["image_AUROC"], default["screw"]["image_AUROC"]) == (5, 2)
    assert default["magnetic_tile"] == {}
    first = tables.sources(results).splitlines()[2]
    files = ", ".join(f"`{name}`" for name in sorted([older.name, newest.name]))
    assert first == f"| DdpmSt (default) | {files} | `bbbbbbb`, `aaaaaaa` |"
    assert "| bottle | 600 | 0 | 4.0 |" in tables.schedule(results)


def test_best_cells() -> None:
    """Ties after rounding are best together; what was not measured is not; one value alone is not a best one."""
    assert tables._best([1.04, 0.96, None, 0.5], 1) == ["**1.0**", "**1.0**", tables.NONE, "0.5"]
    assert tables._best([12.4, 3.0], 0, lowest=True) == ["12", "**3**"]
    assert tables._best([None, 3.0], 1) == [tables.NONE, "3.0"]
    assert tables._spans([(3, 8), None, (5, 5)]) == ["3 to 8", tables.NONE, "**5**"]


def test_gain_is_paired() -> None:
    """By category and seed; a cell that only one variant has does not count."""
    values = {
        ("own", "a", "1"): 5,
        ("base", "a", "1"): 1,
        ("own", "b", "1"): 4,
        ("base", "b", "1"): 2,
        ("own", "c", "1"): 90,
    }
    rows = [
        {"variant": variant, "category": category, "seed": seed, "m": str(value)}
        for (variant, category, seed), value in values.items()
    ]
    assert tables._gain(rows, "own", "base", "m") == "+3.0 ± 1.0"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: none -->\n<!-- /table -->\n", "no table 'none'"),
        ("<!-- table: overview -->\n| a |\n", "not closed"),
        ("a <!-- table: overview --> b <!-- /table -->\n", "alone in its line"),
    ],
)
def test_wrong_markers(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.fill(page, tables.Results(ROOT / "benchmarks" / "results"))
