# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration scores next to an exported model, and another threshold for it."""

import json
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from anomalib.data import InferenceBatch
from openvino import opset13 as ops

from anomalib_ddpm_st.detector.calibration_file import CalibrationFile, move_threshold
from anomalib_ddpm_st.detector.post_processing import ConformalPostProcessor
from anomalib_ddpm_st.detector.torch_model import NormalScores

SCORES = torch.linspace(0.1, 0.4, 40)


def make_processor(low: float = 0.0) -> ConformalPostProcessor:
    """Post-processor with calibrated thresholds, of scores that begin below 0 or not."""
    processor = ConformalPostProcessor(false_alarm_rate=0.025)
    processor.use_good_images(None, 0, NormalScores(SCORES + low, 2 * SCORES + low, torch.full((40,), low)))
    return processor


def make_model(processor: ConformalPostProcessor, named: bool = True) -> ov.Model:
    """Exported model whose raw map is its input, and whose raw score is half of its highest value."""

    def scale(values: ov.Output, threshold: torch.Tensor, lowest: torch.Tensor) -> ov.Node:
        origin = min(0.0, float(lowest))
        above = ops.maximum(ops.subtract(values, np.float32(origin)), np.float32(0))
        return ops.divide(above, ops.add(above, np.float32(float(threshold) - origin)))

    parameter = ops.parameter([-1, 4], dtype=np.float32, name="input")
    highest = ops.multiply(ops.reduce_max(parameter, np.array([1]), keep_dims=True), np.float32(0.5))
    score = scale(highest, processor.image_threshold, processor.image_min)
    anomaly_map = scale(parameter, processor.pixel_threshold, processor.pixel_min)
    nodes = {
        "pred_score": score,
        "anomaly_map": anomaly_map,
        "pred_label": ops.greater(score, np.float32(0.5)),
        "pred_mask": ops.greater(anomaly_map, np.float32(0.5)),
    }
    for name, node in nodes.items():
        node.output(0).set_names({name if named else f"other_{name}"})
    return ov.Model([ops.result(node) for node in nodes.values()], [parameter])


def run(model: ov.Model, values: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name."""
    compiled = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled([values])
    return {next(iter(output.names)): result[output] for output in compiled.outputs}


@pytest.mark.parametrize("low", [0.0, -0.5])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.001])
def test_exported_model_with_another_rate(low: float, rate: float) -> None:
    """It equals a model whose post-processor was calibrated for this rate."""
    processor = make_processor(low)
    calibration = CalibrationFile.from_post_processor(processor)
    moved = move_threshold(make_model(processor), calibration, calibration.at_rate(rate))
    other = make_processor(low)
    # With too few images for a rate, a post-processor adds a margin.
    other._image_threshold.fill_(calibration.at_rate(rate).image_threshold)
    other._pixel_threshold.fill_(calibration.at_rate(rate).pixel_threshold)
    maps = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 1.2 + low
    expected = other(InferenceBatch(pred_score=maps.amax(dim=1, keepdim=True) / 2, anomaly_map=maps))
    outputs = run(moved, maps.numpy())
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_allclose(outputs[name], getattr(expected, name).numpy(), atol=1e-6)
    for name in ("pred_label", "pred_mask"):
        assert outputs[name].dtype == bool
        assert (outputs[name] != getattr(expected, name).numpy()).mean() < 0.01, "but for rounding at the threshold"
    assert 0 < outputs["pred_mask"].mean() < 1
    if rate > 1 / 40:
        held_out = (SCORES + low) * 2
        labels = run(moved, held_out[:, None].repeat(1, 4).numpy())["pred_label"]
        assert labels.mean() <= rate


def test_saved_and_loaded(tmp_path: Path) -> None:
    calibration = CalibrationFile.from_post_processor(make_processor())
    path = calibration.save(tmp_path / "model.xml")
    assert path == tmp_path / "model.calibration.json"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert CalibrationFile.load(tmp_path / "model.xml") == calibration
    assert calibration.image_scores == pytest.approx(SCORES.tolist())


def test_nothing_to_save() -> None:
    """Without held-out images, or with raw scores."""
    assert CalibrationFile.from_post_processor(ConformalPostProcessor()) is None
    processor = make_processor()
    processor.enable_normalization = False
    assert CalibrationFile.from_post_processor(processor) is None


def test_file_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.calibration\.json does not exist: export the model again"):
        CalibrationFile.load(tmp_path / "model.xml")
    for content in ("{", "[]", json.dumps({"image_threshold": 1})):
        (tmp_path / "model.calibration.json").write_text(content)
        with pytest.raises(ValueError, match=r"model\.calibration\.json is not a calibration file .*: export"):
            CalibrationFile.load(tmp_path / "model.xml")


def test_model_that_does_not_fit() -> None:
    processor = make_processor()
    calibration = CalibrationFile.from_post_processor(processor)
    with pytest.raises(
        ValueError, match=r"no output anomaly_map, pred_label, pred_mask, pred_score: it is no exported"
    ):
        move_threshold(make_model(processor, named=False), calibration, calibration)
    zero = CalibrationFile(0.0, 0.1, 0.0, 0.0, [0.0], [0.1])
    with pytest.raises(ValueError, match="threshold of the image score is 0"):
        move_threshold(make_model(processor), zero, zero)
