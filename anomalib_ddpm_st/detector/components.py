# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Default pre-processor and evaluator of DdpmSt."""

from typing import Any

import torch
from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Score
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torchmetrics import MeanMetric, SumMetric
from torchvision.transforms.v2 import (
    CenterCrop,
    Compose,
    FiveCrop,
    Normalize,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Resize,
)

from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE
from anomalib_ddpm_st.core.transforms import find_transform, flatten_transform

# Transforms that do not commute with Resize.
FIELD_OF_VIEW = (CenterCrop, FiveCrop, Pad, RandomCrop, RandomResizedCrop)


def make_pre_processor(
    image_size: tuple[int, int] | None = None,
    center_crop_size: tuple[int, int] | None = None,
) -> PreProcessor:
    """Make the default pre-processor, which resizes like the exported model and does not normalise.

    Args:
        image_size (tuple[int, int] | None): Height and width in pixels. Defaults to 256 x 256.
        center_crop_size (tuple[int, int] | None): Height and width to crop to. Defaults to ``None``, no crop.

    Returns:
        PreProcessor: Pre-processor.
    """
    transforms: list[nn.Module] = [Resize(image_size or DEFAULT_IMAGE_SIZE, antialias=False)]
    if center_crop_size is not None:
        transforms.append(CenterCrop(center_crop_size))
    return PreProcessor(transform=Compose(transforms))


def refuse_normalize(pre_processor: nn.Module | None) -> None:
    """Refuse a pre-processor that normalises: normalised twice, training would fail silently.

    Args:
        pre_processor (nn.Module | None): Pre-processor.

    Raises:
        ValueError: If it normalises.
    """
    if find_transform(getattr(pre_processor, "transform", None), Normalize) is not None:
        msg = (
            "DdpmSt normalises images itself, by the statistics of its backbone: remove Normalize from the transform "
            "of the pre-processor."
        )
        raise ValueError(msg)


def crops_before_resize(transform: nn.Module | None) -> bool:
    """Whether a transform changes the field of view of images before it resizes them.

    anomalib's datamodules resize before the transform, so that it then crops or pads another image than in the exported
    model.

    Args:
        transform (nn.Module | None): Transform of a pre-processor.

    Returns:
        bool: Whether a crop or padding comes before Resize.
    """
    steps = [step for step in flatten_transform(transform) if isinstance(step, (Resize, *FIELD_OF_VIEW))]
    return any(isinstance(step, Resize) for step in steps[1:]) and not isinstance(steps[0], Resize)


class OneClassEvaluator(Evaluator):
    """anomalib's evaluator, which leaves out the metrics of a set without defects.

    AUROC, AUPRO, AUPR and F1 score need good and defective images; of good ones alone they would be 0. A test set of
    good images gives their false positive rate, ``image_FPR``: the fraction of them that count as defective.

    Args:
        **kwargs (Any): Arguments of ``anomalib.metrics.Evaluator``.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self._num_defective = SumMetric()
        self._false_positives = MeanMetric()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT | None,
        batch: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Update validation metrics and count defective images."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, *args, **kwargs)
        self._num_defective.update(batch.gt_label.sum())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log validation metrics, if there were defects."""
        if self._has_defects(self.val_metrics):
            super().on_validation_epoch_end(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT | None,
        batch: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Update test metrics and count defective images."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, *args, **kwargs)
        self._num_defective.update(batch.gt_label.sum())
        if batch.pred_label is not None and batch.pred_label.dtype == torch.bool:
            self._false_positives.update(batch.pred_label[~batch.gt_label.bool()].float())

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log test metrics, or the false positive rate if there were no defects."""
        if self._has_defects(self.test_metrics):
            super().on_test_epoch_end(trainer, pl_module)
        elif self._false_positives.update_called:
            self.log("image_FPR", self._false_positives.compute())  # type: ignore[operator]
        self._false_positives.reset()

    def _has_defects(self, metrics: nn.ModuleList) -> bool:
        """Whether there were defects since the last call; otherwise the metrics forget what they have seen."""
        found = bool(self._num_defective.compute() > 0) if self._num_defective.update_called else False
        self._num_defective.reset()
        if not found:
            for metric in metrics:
                metric.reset()  # type: ignore[operator]
        return found


def make_evaluator() -> Evaluator:
    """Make the default evaluator.

    Returns:
        Evaluator: :class:`OneClassEvaluator` with image and pixel AUROC for validation; these, AUPRO, pixel AUPR and F1
        scores for test.
    """

    def aurocs() -> list:
        return [
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
        ]

    return OneClassEvaluator(
        val_metrics=aurocs(),
        test_metrics=[
            *aurocs(),
            AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            AUPR(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
        ],
    )
