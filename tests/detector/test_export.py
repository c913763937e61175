# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the export methods without an export; tests/integration runs them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType

from anomalib_ddpm_st.detector.export import ONNX_OPSET, ExportMixin


class Base:
    """Stands for anomalib's own methods and records their arguments."""

    input_size = (64, 64)

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Record the arguments."""
        self.calls.append((args, kwargs))
        return Path("model.onnx")

    def to_openvino(self, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Record the arguments."""
        self.calls.append((args, kwargs))
        return Path("model.xml")


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
    assert model.to_openvino("root", "name", (32, 32), compression, max_drop=0.5) == Path("model.xml")
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
