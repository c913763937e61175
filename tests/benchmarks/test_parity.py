# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of parity."""

import json
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
from PIL import Image


def prediction(**changes: float) -> parity.Prediction:
    """Two images: one good, one defective, with fields changed."""
    maps = np.array([0.1, 0.9], np.float32).reshape(2, 1, 1, 1) + np.zeros((2, 1, 4, 4), np.float32)
    result = {
        "anomaly_map": maps,
        "pred_score": np.array([0.2, 0.8]),
        "pred_label": np.array([False, True]),
        "pred_mask": maps > parity.THRESHOLD,
    }
    for name, change in changes.items():
        result[name] = result[name] ^ True if result[name].dtype == bool else result[name] + change
    return result


def test_differences() -> None:
    """The largest of maps and of scores."""
    same = parity.compare(prediction(), prediction())
    assert same == {"map": 0.0, "score": 0.0, "labels_equal": True, "masks_equal": True}
    other = prediction()
    other["anomaly_map"] = other["anomaly_map"].copy()
    other["anomaly_map"][1, 0, 2, 3] -= 0.25
    other["pred_score"] = np.array([0.2, 0.9])
    result = parity.compare(other, prediction())
    assert result["map"] == pytest.approx(0.25)
    assert result["score"] == pytest.approx(0.1)


@pytest.mark.parametrize(("field", "key"), [("pred_label", "labels_equal"), ("pred_mask", "masks_equal")])
def test_labels_count_away_from_the_threshold(field: str, key: str) -> None:
    """A label that is turned round is a difference, unless the score was at the threshold."""
    turned = prediction(**{field: 1.0})
    assert not parity.compare(turned, prediction())[key]
    expected = prediction()
    for name in ("anomaly_map", "pred_score"):
        expected[name] = np.full_like(expected[name], parity.THRESHOLD + 0.5 * parity.MARGIN)
    assert parity.compare(turned, expected)[key]
    expected[{"pred_label": "pred_score", "pred_mask": "anomaly_map"}[field]] += 2 * parity.MARGIN
    assert not parity.compare(turned, expected)[key]


def test_inputs(tmp_path: Path) -> None:
    """Large, small, and grey; in folders of their own."""
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    files = parity.write_inputs([path, path], tmp_path)
    seen = {}
    for kind, paths in files.items():
        assert [file.name for file in paths] == ["0.png", "1.png"]
        with Image.open(paths[1]) as image:
            seen[kind] = (image.size, image.mode)
    assert seen == {"large": ((900, 900), "RGB"), "small": ((256, 256), "RGB"), "grey": ((900, 900), "L")}


@pytest.mark.slow
@pytest.mark.usefixtures("quiet", "traced_once")
def test_record(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of one image size exists, and in all of them the exported model matches the trained one."""
    monkeypatch.setattr(parity, "SIZES", ((64, 96),))
    monkeypatch.setattr(parity, "PRECISIONS", ("FP32",))
    monkeypatch.setattr(parity, "LARGE", 64)
    monkeypatch.setattr(parity, "SMALL", 64)
    monkeypatch.setattr(parity, "train", lambda *_: parity.DdpmSt(pre_trained=False, evaluator=False).eval())
    output = tmp_path / "parity.json"
    arguments = ["--data-root", str(data_root), "--output", str(output), "--teacher-weights", "null"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/parity.py", *arguments])
    before = Path.cwd()
    parity.main()
    assert Path.cwd() == before
    record = json.loads(output.read_text(encoding="utf-8"))
    kinds = [f"{kind} 64x64" for kind in ("large", "small", "grey")]
    cells = {(row["input_size"], row["runtime"], row["images"], row["batch"]) for row in record["rows"]}
    assert cells == {
        (size, runtime, kind, batch)
        for size in ("dynamic", "static")
        for runtime in ("openvino", "inferencer", "onnx")
        for kind in kinds
        for batch in (1, 3)
    }
    assert record["cells"] == len(cells) == len(record["rows"])
    assert {row["model_size"] for row in record["rows"]} == {"64x96"}
    assert record["largest_map_difference_FP32"] < 1e-4
    assert record["labels_equal"]
    assert record["masks_equal"]
