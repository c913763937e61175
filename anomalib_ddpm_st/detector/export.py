# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Export of DdpmSt: what differs from anomalib's export."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.deploy import CompressionType
from anomalib.metrics import F1Score
from anomalib.pre_processing import PreProcessor
from torchmetrics import Metric
from torchvision.transforms.v2 import Resize

from anomalib_ddpm_st.core.config import check_number
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.signal_stack import preserved_signal_stack
from anomalib_ddpm_st.core.transforms import find_transform, make_resize

from .calibration_file import CalibrationFile
from .openvino import MAX_CALIBRATION_IMAGES, quantize, quantize_with_accuracy_control
from .post_processing import ConformalPostProcessor

ONNX_OPSET = 18
# Two sizes of the same proportions, which a pre-processor that resizes or crops makes equal.
PROBE_SIZES = ((48, 64), (96, 128))

if TYPE_CHECKING:
    from anomalib.models import AnomalibModule as Base
else:
    Base = object


class ExportMixin(Base):
    """Export methods; comes before ``AnomalibModule`` in the bases of a model.

    Attributes:
        item_size (tuple[int, int] | None): Height and width of the training images before the pre-processor. ``None``
            before training.
    """

    item_size: tuple[int, int] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the size of the training images."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["item_size"] = None if self.item_size is None else list(self.item_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the size of the training images."""
        super().on_load_checkpoint(checkpoint)
        size = checkpoint.get("item_size")
        self.item_size = None if size is None else (size[0], size[1])

    def to_onnx(  # type: ignore[override]
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Path:
        """Export to ONNX, by default with the opset that the exporter writes without conversion.

        Args:
            export_root (Path | str): Folder to write to.
            model_file_name (str): Name of the file without its ending. Defaults to ``"model"``.
            input_size (tuple[int, int] | None): Height and width of the images that the exported model takes, before it
                resizes them itself. ``None`` for any, or for that of the training images if the pre-processor does not
                bring images to one size.
            **kwargs: Further arguments of ``torch.onnx.export``.

        Returns:
            Path: Path of the exported model.

        Raises:
            ValueError: If the size is needed, but not known.
        """
        if input_size is None and not self._has_fixed_size():
            if self.item_size is None:
                msg = "The pre-processor does not bring images to one size: pass input_size, or train the model first."
                raise ValueError(msg)
            input_size = self.item_size
        with self._fixed_positions(input_size):
            return super().to_onnx(export_root, model_file_name, input_size, **{"opset_version": ONNX_OPSET, **kwargs})

    @preserved_signal_stack()
    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        metric: Metric | None = None,
        task: TaskType | None = None,
        max_drop: float = 0.01,
        ov_kwargs: dict[str, Any] | None = None,
        onnx_kwargs: dict[str, Any] | None = None,
    ) -> Path:
        """Export to OpenVINO.

        INT8 is calibrated with normal images of the training set, half of them with synthetic defects. anomalib
        would use the validation set, whose images do not fit a model with a fixed input size.

        If held-out good images have calibrated the thresholds, their scores are saved next to the model, as
        ``model.calibration.json``, for ``anomalib-ddpm-st threshold``.

        Args:
            export_root (Path | str): Folder to write to.
            model_file_name (str): Name of the file without its ending. Defaults to ``"model"``.
            input_size (tuple[int, int] | None): Height and width of the images that the exported model takes, before it
                resizes them itself. ``None`` for any.
            compression_type (CompressionType | None): ``FP16`` or ``INT8`` weights, or ``INT8_PTQ`` or ``INT8_ACQ``
                for weights and activations. ``None`` for FP32.
            datamodule (AnomalibDataModule | None): Data for ``INT8_PTQ``, and with a validation set for ``INT8_ACQ``.
            metric (Metric | None): Metric that ``INT8_ACQ`` preserves; by default the image F1 score.
            task (TaskType | None): As in anomalib.
            max_drop (float): How much worse the metric may be. Defaults to ``0.01``.
            ov_kwargs (dict[str, Any] | None): Arguments of ``openvino.convert_model``.
            onnx_kwargs (dict[str, Any] | None): Arguments of ``torch.onnx.export``.

        Returns:
            Path: Path of the exported model.

        Raises:
            ValueError: If data that the compression needs is missing, or ``max_drop`` is out of its range.
        """
        quantized = {CompressionType.INT8_PTQ, CompressionType.INT8_ACQ}
        arguments = (input_size, None if compression_type in quantized else compression_type, datamodule, metric, task)
        further = (max_drop, ov_kwargs, onnx_kwargs)
        if compression_type not in quantized:
            return self._with_calibration(super().to_openvino(export_root, model_file_name, *arguments, *further))
        if datamodule is None:
            msg = f"{compression_type} needs images for calibration: pass the datamodule of the training."
            raise ValueError(msg)
        check_number("max_drop", max_drop, 0, 1)
        datamodule.setup("fit")
        validation_data = getattr(datamodule, "val_data", None)
        if compression_type == CompressionType.INT8_ACQ and not validation_data:
            msg = "INT8_ACQ needs a validation set to measure on: set the datamodule's val_split_mode, or use INT8_PTQ."
            raise ValueError(msg)
        import openvino  # an extra, as in anomalib

        normal = NormalImages.from_datamodule(datamodule, self._resize(input_size))
        images = list(normal.read(MAX_CALIBRATION_IMAGES).values())
        with tempfile.TemporaryDirectory() as work_dir:
            path = super().to_openvino(work_dir, model_file_name, *arguments, *further)
            model = openvino.Core().read_model(path)
            if compression_type == CompressionType.INT8_PTQ:
                model = quantize(model, images)
            else:
                metric = metric or F1Score(fields=["pred_label", "gt_label"])
                data = cast("AnomalibDataset", validation_data)
                model = quantize_with_accuracy_control(model, images, data, input_size, metric, max_drop)
            target = Path(export_root) / path.relative_to(work_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            openvino.save_model(model, target, compress_to_fp16=False)
        return self._with_calibration(target)

    def _with_calibration(self, path: Path) -> Path:
        """Save the scores that the thresholds come from next to an exported model, if there are any."""
        post_processor = getattr(self, "post_processor", None)
        if isinstance(post_processor, ConformalPostProcessor):
            calibration = CalibrationFile.from_post_processor(post_processor)
            if calibration is not None:
                calibration.save(path)
        return path

    def _has_fixed_size(self) -> bool:
        """Whether images of any size have the same size after the pre-processor."""
        transform = getattr(self.pre_processor, "transform", None)
        if transform is None:
            return False
        return len({transform(torch.zeros(1, 3, *size)).shape for size in PROBE_SIZES}) == 1

    def _fixed_positions(self, input_size: tuple[int, int] | None) -> AbstractContextManager[None]:
        """Position embeddings of the teacher for the images that it sees in a model for an input size."""
        model = cast("Any", self.model)
        if not model.teacher.has_positions:
            return nullcontext()
        images = torch.zeros(1, 3, *(input_size or PROBE_SIZES[0]), device=self.device)
        if self.pre_processor is not None:
            images = self.pre_processor(images)
        return model.teacher.fixed_size(*model.align(images).shape[-2:])

    def _resize(self, input_size: tuple[int, int] | None) -> PreProcessor | None:
        """What comes before the exported model, which contains the pre-processor.

        Of any size, it takes images that have passed the pre-processor's own Resize as well as those from the camera.
        """
        if input_size is not None:
            return make_resize(input_size)
        resize = find_transform(getattr(self.pre_processor, "transform", None), Resize)
        return None if resize is None else PreProcessor(transform=resize)
