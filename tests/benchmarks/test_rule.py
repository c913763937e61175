# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the rule that ranks variants by their worst family."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import rule
import torch
from common import read_table
from rule import FAMILY_METRICS, FamilyEvaluator, compare_with_known, family_of, rank
from validation import FAMILIES, KINDS

from anomalib_ddpm_st.detector.teacher import Teacher


def rows(variant: str, values: dict[str, float], category: str = "bottle", seed: int = 1) -> list[dict[str, Any]]:
    """Rows of a variant with one value for each family; image AUROC is ten above, pixel AUPR ten below."""
    key = {"variant": variant, "category": category, "seed": seed}
    return [
        {**key, "family": family, "image_AUROC": value + 10, "pixel_AUPR": value - 10}
        for family, value in values.items()
    ]


def test_worst_family_decides() -> None:
    """A variant that is better on average loses to one without a weak family."""
    table = pd.DataFrame([
        *rows("uneven", {"line": 90, "blob": 90, "colour": 30}),
        *rows("even", {"line": 50, "blob": 60, "colour": 55}),
    ])
    ranked = rank(table)
    assert ranked.index.tolist() == ["even", "uneven"]
    assert ranked["worst"].tolist() == [50, 30]
    assert ranked["worst_family"].tolist() == ["bottle: line", "bottle: colour"]
    assert ranked["mean_value"].tolist() == [55, 70]
    assert ranked["mean_image_AUROC"].tolist() == [65, 80]
    assert ranked["mean_pixel_AUPR"].tolist() == [45, 60]


def test_both_metrics_count() -> None:
    """A family whose images are all found but whose defects are not outlined is worse than one a little of both."""
    table = pd.DataFrame([
        {"variant": "a", "category": "bottle", "seed": 1, "family": "line", "image_AUROC": 100, "pixel_AUPR": 0},
        {"variant": "a", "category": "bottle", "seed": 1, "family": "blob", "image_AUROC": 60, "pixel_AUPR": 60},
    ])
    assert rank(table)["worst"].tolist() == [50]


def test_worst_family_of_each_data_set() -> None:
    """Seeds are averaged before the worst family is found, data sets after."""
    table = pd.DataFrame([
        *rows("a", {"line": 40, "blob": 50}, seed=1),
        *rows("a", {"line": 60, "blob": 40}, seed=2),
        *rows("a", {"line": 90, "blob": 85}, "screw"),
    ])
    ranked = rank(table)
    assert ranked["worst"].tolist() == [(45 + 85) / 2]
    assert ranked["worst_family"].tolist() == ["bottle: blob, screw: blob"]


def test_unfinished_cells_do_not_count() -> None:
    """A variant gains nothing from a data set that another one was not measured on."""
    table = pd.DataFrame([*rows("a", {"line": 40}), *rows("b", {"line": 45}), *rows("a", {"line": 99}, "screw")])
    assert rank(table)["worst"].to_dict() == {"b": 45, "a": 40}


@pytest.mark.parametrize("kind", KINDS)
def test_family_of(kind: str) -> None:
    """Files of defects belong to the family of their kind, normal images to none."""
    assert kind in FAMILIES[family_of(f"set/defect/012_{kind}.png")]
    assert not family_of("set/good/012.png")


def test_family_evaluator() -> None:
    """Each family is measured against all normal images and no other family."""
    evaluator = FamilyEvaluator()
    scores = {"good/000": 0.3, "good/001": 0.6, "defect/000_crack": 0.9, "defect/001_spot": 0.5, "defect/002_tint": 0.1}
    for part in (list(scores)[:3], list(scores)[3:]):
        values = torch.tensor([scores[name] for name in part])
        masks = torch.zeros(len(part), 4, 4, dtype=torch.bool)
        masks[:, 0] = torch.tensor([name.startswith("defect") for name in part])[:, None]
        batch = SimpleNamespace(
            image_path=[f"set/{name}.png" for name in part],
            pred_score=values,
            gt_label=masks[:, 0, 0],
            anomaly_map=values[:, None, None].expand(-1, 4, 4),
            gt_mask=masks,
        )
        evaluator.on_test_batch_end(None, None, None, batch, 0)
    table = evaluator.table().set_index("family")
    assert table["images"].to_dict() == {"line": 1, "blob": 1, "colour": 1}
    assert table["image_AUROC"].to_dict() == {"line": 100, "blob": 50, "colour": 0}
    # Four of the sixteen pixels of the image are marked: all in front, and behind sixteen and 32 other ones.
    assert table["pixel_AUPR"].tolist() == pytest.approx([25, 12.5, 100 * 4 / 48], abs=1e-3)


def test_known_ranking() -> None:
    """The test results of the same steps stand next to the rank."""
    ranked = rank(pd.DataFrame([*rows("step6", {"line": 50}), *rows("step60", {"line": 40})]))
    known = pd.DataFrame({"step": [6, 60], "image_AUROC": [80.0, 90.0], "pixel_AUPR": [20.0, 40.0]})
    table = compare_with_known(ranked, known)
    assert table["test_value"].to_dict() == {"step6": 50, "step60": 65}


@pytest.mark.usefixtures("small_images", "quiet")
def test_script(
    data_root: Path,
    short_curve: tuple[list[dict[str, Any]], list[torch.Tensor], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights of a curve and memory banks are measured once, and rows of every family written."""
    monkeypatch.setattr(Teacher, "load_weights", lambda *_: None)
    weights = tmp_path / "weights" / "bottle-1"
    weights.parent.mkdir()
    weights.symlink_to(short_curve[2])
    output = tmp_path / "rule.csv"
    options = ["--categories", "bottle", f"--data-root={data_root}", f"--output={output}", "--pose", "true"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/rule.py", *options, f"--weights-dir={tmp_path / 'weights'}"])
    rule.main()
    table = read_table(output)
    assert set(table["variant"]) == {"pose=off", "pose=auto", "step1", "step2"}
    assert set(table["family"]) <= set(FAMILIES)
    assert table.groupby("variant")["images"].sum().tolist() == [10] * 4
    assert table[list(FAMILY_METRICS)].map(lambda value: 0 <= value <= 100).all(axis=None)
    monkeypatch.setattr(rule, "measure_families", lambda *_args, **_kwargs: pytest.fail("measured again"))
    rule.main()
    assert read_table(output).equals(table)
