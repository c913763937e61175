# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the default pre-processor and evaluator."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC, F1Score
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import CenterCrop, Compose, Grayscale, Normalize, Pad, Resize

from anomalib_ddpm_st.detector.components import (
    OneClassEvaluator,
    crops_before_resize,
    make_evaluator,
    make_pre_processor,
    refuse_normalize,
)


def test_default_pre_processor() -> None:
    """It resizes like the exported model, without antialiasing, and does not normalise."""
    transform = make_pre_processor().transform
    assert [type(step) for step in transform.transforms] == [Resize]
    assert not transform.transforms[0].antialias
    assert transform(torch.rand(3, 40, 50)).shape == (3, 256, 256)


def test_image_size_and_centre_crop() -> None:
    """Height comes first."""
    transform = make_pre_processor((40, 60), center_crop_size=(32, 48)).transform
    assert [type(step) for step in transform.transforms] == [Resize, CenterCrop]
    assert transform(torch.rand(3, 100, 90)).shape == (3, 32, 48)
    assert not transform.transforms[0].antialias


@pytest.mark.parametrize(
    "transform",
    [
        Compose([Resize((64, 64), antialias=False), Normalize([0.5] * 3, [0.5] * 3)]),
        Compose([Compose([Resize((64, 64)), Normalize([0.5] * 3, [0.5] * 3)])]),
        Normalize([0.5] * 3, [0.5] * 3),
    ],
)
def test_refuses_normalize(transform: torch.nn.Module) -> None:
    """However deeply it is nested."""
    with pytest.raises(ValueError, match="remove Normalize"):
        refuse_normalize(PreProcessor(transform=transform))


def test_accepts_other_pre_processors() -> None:
    """One without Normalize, or none."""
    refuse_normalize(PreProcessor(transform=Resize((64, 96), antialias=False)))
    refuse_normalize(None)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (None, False),
        (CenterCrop(8), False),
        (Compose([Resize(8), CenterCrop(4)]), False),
        (Compose([Grayscale(3), Resize(8), Pad(2)]), False),
        (Compose([CenterCrop(8), Resize(4)]), True),
        (Compose([Compose([Pad(2)]), Resize(8)]), True),
    ],
)
def test_crops_before_resize(transform: torch.nn.Module | None, expected: bool) -> None:
    """These differ between training and the exported model."""
    assert crops_before_resize(transform) == expected


def test_evaluator() -> None:
    """AUROC of images and pixels in validation; also AUPRO, AUPR and F1 scores in test."""
    evaluator = make_evaluator()
    assert [metric.name for metric in evaluator.val_metrics] == ["image_AUROC", "pixel_AUROC"]
    expected = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO", "pixel_AUPR", "image_F1Score", "pixel_F1Score"]
    assert [metric.name for metric in evaluator.test_metrics] == expected


def run_test(
    evaluator: OneClassEvaluator, labels: list[int], predicted: list[int], thresholds: bool = True
) -> MagicMock:
    """Run a test of images with these labels, and return what was logged."""
    trainer: Any = SimpleNamespace(barebones=False)
    evaluator.log = MagicMock()
    for label, prediction in zip(labels, predicted, strict=True):
        batch = ImageBatch(
            image=torch.zeros(1, 3, 4, 4),
            gt_label=torch.tensor([label], dtype=torch.bool),
            pred_score=torch.tensor([0.2 + 0.6 * prediction]),
            pred_label=torch.tensor([prediction], dtype=torch.bool) if thresholds else None,
        )
        evaluator.on_test_batch_end(trainer, MagicMock(), None, batch, 0)
    evaluator.on_test_epoch_end(trainer, MagicMock())
    return evaluator.log


def test_good_images_give_their_false_positive_rate() -> None:
    """No metric that would be 0 without defects; the next test with defects gives all, of its own images."""
    auroc = AUROC(fields=["pred_score", "gt_label"], prefix="image_")
    evaluator = OneClassEvaluator(test_metrics=[auroc, F1Score(fields=["pred_label", "gt_label"], prefix="image_")])
    log = run_test(evaluator, [0, 0, 0, 0], [0, 1, 0, 0])
    log.assert_called_once_with("image_FPR", torch.tensor(0.25))
    log = run_test(evaluator, [0, 0, 1], [0, 0, 1])
    assert [call.args[0] for call in log.call_args_list] == ["image_AUROC", "image_F1Score"]
    assert auroc.compute() == 1
    auroc.reset()
    log = run_test(evaluator, [0, 0], [0, 0])
    log.assert_called_once_with("image_FPR", torch.tensor(0.0))


def test_validation_of_good_images_gives_no_metric() -> None:
    trainer: Any = SimpleNamespace(barebones=False)
    evaluator = OneClassEvaluator(val_metrics=[AUROC(fields=["pred_score", "gt_label"], prefix="image_")])
    for labels, logged in (([0, 0], 0), ([0, 1], 1), ([0, 0], 1)):
        batch = ImageBatch(
            image=torch.zeros(2, 3, 4, 4),
            gt_label=torch.tensor(labels, dtype=torch.bool),
            pred_score=torch.tensor([0.1, 0.9]),
        )
        evaluator.log = getattr(evaluator, "log", None) or MagicMock()
        evaluator.on_validation_batch_end(trainer, MagicMock(), None, batch, 0)
        evaluator.on_validation_epoch_end(trainer, MagicMock())
        assert evaluator.log.call_count == logged
