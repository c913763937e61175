# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from good images, what they promise, and anomalib's own where there are defects."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_ddpm_st.detector.conformal import conformal_threshold
from anomalib_ddpm_st.detector.post_processing import CALIBRATION, ConformalPostProcessor, threshold_above
from anomalib_ddpm_st.detector.torch_model import NormalScores

TRAINER: Any = SimpleNamespace(is_global_zero=True, state=SimpleNamespace(fn=TrainerFn.VALIDATING))
FITTING: Any = SimpleNamespace(is_global_zero=True, state=SimpleNamespace(fn=TrainerFn.FITTING))
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


def validate(
    processor: PostProcessor,
    batches: list[ImageBatch],
    reference: object = None,
    trainer: Any = TRAINER,  # noqa: ANN401
) -> PostProcessor:
    """Run a validation."""
    for batch in batches:
        processor.on_validation_batch_end(trainer, SimpleNamespace(), batch)
    processor.on_validation_epoch_end(trainer, SimpleNamespace(reference=reference))
    return processor


def test_threshold_above() -> None:
    scores = torch.tensor([0.10, 0.12, 0.14, 0.16, 0.18])
    assert threshold_above(scores) == pytest.approx(0.14 + 5 * 1.4826 * 0.02)
    outlier = torch.tensor([0.10, 0.12, 0.14, 0.16, 0.40])
    assert threshold_above(outlier) == pytest.approx(0.40), "no good image counts as defective, and no margin is added"
    assert threshold_above(torch.tensor([0.2, 0.9])) == pytest.approx(0.95), "never out of reach"
    assert threshold_above(torch.tensor([0.3])) == pytest.approx(0.3)
    assert threshold_above(torch.tensor([2.0, 3.0])) == pytest.approx(4.5), "scores without an upper bound"


@pytest.mark.parametrize("masks", [True, False])
def test_defects_are_left_to_anomalib(masks: bool) -> None:
    """The reference plays no part, and a validation without defects before leaves no trace."""
    batches = [make_batch([0.1, 0.2], [0, 0], masks), make_batch([0.3, 0.8, 0.6], [0, 1, 1], masks)]
    expected = validate(PostProcessor(), batches).state_dict()
    processor = ConformalPostProcessor()
    reference = SimpleNamespace(normal_scores=TRAINING, num_known=4)
    if masks:
        validate(processor, batches[:1], reference)
    state = validate(processor, batches, reference).state_dict()
    assert state.keys() - set(CALIBRATION) == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name].nan_to_num(-1), value.nan_to_num(-1)), name
    assert not processor.from_good_images


def test_good_images_alone() -> None:
    processor = ConformalPostProcessor()
    reference = SimpleNamespace(normal_scores=TRAINING, num_known=4)
    validate(processor, [make_batch([0.11, 0.13], [0, 0]), make_batch([0.22], [0])], reference)
    scores = torch.cat([TRAINING.images, torch.tensor([0.11, 0.13, 0.22])])
    assert processor.image_threshold == pytest.approx(threshold_above(scores))
    highest = torch.cat([TRAINING.highest, torch.tensor([0.22, 0.26, 0.44])])
    assert processor.pixel_threshold == pytest.approx(threshold_above(highest))
    threshold = processor.image_threshold.item()
    raw = torch.tensor([0.0, threshold, 3 * threshold, threshold + 1e-3])
    result = processor(InferenceBatch(pred_score=raw, anomaly_map=raw.reshape(-1, 1, 1, 1)))
    assert result.pred_score[:3].tolist() == pytest.approx([0, 0.5, 0.75])
    assert result.pred_label.tolist() == [False, False, True, True]
    torch.testing.assert_close(threshold * result.pred_score / (1 - result.pred_score), raw)


def test_enough_good_images_keep_the_rate() -> None:
    """The training images and the margin play no part then, and a lower rate moves the threshold up."""
    held_out = torch.rand(99, generator=torch.Generator().manual_seed(0)) * 0.4
    batch = make_batch(held_out.tolist(), [0] * 99)
    reference = SimpleNamespace(normal_scores=TRAINING, num_known=4)
    thresholds = []
    for rate, rank in ((0.01, 99), (0.05, 95), (0.2, 80)):
        processor = validate(ConformalPostProcessor(false_alarm_rate=rate), [batch], reference)
        assert processor.image_threshold == held_out.sort().values[rank - 1]
        assert processor.pixel_threshold == pytest.approx(2 * held_out.sort().values[rank - 1])
        thresholds.append(processor.image_threshold)
    assert thresholds == sorted(thresholds, reverse=True)
    few = validate(ConformalPostProcessor(false_alarm_rate=0.009), [batch], reference)
    assert few.image_threshold > thresholds[0], "too few images for this rate: a margin"


def test_defects_can_be_left_out() -> None:
    scores = [0.1, 0.2, 0.3, 0.8, 0.15]
    batch = make_batch(scores, [0, 0, 0, 1, 1])
    processor = validate(ConformalPostProcessor(use_defects=False, false_alarm_rate=0.25), [batch])
    assert processor.from_good_images
    assert processor.calibration_scores.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert processor.image_threshold == conformal_threshold(torch.tensor([0.1, 0.2, 0.3]), 0.25)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(val_split_mode="same_as_test"))
    with pytest.raises(ValueError, match=r"test images would set the threshold: set val_split_mode to from_train\.$"):
        processor.on_fit_start(trainer, SimpleNamespace())
    ConformalPostProcessor().on_fit_start(trainer, SimpleNamespace())
    trainer.datamodule.val_split_mode = "from_train"
    processor.on_fit_start(trainer, SimpleNamespace())


def test_scores_that_can_be_negative() -> None:
    """They are counted from the lowest good score: labels stay what they are, and 0.5 is the threshold."""
    maps = torch.tensor([-1.0, -0.4, -0.2]).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    scores = torch.tensor([-1.0, -0.4, -0.2])
    batch = ImageBatch(
        image=torch.zeros(3, 3, 2, 2), gt_label=torch.zeros(3).bool(), pred_score=scores, anomaly_map=maps
    )
    processor = validate(ConformalPostProcessor(false_alarm_rate=0.25), [batch])
    assert processor.image_threshold == pytest.approx(-0.2)
    raw = torch.tensor([-2.0, -1.0, -0.3, -0.2, -0.1, 5.0])
    result = processor(InferenceBatch(pred_score=raw, anomaly_map=raw.reshape(-1, 1, 1, 1)))
    assert result.pred_label.tolist() == [False, False, False, False, True, True]
    assert result.pred_score[3] == pytest.approx(0.5)
    assert (result.pred_score.diff() >= 0).all()


def test_models_without_image_scores() -> None:
    """The highest value of the map counts then, as in anomalib."""
    batch = make_batch([0.1, 0.3], [0, 0])
    batch.pred_score = None
    processor = ConformalPostProcessor(false_alarm_rate=0.34)
    processor.on_validation_batch_end(TRAINER, SimpleNamespace(), batch)
    processor.on_validation_epoch_end(TRAINER, SimpleNamespace())
    assert processor.image_threshold == processor.pixel_threshold == pytest.approx(0.6)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5])
def test_rate_out_of_range(rate: float) -> None:
    with pytest.raises(
        ValueError, match=r"^false_alarm_rate must be above 0 and below 1, but is .*: 0\.01 means 1 %\.$"
    ):
        ConformalPostProcessor(false_alarm_rate=rate)


def test_p_values() -> None:
    """Of scores as they come out of the post-processor."""
    processor = validate(ConformalPostProcessor(false_alarm_rate=0.25), [make_batch([0.1, 0.2, 0.4], [0, 0, 0])])
    raw = torch.tensor([[0.05, 0.1], [0.3, 0.9]])
    assert processor.p_values(raw / (raw + processor.image_threshold)).flatten().tolist() == [1, 1, 0.5, 0.25]
    plain = validate(ConformalPostProcessor(enable_normalization=False), [make_batch([0.1, 0.2, 0.4], [0, 0, 0])])
    assert plain.p_values(raw).flatten().tolist() == [1, 1, 0.5, 0.25]
    with pytest.raises(RuntimeError, match="no calibration scores"):
        ConformalPostProcessor().p_values(raw)


def test_weights_hold_the_calibration() -> None:
    """Of any length; weights of anomalib's own post-processor have none."""
    processor = validate(ConformalPostProcessor(), [make_batch([0.1, 0.2, 0.4], [0, 0, 0])])
    other = validate(ConformalPostProcessor(), [make_batch([0.1, 0.2], [0, 0])])
    other.load_state_dict(processor.state_dict())
    for name, value in processor.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    other.load_state_dict(PostProcessor().state_dict())
    assert not len(other.calibration_scores)


def test_no_validation_set() -> None:
    processor = ConformalPostProcessor()
    processor.use_good_images(TRAINING, 4, None)
    assert processor.image_threshold == pytest.approx(threshold_above(TRAINING.images))
    assert processor.from_good_images
    processor = ConformalPostProcessor(enable_thresholding=False)
    processor.use_good_images(TRAINING, 4, None)
    assert processor.image_threshold.isnan()
    assert not processor.from_good_images


def test_validation_alone_keeps_the_thresholds_of_training() -> None:
    """Unless there are enough good images for the rate."""
    processor = ConformalPostProcessor()
    processor.use_good_images(TRAINING, 4, None)
    before = {name: value.clone() for name, value in processor.state_dict().items()}
    few = [make_batch([0.5, 0.6], [0, 0])]
    validate(processor, few)
    for name, value in processor.state_dict().items():
        assert torch.equal(value, before[name]), name
    validate(processor, [make_batch([0.5, 0.6] * 50, [0] * 100)])
    assert processor.image_threshold == pytest.approx(0.6)
    fresh = validate(ConformalPostProcessor(), few)
    assert fresh.image_threshold > 0.6
    validate(fresh, [make_batch([0.1, 0.2], [0, 0])], trainer=FITTING)
    assert fresh.image_threshold < 0.6, "the weights have changed"


def test_checkpoints_hold_where_thresholds_come_from() -> None:
    processor = ConformalPostProcessor(image_sensitivity=0.4)
    processor.use_good_images(TRAINING, 4, None)
    config = processor.checkpoint_config()
    assert {type(value) for value in config.values()} == {bool, float}, "plain data"
    assert config["false_alarm_rate"] == pytest.approx(0.01)
    other = ConformalPostProcessor()
    other.load_checkpoint_config(config)
    assert other.from_good_images
    assert other.image_sensitivity == pytest.approx(0.4)
    other.load_checkpoint_config({"image_sensitivity": 0.3})  # of anomalib's own post-processor
    assert not other.from_good_images


def test_one_line_warns(caplog: pytest.LogCaptureFixture) -> None:
    processor = ConformalPostProcessor()
    processor.on_fit_start(TRAINER, SimpleNamespace())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reference = SimpleNamespace(normal_scores=TRAINING, num_known=4)
            validate(processor, [make_batch([0.11, 0.13], [0, 0])], reference)
        assert caplog.messages == []
        processor.on_fit_end(TRAINER, SimpleNamespace())
    (message,) = caplog.messages
    assert "\n" not in message
    assert message.startswith("A false-alarm rate of 1 % needs 99 good images that were not trained on")
    assert "but there are 2: with these, on average at most 33 % of good parts count as defective" in message
    caplog.clear()
    validate(processor, [make_batch([0.1, 0.8], [0, 1])])
    processor.on_fit_end(TRAINER, SimpleNamespace())
    assert caplog.messages == []


def test_one_line_promises(caplog: pytest.LogCaptureFixture) -> None:
    processor = validate(ConformalPostProcessor(), [make_batch([0.1, 0.2] * 50, [0] * 100)])
    with caplog.at_level(logging.INFO, "anomalib_ddpm_st"):
        processor.on_fit_end(TRAINER, SimpleNamespace())
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage() == (
        "The threshold comes from 100 good images that were not trained on: on average at most 0.99 % of good parts "
        "count as defective, and with 95 % confidence at most 3 %, as long as new parts are like them."
    )
    single = validate(ConformalPostProcessor(), [make_batch([0.1], [0])])
    assert "but there is 1: with it," in single.describe()
    none = ConformalPostProcessor()
    assert not none.describe()
    none.use_good_images(TRAINING, 4, None)
    assert none.describe().endswith(
        "there are none: the threshold is that of 4 training images. Check it on new parts."
    )
