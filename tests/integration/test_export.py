# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Exported models: ONNX, OpenVINO, INT8."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import ValSplitMode
from anomalib.deploy import CompressionType, ExportType, OpenVINOInferencer
from anomalib.models.components.base.export_mixin import ExportMixin

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.core.signal_stack import signal_stack

from .conftest import make_engine

Export = Callable[[tuple[int, int] | None], Path]
# Processors with bfloat16 would use it by default.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.parametrize("input_size", [None, (128, 128)])
def test_openvino_equals_torch(trained: tuple, exported: Export, input_size: tuple[int, int] | None) -> None:
    """The exported model resizes the image as the pre-processor does."""
    _, model, _ = trained
    size = input_size or (150, 200)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prediction = OpenVINOInferencer(exported(input_size), device="CPU", config=FLOAT32).predict(image)
    with torch.no_grad():
        expected = model.cpu().eval()(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    np.testing.assert_allclose(prediction.anomaly_map.squeeze(), expected.anomaly_map.squeeze(), atol=1e-4)
    np.testing.assert_allclose(prediction.pred_score.squeeze(), expected.pred_score.squeeze(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "input_size", "whole"),
    [
        (CompressionType.INT8_PTQ, None, True),
        (CompressionType.INT8_PTQ, (128, 128), False),
        (CompressionType.INT8_ACQ, None, False),
    ],
)
def test_int8_comes_close(
    tmp_path: Path,
    trained: tuple,
    datamodule: MVTecAD,
    exported: Export,
    compression: CompressionType,
    input_size: tuple[int, int] | None,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole export once; then the model exported in FP32 is quantised, since only that differs."""
    engine, model, _ = trained
    full = exported(input_size)

    def copy(_: ExportMixin, root: str, *__: Any) -> Path:  # noqa: ANN401
        return Path(shutil.copytree(full.parent, Path(root) / "weights" / "openvino")) / full.name

    if not whole:
        monkeypatch.setattr(ExportMixin, "to_openvino", copy)
    stack = bytes(signal_stack())
    short = engine.export(
        model,
        ExportType.OPENVINO,
        export_root=tmp_path,
        input_size=input_size,
        compression_type=compression,
        datamodule=datamodule,
        max_drop=1.0,
    )
    assert bytes(signal_stack()) == stack
    core = openvino.Core()
    kinds = [{node.get_type_name() for node in core.read_model(path).get_ops()} for path in (full, short)]
    assert "FakeQuantize" not in kinds[0]
    assert "FakeQuantize" in kinds[1]
    assert short.with_suffix(".bin").stat().st_size < 0.4 * full.with_suffix(".bin").stat().st_size
    image = datamodule.test_data[0].image[None].numpy()
    maps = [core.compile_model(path, "CPU", FLOAT32)(image)["anomaly_map"] for path in (full, short)]
    assert np.abs(maps[0] - maps[1]).mean() < 0.05


@pytest.mark.parametrize(
    ("compression", "arguments", "match"),
    [
        (CompressionType.INT8_PTQ, {}, "pass the datamodule of the training"),
        (CompressionType.INT8_ACQ, {"split": ValSplitMode.NONE}, "set the datamodule's val_split_mode"),
        (CompressionType.INT8_ACQ, {"split": ValSplitMode.SAME_AS_TEST, "max_drop": 2.0}, "max_drop must be a finite"),
    ],
)
def test_int8_without_what_it_needs(
    tmp_path: Path,
    trained: tuple,
    mvtec_root: Path,
    compression: CompressionType,
    arguments: dict[str, Any],
    match: str,
) -> None:
    _, model, _ = trained
    arguments = dict(arguments)
    split = arguments.pop("split", None)
    if split is not None:
        arguments["datamodule"] = MVTecAD(root=mvtec_root, category="gravel", num_workers=0, val_split_mode=split)
    with pytest.raises(ValueError, match=match):
        model.to_openvino(tmp_path, compression_type=compression, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_onnx_export_is_a_file(tmp_path: Path, trained: tuple) -> None:
    onnx = pytest.importorskip("onnx")
    engine, model, _ = trained
    path = engine.export(model, ExportType.ONNX, export_root=tmp_path)
    onnx.checker.check_model(str(path))


def test_pre_processor_without_a_size(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    """Without a resize, the exported model takes the size of the training images, after a reload, too."""
    model = DdpmSt(**{**small, "pre_processor": False, "defects": {"source": "self_texture"}})
    engine = make_engine(tmp_path, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    loaded = DdpmSt.load_from_checkpoint(engine.best_model_path).eval()
    assert loaded.pre_processor is None
    assert loaded.item_size == model.item_size
    image = datamodule.test_data[0].image
    assert loaded.item_size == image.shape[-2:]
    path = engine.export(loaded, ExportType.OPENVINO, export_root=tmp_path)
    compiled = openvino.Core().compile_model(path, "CPU", FLOAT32)
    assert list(compiled.input(0).partial_shape)[2:] == list(image.shape[-2:])
    with torch.no_grad():
        expected = loaded(image[None]).anomaly_map
    np.testing.assert_allclose(compiled([image[None].numpy()])["anomaly_map"], expected, atol=1e-4)
    with pytest.raises(ValueError, match="pass input_size, or train the model first"):
        DdpmSt(**{**small, "pre_processor": False}).to_onnx(tmp_path / "untrained")
