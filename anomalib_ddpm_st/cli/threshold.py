# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st threshold``: another false-alarm rate for an exported model."""

from pathlib import Path

from anomalib_ddpm_st.detector.calibration_file import CalibrationFile, move_threshold
from anomalib_ddpm_st.detector.conformal import check_rate, images_needed, promise_for


def threshold(model: Path, false_alarm_rate: float, output: Path | None = None) -> None:
    """Set another false-alarm rate of an exported OpenVINO model, without training or exporting it again.

    Args:
        model (Path): Exported model (.xml), with its calibration file beside it.
        false_alarm_rate (float): Largest part of good images that may count as defective, such as 0.005.
        output (Path | None): Exported model with the new thresholds (.xml). Without it, the thresholds are only
            printed.

    Raises:
        FileNotFoundError: If the model or its calibration file does not exist.
        ValueError: If the rate is out of its range, or a file cannot be used.
    """
    check_rate(false_alarm_rate)
    if not model.exists():
        msg = f"{model} does not exist: give the path of an exported model (.xml)."
        raise FileNotFoundError(msg)
    if output is not None and output.resolve() == model.resolve():
        msg = f"{output} is the model itself: choose another file for the new thresholds."
        raise ValueError(msg)
    before = CalibrationFile.load(model)
    after = before.at_rate(false_alarm_rate)
    count, needed = len(before.image_scores), images_needed(false_alarm_rate)
    lines = [f"With {count} good images that were not trained on, {promise_for(count, false_alarm_rate)}."]
    if count < needed:
        lines.append(f"A rate of {100 * false_alarm_rate:g} % needs {needed}: this is the highest of their scores.")
    for kind in ("image", "pixel"):
        old, new = (getattr(part, f"{kind}_threshold") for part in (before, after))
        origin = getattr(before, f"{kind}_origin")
        scaled = (new - origin) / (new + old - 2 * origin)
        lines.append(f"Threshold of the {kind} score: {new:.4g} (raw), {scaled:.4f} on the scale of {model.name}.")
    if output is not None:
        import openvino

        moved = move_threshold(openvino.Core().read_model(model), before, after)
        output.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(moved, output, compress_to_fp16=False)
        lines.append(f"Saved {output} and {after.save(output).name}, in which it is 0.5.")
    print("\n".join(lines))  # noqa: T201
