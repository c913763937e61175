# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Health of a DDPM, measured with the teacher of the detector."""

import json
from pathlib import Path

import torch

from anomalib_ddpm_st.detector.teacher import Teacher
from anomalib_ddpm_st.diffusion import DefectPipeline
from anomalib_ddpm_st.synthesis.health import HealthReport, health_report

HEALTH_FILE = "health.json"
HEALTH_LAYERS = ("layer2", "layer3")


def measure_health(
    pipeline: DefectPipeline,
    images: torch.Tensor,
    output: Path,
    teacher_weights: str | None = None,
    backbone: str = "resnet18",
) -> HealthReport | None:
    """Measure the health of a DDPM, save it and print the verdict.

    Args:
        pipeline (DefectPipeline): Trained DDPM.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        output (Path): Folder for ``health.json``.
        teacher_weights (str | None): Local file with the weights of the backbone. ``None`` downloads them.
        backbone (str): Name of the timm CNN. Defaults to ``"resnet18"``.

    Returns:
        HealthReport | None: Report; ``None`` if the weights could not be downloaded.

    Raises:
        FileNotFoundError: If the file ``teacher_weights`` does not exist.
        ValueError: If the weights do not fit the backbone.
    """
    teacher = Teacher(backbone, HEALTH_LAYERS)
    try:
        teacher.load_weights(teacher_weights)
    except ConnectionError as error:
        print(f"The health of the DDPM was not measured. {error}")  # noqa: T201
        return None
    report = health_report(pipeline, images, teacher)
    (output / HEALTH_FILE).write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"Health of the DDPM: {report['verdict']}. {report['advice']}")  # noqa: T201
    return report
