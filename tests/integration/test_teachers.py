# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""A vision transformer as teacher: training, checkpoint and export, with images that patches do not fill."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine

from anomalib_ddpm_st import DdpmSt

from .conftest import CATEGORY, make_engine

# Neither is a multiple of the patch of 16 pixels.
SIZE = (60, 84)
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def trained_transformer(
    tmp_path_factory: pytest.TempPathFactory,
    mvtec_root: Path,
    tiny: dict[str, Any],
) -> tuple[Engine, DdpmSt]:
    """Detector with a tiny vision transformer, trained for two steps."""
    model = DdpmSt(
        **{**tiny, "backbone": "test_vit", "defects": {"source": "self_texture"}},
        pre_processor=DdpmSt.configure_pre_processor(SIZE),
        visualizer=False,
    )
    datamodule = MVTecAD(root=mvtec_root, category=CATEGORY, train_batch_size=2, eval_batch_size=2, num_workers=0)
    engine = make_engine(tmp_path_factory.mktemp("engine"))
    before = {name: value.clone() for name, value in model.model.teacher.state_dict().items()}
    engine.train(model, datamodule=datamodule)
    assert all(torch.equal(value, before[name]) for name, value in model.model.teacher.cpu().state_dict().items())
    return engine, model.cpu().eval()


def predict(model: DdpmSt, images: np.ndarray) -> Any:  # noqa: ANN401
    """Prediction of the trained model."""
    with torch.no_grad():
        return model(torch.from_numpy(images))


def test_checkpoint(trained_transformer: tuple[Engine, DdpmSt]) -> None:
    """It holds the teacher; the loaded model gives the same maps."""
    engine, model = trained_transformer
    loaded = DdpmSt.load_from_checkpoint(engine.best_model_path).cpu().eval()
    assert loaded.model.teacher.backbone == "test_vit"
    assert loaded.model.memory_bank.is_filled
    images = np.random.default_rng(1).random((2, 3, 100, 90), dtype=np.float32)
    # Weights in another memory format round differently.
    maps = [predict(network, images).anomaly_map for network in (loaded, model)]
    torch.testing.assert_close(*maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [ExportType.OPENVINO, ExportType.ONNX])
def test_export(kind: ExportType, trained_transformer: tuple[Engine, DdpmSt], tmp_path: Path) -> None:
    """The maps of the trained model, for any number and size of images; the teacher stays as it was."""
    engine, model = trained_transformer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = engine.export(model, kind, export_root=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    compiled = openvino.Core().compile_model(path, "CPU", FLOAT32)
    for shape in ((1, 3, 100, 90), (3, 3, 64, 200)):
        images = np.random.default_rng(0).random(shape, dtype=np.float32)
        expected, output = predict(model.cpu().eval(), images), compiled(images)
        np.testing.assert_allclose(output["anomaly_map"], expected.anomaly_map, atol=1e-4)
        np.testing.assert_allclose(output["pred_score"], expected.pred_score, atol=1e-4)


def test_int8(trained_transformer: tuple[Engine, DdpmSt], datamodule: MVTecAD, tmp_path: Path) -> None:
    """The quantised model comes close."""
    engine, model = trained_transformer
    path = engine.export(
        model,
        ExportType.OPENVINO,
        export_root=tmp_path,
        compression_type=CompressionType.INT8_PTQ,
        datamodule=datamodule,
    )
    core = openvino.Core()
    assert "FakeQuantize" in {node.get_type_name() for node in core.read_model(path).get_ops()}
    images = datamodule.test_data[0].image[None].numpy()
    maps = core.compile_model(path, "CPU", FLOAT32)(images)["anomaly_map"]
    assert np.abs(maps - predict(model.cpu().eval(), images).anomaly_map.numpy()).mean() < 0.05


def test_export_for_any_size_of_the_teacher(
    trained_transformer: tuple[Engine, DdpmSt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Position embeddings belong to one size, which a Resize or ``input_size`` gives."""
    _, model = trained_transformer
    monkeypatch.setattr(model, "pre_processor", None)
    sizes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},)
    with pytest.raises(Exception, match="can be exported for one size of images only: pass input_size"):
        model.to_onnx(tmp_path, input_size=SIZE, dynamic_shapes=sizes)
