# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st threshold``: what it prints and saves."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from anomalib_ddpm_st.cli.threshold import threshold
from anomalib_ddpm_st.detector.calibration_file import OUTPUTS, CalibrationFile

CALIBRATION = CalibrationFile(
    0.4, 0.8, 0.0, 0.0, [index / 100 for index in range(41)], [index / 50 for index in range(41)]
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Exported model with its calibration file."""
    parameter = ops.parameter([1, 2], dtype=np.float32)
    nodes = {}
    for values, labels in OUTPUTS.items():
        nodes[values] = ops.relu(parameter)
        nodes[labels] = ops.greater(nodes[values], ops.constant(0.5, dtype=np.float32))
    for name, node in nodes.items():
        node.output(0).set_names({name})
    path = tmp_path / "model.xml"
    ov.save_model(ov.Model([ops.result(node) for node in nodes.values()], [parameter]), path)
    CALIBRATION.save(path)
    return path


def test_prints_and_saves(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = exported.parent / "new" / "other.xml"
    threshold(exported, 0.25, output)
    printed = capsys.readouterr().out
    assert "With 41 good images that were not trained on, on average at most 24 % of good parts" in printed
    # The 32nd smallest of 41 scores.
    assert "Threshold of the image score: 0.31 (raw), 0.4366 on the scale of model.xml." in printed
    assert "Threshold of the pixel score: 0.62 (raw), 0.4366 on the scale of model.xml." in printed
    assert "Saved" in printed
    new = CalibrationFile.load(output)
    assert (new.image_threshold, new.pixel_threshold) == pytest.approx((0.31, 0.62))
    compiled = ov.compile_model(output, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    score = compiled(np.array([[0.31 / 0.71, 0.45]], np.float32))["pred_score"]
    assert score[0, 0] == pytest.approx(0.5, abs=1e-5)
    assert score[0, 1] > 0.5


def test_only_prints(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threshold(exported, 0.01)
    assert "A rate of 1 % needs 99: this is the highest of their scores." in capsys.readouterr().out
    assert {file.name for file in exported.parent.iterdir()} == {"model.xml", "model.bin", "model.calibration.json"}


def test_wrong_arguments(exported: Path, tmp_path: Path) -> None:
    for rate in (0, 1, 2):
        with pytest.raises(ValueError, match=r"^false_alarm_rate must be above 0 and below 1"):
            threshold(exported, rate)
    with pytest.raises(FileNotFoundError, match=r"other\.xml does not exist: give the path of an exported model"):
        threshold(tmp_path / "other.xml", 0.1)
    with pytest.raises(ValueError, match="is the model itself"):
        threshold(exported, 0.1, exported)
