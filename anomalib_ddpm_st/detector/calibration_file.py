# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Another false-alarm rate for an exported model: calibration scores next to it, and a new scale of its scores."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .conformal import conformal_threshold
from .post_processing import ConformalPostProcessor

if TYPE_CHECKING:
    import openvino

SUFFIX = ".calibration.json"
# Outputs of an exported model, each with the one that says whether it exceeds the threshold.
OUTPUTS = {"pred_score": "pred_label", "anomaly_map": "pred_mask"}


@dataclass(frozen=True)
class CalibrationFile:
    """What is needed to set another threshold: a JSON file next to an exported model.

    Attributes:
        image_threshold (float): Threshold of the raw score of an image.
        pixel_threshold (float): Threshold of the raw anomaly map.
        image_origin (float): Raw score that becomes 0: 0 unless scores can be negative.
        pixel_origin (float): Raw value of the anomaly map that becomes 0.
        image_scores (list[float]): Raw scores of the held-out good images.
        pixel_maxima (list[float]): Highest value of each of their raw anomaly maps.
    """

    image_threshold: float
    pixel_threshold: float
    image_origin: float
    pixel_origin: float
    image_scores: list[float]
    pixel_maxima: list[float]

    @classmethod
    def from_post_processor(cls, processor: ConformalPostProcessor) -> "CalibrationFile | None":
        """Take the thresholds and scores of a post-processor.

        Args:
            processor (ConformalPostProcessor): Post-processor of a trained model.

        Returns:
            CalibrationFile | None: Its calibration, ``None`` if it was calibrated without held-out images, or its
            scores are not scaled.
        """
        if not len(processor.calibration_scores) or not processor.enable_normalization:
            return None
        return cls(
            float(processor.image_threshold),
            float(processor.pixel_threshold),
            min(0.0, float(processor.image_min)),
            min(0.0, float(processor.pixel_min)),
            processor.calibration_scores.tolist(),
            processor.calibration_maxima.tolist(),
        )

    @classmethod
    def load(cls, model_path: str | Path) -> "CalibrationFile":
        """Read the file next to an exported model.

        Args:
            model_path (str | Path): Path of the exported model.

        Returns:
            CalibrationFile: Calibration.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read.
        """
        path = _beside(model_path)
        if not path.exists():
            msg = (
                f"{path} does not exist: export the model again, trained with good images in the validation set "
                "(val_split_mode: from_train)."
            )
            raise FileNotFoundError(msg)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            msg = f"{path} is not a calibration file ({error}): export the model again."
            raise ValueError(msg) from error

    def save(self, model_path: str | Path) -> Path:
        """Write the file next to an exported model.

        Args:
            model_path (str | Path): Path of the exported model.

        Returns:
            Path: Path of the file.
        """
        path = _beside(model_path)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return partial.replace(path)

    def at_rate(self, false_alarm_rate: float) -> "CalibrationFile":
        """The same calibration with the thresholds of another false-alarm rate.

        Args:
            false_alarm_rate (float): Rate, in (0, 1).

        Returns:
            CalibrationFile: Calibration.
        """
        image, pixel = (
            float(conformal_threshold(torch.tensor(scores, dtype=torch.float64), false_alarm_rate))
            for scores in (self.image_scores, self.pixel_maxima)
        )
        return CalibrationFile(**{**asdict(self), "image_threshold": image, "pixel_threshold": pixel})


def move_threshold(model: "openvino.Model", before: CalibrationFile, after: CalibrationFile) -> "openvino.Model":
    r"""Scale scores and maps of an exported model so that another threshold becomes 0.5.

    A score :math:`v = s / (s + t)` with the threshold :math:`t` becomes :math:`s / (s + t')`, which is
    :math:`v / (v + (1 - v) t' / t)`.

    Args:
        model (openvino.Model): Model as it was exported, which is changed.
        before (CalibrationFile): Its calibration.
        after (CalibrationFile): Calibration with the new thresholds.

    Returns:
        openvino.Model: The model.

    Raises:
        ValueError: If an output is missing, or a threshold is 0.
    """
    from openvino import opset13 as ops

    ratios = []
    for kind in ("image", "pixel"):
        old, new = (getattr(part, f"{kind}_threshold") - getattr(part, f"{kind}_origin") for part in (before, after))
        if old <= 0 or new <= 0:
            msg = f"The threshold of the {kind} score is 0, as are many good scores: ask for a lower rate."
            raise ValueError(msg)
        ratios.append(new / old)
    missing = {*OUTPUTS, *OUTPUTS.values()} - {name for output in model.outputs for name in output.names}
    if missing:
        msg = f"The model has no output {', '.join(sorted(missing))}: it is no exported anomalib model with thresholds."
        raise ValueError(msg)
    for (values, labels), ratio in zip(OUTPUTS.items(), ratios, strict=True):
        source = model.output(values).node.input_value(0)
        kept = ops.multiply(ops.subtract(_constant(1.0), source), _constant(ratio))
        scaled = ops.divide(source, ops.add(source, kept))
        for name, node in ((values, scaled), (labels, ops.greater(scaled, _constant(0.5)))):
            result = model.output(name).node
            names = result.input_value(0).get_names()
            result.input_value(0).set_names(set())
            node.output(0).set_names(names)
            result.input(0).replace_source_output(node.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _constant(value: float) -> Any:  # noqa: ANN401
    """Constant of a graph."""
    from openvino import opset13 as ops

    return ops.constant(value, dtype=np.float32)


def _beside(model_path: str | Path) -> Path:
    """File next to an exported model."""
    return Path(model_path).with_suffix(SUFFIX)
