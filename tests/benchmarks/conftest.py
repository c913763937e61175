# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks are scripts, not a package: their folder is added to the path, as it is when one of them runs."""

import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.models import AnomalibModule
from PIL import Image

from anomalib_ddpm_st import DdpmSt

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import curve

# A detector that trains without a DDPM.
SHORT: dict[str, Any] = {"pre_trained": False, "defects": {"source": "self_texture"}}


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Category "bottle" in the layout of MVTecAD, with ten normal training images."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data")
    for folder, count in (("train/good", 10), ("test/good", 2), ("test/hole", 2), ("ground_truth/hole", 2)):
        target = root / "bottle" / folder
        target.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(60, 190, (64, 64, 3), dtype=np.uint8)
            if folder.startswith("ground_truth"):
                Image.fromarray(np.full((64, 64), 255, np.uint8)).save(target / f"{index:03d}_mask.png")
            else:
                Image.fromarray(pixels).save(target / f"{index:03d}.png")
    return root


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DdpmSt work at 64 x 64 pixels by default, a sixteenth of its default."""
    small = partial(DdpmSt.configure_pre_processor, (64, 64))
    monkeypatch.setattr(DdpmSt, "configure_pre_processor", staticmethod(small))


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """DdpmSt works at 64 x 64 pixels by default."""
    shrink(monkeypatch)


@pytest.fixture(scope="session")
def short_curve(
    data_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[dict[str, Any]], list[torch.Tensor], Path]:
    """Curve of a training of two steps: its rows, the spread of the scores in each, and the folder of its weights."""
    spreads: list[torch.Tensor] = []
    measure = curve.measure

    def spy(model: DdpmSt, *inputs: Any, **more: Any) -> dict[str, float]:  # noqa: ANN401
        spreads.append(model.model.score_spread.clone())
        return measure(model, *inputs, **more)

    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        monkeypatch.setattr(curve, "measure", spy)
        rows = curve.run("bottle", 1, [0.5, 1.0], {**SHORT, "training_steps": 2}, data_root, "32-true", folder)
    return rows, spreads, folder


@pytest.fixture
def traced_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is traced once for each input size: its other formats start from a copy of the same ONNX file."""
    exports: dict[tuple[Any, ...], tuple[Path, Path]] = {}
    to_onnx = AnomalibModule.to_onnx

    def copy_onnx(
        model: AnomalibModule,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Path:
        key = (model, model_file_name, input_size, str(kwargs))
        if key not in exports:
            root = tmp_path_factory.mktemp("onnx")
            exports[key] = root, to_onnx(model, root, model_file_name, input_size, **kwargs)
        root, path = exports[key]
        shutil.copytree(root, export_root, dirs_exist_ok=True)
        return Path(export_root) / path.relative_to(root)

    monkeypatch.setattr(AnomalibModule, "to_onnx", copy_onnx)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Undo what scripts do to logging and warnings."""
    loggers = [logging.getLogger(name) for name in ("anomalib", "lightning.pytorch", "nncf", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
