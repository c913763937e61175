# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what INT8 is calibrated with."""

import openvino as ov
import torch
from openvino import opset13 as ops

from anomalib_ddpm_st.detector.quantization import calibration_images, keep_in_float


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


def test_distances_to_the_memory_stay_in_float() -> None:
    """Of two convolutions only the one whose smallest channel is taken."""
    image = ops.parameter([1, 4, 8, 8], name="image")

    def convolution(name: str) -> ov.Node:
        weights = ops.constant(torch.rand(6, 4, 1, 1).numpy())
        return ops.convolution(image, weights, [1, 1], [0, 0], [0, 0], [1, 1], name=name)

    nearest = ops.reduce_min(ops.relu(convolution("memory")), ops.constant([1]), keep_dims=True)
    model = ov.Model([nearest, ops.reduce_mean(convolution("head"), ops.constant([1]))], [image])
    assert keep_in_float(model) == ["memory"]
    assert keep_in_float(ov.Model([ops.reduce_min(image, ops.constant([1]))], [image])) == []
