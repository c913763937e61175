# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""INT8 quantisation of exported models, calibrated with the training images of the detector."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataset, ImageBatch
from torch.nn import functional

from anomalib_ddpm_st.synthesis import DefectConfig, DiffusionAnomalyGenerator

if TYPE_CHECKING:
    import openvino as ov
    from torchmetrics import Metric

MAX_CALIBRATION_IMAGES = 300
SEED = 0
MAP_RANK = 4
WITHOUT_INPUT = {"Constant", "Parameter", "Result"}


def calibration_images(images: Sequence[torch.Tensor] | torch.Tensor) -> Iterator[torch.Tensor]:
    """Normal images, every second one with a defect.

    Without defects the ranges of the segmentation would be calibrated too narrow.

    Args:
        images (Sequence[torch.Tensor] | torch.Tensor): Normal images, ``uint8`` of shape ``(3, H, W)``.

    Yields:
        torch.Tensor: Images of shape ``(1, 3, H, W)`` with values in [0, 1], the same in every call.
    """
    random = torch.Generator().manual_seed(SEED)
    defects = DiffusionAnomalyGenerator(defects=DefectConfig("self_texture", probability=1.0), generator=random)
    for index, image in enumerate(images):
        values = image[None].float() / 255
        yield defects(values)[0] if index % 2 else values


def keep_in_float(model: "ov.Model") -> list[str]:
    """Names of the operations that lose too much in INT8 and cost almost nothing in FP32.

    These are all operations with one output channel: lengths of features, distances, logits and the maps up to the
    anomaly map, in which 256 steps would give many pixels the same rank; and what computes the pose of a part, which
    would be off by pixels.

    Args:
        model (ov.Model): Exported model.

    Returns:
        list[str]: Names.
    """
    kept = set()
    for node in model.get_ordered_ops():
        shape = node.get_output_partial_shape(0)
        if shape.rank.is_static and len(shape) == MAP_RANK and shape[1].is_static and shape[1].get_length() == 1:
            kept.add(node)
        if node.get_type_name() == "GridSample":
            kept |= _origins(node.input_value(1).get_node())
    return sorted(node.get_friendly_name() for node in kept if node.get_type_name() not in WITHOUT_INPUT)


def _origins(node: "ov.Node") -> set["ov.Node"]:
    """An operation and all that its result is computed from."""
    found, waiting = {node}, [node]
    while waiting:
        for value in waiting.pop().input_values():
            if value.get_node() not in found:
                found.add(value.get_node())
                waiting.append(value.get_node())
    return found


def _calibration(model: "ov.Model", images: Sequence[torch.Tensor] | torch.Tensor) -> dict[str, Any]:
    """Arguments common to both ways of quantising."""
    import nncf  # an extra, as in anomalib

    return {
        "calibration_dataset": nncf.Dataset([image.numpy() for image in calibration_images(images)]),
        "subset_size": len(images),
        "preset": nncf.QuantizationPreset.MIXED,
        "ignored_scope": nncf.IgnoredScope(names=keep_in_float(model), validate=False),
    }


def _whole_range() -> Any:  # noqa: ANN401
    """Calibrate activations to their smallest and largest value over all images.

    The default, the mean of the ranges of the images, cuts off values that only bright images have.
    """
    import nncf  # an extra, as in anomalib
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)


def quantize(model: "ov.Model", images: Sequence[torch.Tensor] | torch.Tensor) -> "ov.Model":
    """Quantise an exported model to INT8.

    Args:
        model (ov.Model): Exported model in FP32.
        images (Sequence[torch.Tensor] | torch.Tensor): Normal images for calibration, ``uint8`` of shape ``(3, H, W)``.

    Returns:
        ov.Model: Quantised model.
    """
    import nncf  # an extra, as in anomalib

    return nncf.quantize(model, **_calibration(model, images), advanced_parameters=_whole_range())


def quantize_with_accuracy_control(
    model: "ov.Model",
    images: Sequence[torch.Tensor] | torch.Tensor,
    validation_data: AnomalibDataset,
    size: tuple[int, int] | None,
    metric: "Metric",
    max_drop: float,
) -> "ov.Model":
    """Quantise an exported model to INT8 as far as a metric allows.

    Args:
        model (ov.Model): Exported model in FP32.
        images (Sequence[torch.Tensor] | torch.Tensor): Normal images for calibration, ``uint8`` of shape ``(3, H, W)``.
        validation_data (AnomalibDataset): Images with labels, one at a time, that the metric is measured on.
        size (tuple[int, int] | None): Height and width that images are resized to first, ``None`` if the model takes
            any.
        metric (Metric): Metric of anomalib; the higher the better.
        max_drop (float): How much lower it may be afterwards.

    Returns:
        ov.Model: Model with as many quantised operations as the metric allows.
    """
    import nncf  # an extra, as in anomalib

    def validate(compiled: Callable[[Any], Any], items: Iterable[Any]) -> tuple[float, None]:
        metric.reset()
        for item in items:
            metric.update(_prediction(compiled, item, size))
        return float(metric.compute()), None

    return nncf.quantize_with_accuracy_control(
        model,
        validation_dataset=nncf.Dataset([validation_data[index] for index in range(len(validation_data))]),
        validation_fn=validate,
        max_drop=max_drop,
        advanced_quantization_parameters=_whole_range(),
        **_calibration(model, images),
    )


def _prediction(compiled: Callable[[Any], Any], item: Any, size: tuple[int, int] | None) -> ImageBatch:  # noqa: ANN401
    """Batch of one image of a dataset with the prediction of a compiled model."""
    image = item.image[None].float()
    if size is not None:
        image = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
    output = compiled(image.numpy())
    anomaly_map = torch.from_numpy(output["anomaly_map"])
    mask = item.gt_mask
    if mask is not None:
        mask = functional.interpolate(mask.reshape(1, 1, *mask.shape[-2:]).float(), size=anomaly_map.shape[-2:])[0] > 0
    return ImageBatch(
        image=image,
        pred_score=torch.from_numpy(output["pred_score"]).reshape(1),
        pred_label=torch.from_numpy(output["pred_label"]).reshape(1),
        anomaly_map=anomaly_map,
        pred_mask=torch.from_numpy(output["pred_mask"]),
        gt_label=item.gt_label.reshape(1),
        gt_mask=mask,
    )
