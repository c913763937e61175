# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what INT8 is calibrated with."""

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from anomalib_ddpm_st.detector.openvino import calibration_images, keep_in_float, quantize

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
