# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what INT8 is calibrated with."""

import numpy as np
import openvino as ov
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem
from openvino import opset13 as ops
from torchmetrics import Metric

from anomalib_ddpm_st.detector.openvino import (
    calibration_images,
    keep_in_float,
    quantize,
    quantize_with_accuracy_control,
)

CORE = ov.Core()


def test_every_second_image_has_a_defect(normal_images: torch.Tensor) -> None:
    """Values in [0, 1], one image at a time, the same in every call."""
    images = normal_images.repeat(2, 1, 2, 2)
    batches = list(calibration_images(images))
    assert [batch.shape for batch in batches] == [(1, 3, 64, 64)] * 8
    assert all(batch.min() >= 0 and batch.max() <= 1 for batch in batches)
    changed = [not torch.equal(batch, image[None].float() / 255) for batch, image in zip(batches, images, strict=True)]
    assert not any(changed[::2])
    assert sum(changed[1::2]) >= 3
    assert all(map(torch.equal, batches, calibration_images(images)))


@pytest.mark.parametrize("shape", [[1, 4, 8, 8], [-1, 4, -1, -1]])
def test_what_has_one_channel_stays_in_float(shape: list[int]) -> None:
    """Of two convolutions only the one that gives a map, and what becomes of it; also where sizes are unknown."""
    image = ops.parameter(ov.PartialShape(shape), name="image")

    def convolution(channels: int, name: str) -> ov.Node:
        weights = ops.constant(torch.rand(channels, 4, 1, 1).numpy())
        return ops.convolution(image, weights, [1, 1], [0, 0], [0, 0], [1, 1], name=name)

    features, logits = convolution(6, "features"), convolution(1, "logits")
    nearest = ops.reduce_min(features, ops.constant([1]), keep_dims=True, name="nearest")
    anomaly_map = ops.add(ops.sigmoid(logits, name="sigmoid"), nearest, name="anomaly_map")
    score = ops.reduce_max(anomaly_map, ops.constant([1, 2, 3]), name="score")
    model = ov.Model([anomaly_map, score], [image])
    assert sorted(keep_in_float(model)) == ["anomaly_map", "logits", "nearest", "sigmoid"]


def test_what_tells_the_pose_stays_in_float() -> None:
    """All operations that lead to where an image is sampled, and not the features of what was sampled."""
    image = ops.parameter([1, 3, 8, 8], name="image")
    moments = ops.reduce_mean(
        ops.abs(image, name="difference"), ops.constant([1, 2, 3]), keep_dims=True, name="moments"
    )
    grid = ops.add(ops.constant(np.zeros((1, 8, 8, 2), np.float32)), moments, name="grid")
    attributes = {"align_corners": False, "mode": "bilinear", "padding_mode": "border"}
    turned = ops.grid_sample(ops.negative(image, name="pixels"), grid, attributes, name="turned")
    weights = ops.constant(torch.rand(6, 3, 1, 1).numpy())
    features = ops.convolution(turned, weights, [1, 1], [0, 0], [0, 0], [1, 1], name="features")
    assert sorted(keep_in_float(ov.Model([features], [image]))) == ["difference", "grid", "moments"]


def test_what_only_bright_images_have_is_not_cut_off() -> None:
    """One image in twenty is bright: its values come out as in 32 bit, not as those of a darker one."""
    parameter = ops.parameter([1, 3, 32, 32], ov.Type.f32, name="image")
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    convolution = ops.convolution(parameter, ops.constant(weights), [1, 1], [1, 1], [1, 1], [1, 1])
    model = ov.Model([convolution], [parameter])
    images = torch.randint(0, 60, (20, 3, 32, 32), dtype=torch.uint8)
    images[10] += 190
    bright = images[10:11].numpy() / np.float32(255)
    quantized = quantize(model, images)
    assert "FakeQuantize" in {node.get_type_name() for node in quantized.get_ops()}
    expected, result = (
        CORE.compile_model(each, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([bright])[0] for each in (model, quantized)
    )
    assert np.abs(result - expected).max() < 0.05 * np.abs(expected).max()


class Exactness(Metric):
    """How close the anomaly maps are to those in FP32, which stand in the masks of the images: 1 for equal ones."""

    def __init__(self, expected: torch.Tensor) -> None:
        super().__init__()
        self.expected = expected
        self.shapes: set[tuple[int, ...]] = set()
        self.add_state("error", torch.tensor(0.0))

    def update(self, batch: ImageBatch) -> None:
        """Compare the map of one image."""
        assert batch.pred_score.shape == batch.pred_label.shape == batch.gt_label.shape == (1,)
        assert batch.gt_mask.shape == batch.pred_mask.shape[-3:] == batch.anomaly_map.shape[-3:]
        self.shapes.add(tuple(batch.image.shape))
        self.error += (batch.anomaly_map - self.expected[int(batch.gt_label)]).abs().max()

    def compute(self) -> torch.Tensor:
        """One minus the sum of the largest errors."""
        return 1 - self.error


@pytest.mark.parametrize(("max_drop", "quantized"), [(1.0, True), (0.0, False)])
@pytest.mark.parametrize("size", [None, (16, 16)])
def test_accuracy_control(max_drop: float, quantized: bool, size: tuple[int, int] | None) -> None:
    """Operations stay in INT8 as long as the metric allows; images are resized to a fixed input size."""
    side = size[0] if size else 24
    image = ops.parameter([1, 3, side, side], ov.Type.f32, name="image")
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    features = ops.relu(ops.convolution(image, ops.constant(weights), [1, 1], [1, 1], [1, 1], [1, 1]))
    anomaly_map = ops.reduce_max(features, ops.constant([1]), keep_dims=True)
    score = ops.reduce_max(anomaly_map, ops.constant([1, 2, 3]))
    results = {
        "anomaly_map": anomaly_map,
        "pred_score": score,
        "pred_label": ops.greater(score, ops.constant(np.float32(5))),
        "pred_mask": ops.greater(anomaly_map, ops.constant(np.float32(5))),
    }
    for name, node in results.items():
        node.output(0).get_tensor().set_names({name})
    model = ov.Model(list(results.values()), [image])
    data = [
        ImageItem(image=torch.rand(3, 24, 24), gt_label=torch.tensor(label), gt_mask=torch.zeros(24, 24).bool())
        for label in (0, 1)
    ]
    compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    resized = [torch.nn.functional.interpolate(item.image[None], size=(side, side), mode="bilinear") for item in data]
    metric = Exactness(torch.stack([torch.from_numpy(compiled(one.numpy())["anomaly_map"]) for one in resized]))
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    result = quantize_with_accuracy_control(model, images, data, size, metric, max_drop)
    assert ("FakeQuantize" in {node.get_type_name() for node in result.get_ops()}) == quantized
    assert metric.shapes == {(1, 3, side, side)}
