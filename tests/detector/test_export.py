# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the export methods without an export; tests/integration runs them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import AnomalibDataModule, Folder
from anomalib.deploy import CompressionType
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Resize, Transform

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.detector import export
from anomalib_ddpm_st.detector.export import ONNX_OPSET, ExportMixin


class Base:
    """Stands for anomalib's own methods and records their arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.model = SimpleNamespace(teacher=SimpleNamespace(has_positions=False))

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Record the arguments."""
        self.calls.append((args, kwargs))
        return Path("model.onnx")

    def to_openvino(self, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Record the arguments."""
        self.calls.append((args, kwargs))
        return Path(args[0]) / "model.xml"


class Model(ExportMixin, Base):
    """Model with the export methods."""


class Datamodule(SimpleNamespace):
    """Datamodule without a validation set."""

    def setup(self, stage: str) -> None:
        """Nothing to set up."""
        assert stage == "fit"


@pytest.mark.parametrize(("given", "opset"), [({}, ONNX_OPSET), ({"opset_version": 20}, 20)])
def test_opset_of_onnx(given: dict[str, int], opset: int) -> None:
    """The one that the exporter writes, unless another is asked for."""
    model = Model()
    assert model.to_onnx("root", "name", (32, 32), **given) == Path("model.onnx")
    assert model.calls == [(("root", "name", (32, 32)), {"opset_version": opset})]


@pytest.mark.parametrize("compression", [None, CompressionType.FP16, CompressionType.INT8])
def test_other_compressions_are_left_to_anomalib(compression: CompressionType | None) -> None:
    """With all arguments."""
    model = Model()
    assert model.to_openvino("root", "name", (32, 32), compression, max_drop=0.5) == Path("root/model.xml")
    assert model.calls == [(("root", "name", (32, 32), compression, None, None, None, 0.5, None, None), {})]


@pytest.mark.parametrize("compression", [CompressionType.INT8_PTQ, CompressionType.INT8_ACQ])
def test_calibration_needs_images(compression: CompressionType) -> None:
    """Named before anything is exported."""
    model = Model()
    with pytest.raises(ValueError, match="needs images for calibration: pass the datamodule"):
        model.to_openvino("root", compression_type=compression)
    assert not model.calls


@pytest.mark.parametrize("max_drop", [-0.1, 1.5])
def test_max_drop_out_of_range(max_drop: float) -> None:
    """Named before anything is exported."""
    model, data = Model(), Datamodule()
    with pytest.raises(ValueError, match="max_drop must be a finite number between 0 and 1"):
        model.to_openvino("root", compression_type=CompressionType.INT8_ACQ, datamodule=data, max_drop=max_drop)
    assert not model.calls


def test_accuracy_control_needs_a_validation_set() -> None:
    """Named before anything is exported."""
    model = Model()
    data: AnomalibDataModule | Datamodule = Datamodule(val_data=[])
    with pytest.raises(ValueError, match="INT8_ACQ needs a validation set"):
        model.to_openvino("root", compression_type=CompressionType.INT8_ACQ, datamodule=data)
    assert not model.calls


@pytest.mark.parametrize(
    ("input_size", "transform", "size"),
    [
        ((16, 24), Resize((8, 8)), (16, 24)),
        ((16, 24), None, (16, 24)),
        (None, Compose([Resize((8, 12), antialias=False), CenterCrop(8)]), (8, 12)),
        (None, CenterCrop(8), None),
        (None, None, None),
    ],
)
def test_calibration_images(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    input_size: tuple[int, int] | None,
    transform: Transform | None,
    size: tuple[int, int] | None,
) -> None:
    """Normal training images of the input size, as many as needed: crops are part of the exported model."""
    (tmp_path / "good").mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "good" / f"{index}.png")
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    data = Folder(name="x", root=tmp_path, normal_dir="good", num_workers=0, **splits)
    given: list[torch.Tensor] = []
    monkeypatch.setattr(export, "MAX_CALIBRATION_IMAGES", 3)
    monkeypatch.setattr(export, "quantize", lambda _, images: given.append(images))
    monkeypatch.setattr("openvino.Core", lambda: SimpleNamespace(read_model=str))
    monkeypatch.setattr("openvino.save_model", lambda *_, **__: None)
    model = Model()
    model.pre_processor = PreProcessor(transform)
    compression = CompressionType.INT8_PTQ
    path = model.to_openvino(tmp_path, "name", input_size, compression_type=compression, datamodule=data)
    assert path == tmp_path / "model.xml"
    paths = [tmp_path / "good" / f"{index}.png" for index in (0, 2, 4)]
    assert torch.equal(torch.stack(given[0]), NormalImages.from_files(paths, size).load())
