# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from good images, and anomalib's own where there are defects."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor

from anomalib_ddpm_st.detector.post_processing import OneClassPostProcessor, threshold_above
from anomalib_ddpm_st.detector.torch_model import NormalScores

TRAINER: Any = SimpleNamespace(is_global_zero=True)
TRAINING = NormalScores(torch.tensor([0.10, 0.12, 0.14, 0.20]), torch.full((4,), 0.4), torch.full((4,), 0.05))


def make_batch(scores: list[float], labels: list[int], masks: bool = True) -> ImageBatch:
    """Predictions for images whose maps rise from 0 to twice the score."""
    maps = torch.tensor(scores).reshape(-1, 1, 1, 1) * torch.linspace(0, 2, 16).reshape(1, 1, 4, 4)
    label = torch.tensor(labels, dtype=torch.bool)
    mask = (maps[:, 0] > 0.9) & label.reshape(-1, 1, 1)
    return ImageBatch(
        image=torch.zeros(len(scores), 3, 4, 4),
        gt_label=label,
        gt_mask=mask if masks else None,
        pred_score=torch.tensor(scores),
        anomaly_map=maps,
    )


def validate(processor: PostProcessor, batches: list[ImageBatch], reference: object = None) -> PostProcessor:
    """Run a validation."""
    for batch in batches:
        processor.on_validation_batch_end(TRAINER, SimpleNamespace(), batch)
    processor.on_validation_epoch_end(TRAINER, SimpleNamespace(reference=reference))
    return processor


def test_threshold_above() -> None:
    scores = torch.tensor([0.10, 0.12, 0.14, 0.16, 0.18])
    assert threshold_above(scores) == pytest.approx(0.14 + 5 * 1.4826 * 0.02)
    outlier = torch.tensor([0.10, 0.12, 0.14, 0.16, 0.40])
    assert threshold_above(outlier) == pytest.approx(0.40), "no good image counts as defective, and no margin is added"
    assert threshold_above(torch.tensor([0.2, 0.9])) == pytest.approx(0.95), "never out of reach"
    assert threshold_above(torch.tensor([0.3])) == pytest.approx(0.3)


@pytest.mark.parametrize("masks", [True, False])
def test_defects_are_left_to_anomalib(masks: bool) -> None:
    """The reference plays no part, and a validation without defects before leaves no trace."""
    batches = [make_batch([0.1, 0.2], [0, 0], masks), make_batch([0.3, 0.8, 0.6], [0, 1, 1], masks)]
    expected = validate(PostProcessor(), batches).state_dict()
    processor = OneClassPostProcessor()
    reference = SimpleNamespace(normal_scores=TRAINING, num_known=4)
    if masks:
        validate(processor, batches[:1], reference)
    state = validate(processor, batches, reference).state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name].nan_to_num(-1), value.nan_to_num(-1)), name
    assert not processor.from_good_images


def test_good_images_alone() -> None:
    processor = OneClassPostProcessor()
    reference = SimpleNamespace(normal_scores=TRAINING, num_known=4)
    validate(processor, [make_batch([0.11, 0.13], [0, 0]), make_batch([0.22], [0])], reference)
    scores = torch.cat([TRAINING.images, torch.tensor([0.11, 0.13, 0.22])])
    assert processor.image_threshold == pytest.approx(threshold_above(scores))
    highest = torch.cat([TRAINING.highest, torch.tensor([0.22, 0.26, 0.44])])
    assert processor.pixel_threshold == pytest.approx(threshold_above(highest))
    threshold = processor.image_threshold.item()
    raw = torch.tensor([0.10, threshold, 2 * threshold - 0.10, threshold + 1e-3])
    result = processor(InferenceBatch(pred_score=raw, anomaly_map=raw.reshape(-1, 1, 1, 1)))
    assert result.pred_score[:3].tolist() == pytest.approx([0, 0.5, 1])
    assert result.pred_label.tolist()[2:] == [True, True]
    assert not result.pred_label[0]
    assert processor.pixel_min == 0
    assert processor.pixel_max == pytest.approx(2 * processor.pixel_threshold)


def test_no_validation_set() -> None:
    processor = OneClassPostProcessor()
    processor.use_good_images(TRAINING, 4, None)
    assert processor.image_threshold == pytest.approx(threshold_above(TRAINING.images))
    assert processor.from_good_images
    processor = OneClassPostProcessor(enable_thresholding=False)
    processor.use_good_images(TRAINING, 4, None)
    assert processor.image_threshold.isnan()
    assert not processor.from_good_images


def test_validation_alone_keeps_the_thresholds_of_training() -> None:
    processor = OneClassPostProcessor()
    processor.use_good_images(TRAINING, 4, None)
    before = {name: value.clone() for name, value in processor.state_dict().items()}
    validate(processor, [make_batch([0.5, 0.6], [0, 0])])
    assert {name: value.item() for name, value in processor.state_dict().items()} == before
    fresh = validate(OneClassPostProcessor(), [make_batch([0.5, 0.6], [0, 0])])
    assert fresh.image_threshold > 0.6


def test_checkpoints_hold_where_thresholds_come_from() -> None:
    processor = OneClassPostProcessor(image_sensitivity=0.4)
    processor.use_good_images(TRAINING, 4, None)
    config = processor.checkpoint_config()
    assert {type(value) for value in config.values()} == {bool, float}, "plain data"
    other = OneClassPostProcessor()
    other.load_checkpoint_config(config)
    assert other.from_good_images
    assert other.image_sensitivity == pytest.approx(0.4)
    other.load_checkpoint_config({"image_sensitivity": 0.3})  # of anomalib's own post-processor
    assert not other.from_good_images


def test_one_line_warns(caplog: pytest.LogCaptureFixture) -> None:
    processor = OneClassPostProcessor()
    processor.on_fit_start(TRAINER, SimpleNamespace())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reference = SimpleNamespace(normal_scores=TRAINING, num_known=4)
            validate(processor, [make_batch([0.11, 0.13], [0, 0])], reference)
        assert caplog.messages == []
        processor.on_fit_end(TRAINER, SimpleNamespace())
    (message,) = caplog.messages
    assert "\n" not in message
    assert "the highest score of 6 good images, 2 of them not trained on, or 5 standard deviations above" in message
    caplog.clear()
    validate(processor, [make_batch([0.1, 0.8], [0, 1])])
    processor.on_fit_end(TRAINER, SimpleNamespace())
    assert caplog.messages == []
