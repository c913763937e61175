# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds without defects: anomalib's F1 threshold needs labelled ones."""

import logging
from typing import Any, cast

import torch
from anomalib.data import Batch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import CatMetric, SumMetric

from .torch_model import NormalScores

logger = logging.getLogger(__name__)

# Smallest distance of the threshold from the median score of good images, in standard deviations: three, as in a
# control chart, and two because training images score lower than new parts.
MARGIN = 5.0
# Median absolute deviation to standard deviation, of a normal distribution.
FROM_MAD = 1.4826


def threshold_above(scores: torch.Tensor) -> torch.Tensor:
    """Threshold from the scores of good images alone.

    It is the highest score, or five standard deviations above the median if that is higher: the highest of a few scores
    is soon exceeded, while that of many with a long tail needs no margin. The standard deviation is estimated from the
    median absolute deviation, so that unusual images among the good ones do not widen it. The margin ends halfway from
    the highest score to 1, so that a defect can always be found.

    Args:
        scores (torch.Tensor): Scores of good images, of shape ``(N,)`` with values in [0, 1].

    Returns:
        torch.Tensor: Threshold, a scalar in [0, 1].
    """
    highest = scores.max()
    # Unlike median(), the mean of the two in the middle of an even number.
    median = scores.quantile(0.5)
    spread = FROM_MAD * (scores - median).abs().quantile(0.5)
    return torch.maximum(highest, torch.minimum(median + MARGIN * spread, (1 + highest) / 2))


class OneClassPostProcessor(PostProcessor):
    """anomalib's post-processor, with thresholds from good images if no labelled defect is there to set them by.

    With defects in the validation set, thresholds maximise the F1 score, as everywhere in anomalib. Without, anomalib
    takes the highest score of the good images of the validation set. These are few, often three or four, so that most
    new parts would count as defective. Without a validation set anomalib has no threshold at all. Here the threshold
    comes from the good images of the validation set and from slightly varied training images (:func:`threshold_above`).
    Scores and maps are scaled so that the lowest of them becomes 0, the threshold 0.5, and what lies as far above the
    threshold as the lowest lies below it becomes 1.

    Args:
        **kwargs (Any): Arguments of ``anomalib.post_processing.PostProcessor``.

    Attributes:
        from_good_images (bool): Whether the thresholds come from good images alone. Part of checkpoints.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.from_good_images = False
        self._counts = (0, 0)
        # Rows of image score, highest and lowest value of the map.
        self._good = CatMetric()
        self._num_defective = SumMetric()

    def checkpoint_config(self) -> dict[str, Any]:
        """Plain data that a checkpoint holds."""
        return {**super().checkpoint_config(), "from_good_images": self.from_good_images}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore what :meth:`checkpoint_config` returned."""
        super().load_checkpoint_config(config)
        self.from_good_images = config.get("from_good_images", False)

    def use_good_images(self, training: NormalScores | None, num_training: int, held_out: NormalScores | None) -> None:
        """Set thresholds and scale from the raw scores of good images.

        Args:
            training (NormalScores | None): Scores of varied training images.
            num_training (int): Number of different images among these.
            held_out (NormalScores | None): Scores of good images that were not trained on.
        """
        parts = [part for part in (training, held_out) if part is not None]
        if not parts or not self.enable_thresholding:
            return
        device = self.image_min.device
        images, highest, lowest = (torch.cat([part.to(device) for part in kind]) for kind in zip(*parts, strict=True))
        self._image_threshold.copy_(threshold_above(images))
        self._pixel_threshold.copy_(threshold_above(highest))
        self.from_good_images = True
        self._counts = (num_training, 0 if held_out is None else len(held_out.images))
        if self.enable_normalization:
            self.image_min.copy_(images.min())
            self.image_max.copy_(2 * self._image_threshold - self.image_min)
            self.pixel_min.copy_(lowest.min())
            self.pixel_max.copy_(2 * self._pixel_threshold - self.pixel_min)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget where thresholds came from."""
        del trainer, pl_module
        self.from_good_images = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of thresholds that no defect has confirmed."""
        del pl_module
        if self.from_good_images and trainer.is_global_zero:
            known, held_out = self._counts
            logger.warning(
                "No labelled defects to set the threshold by: it is the highest score of %d good images, %d of them "
                "not trained on, or %g standard deviations above the median if that is higher. Check it on new parts.",
                known + held_out,
                held_out,
                MARGIN,
            )

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Batch,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Collect labels and raw scores of a batch."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if outputs.gt_label is None or outputs.pred_score is None or outputs.anomaly_map is None:
            return
        defective = outputs.gt_label.bool()
        lowest, highest = outputs.anomaly_map.flatten(1).aminmax(dim=1)
        rows = torch.stack([outputs.pred_score.flatten(), highest, lowest], dim=1)
        self._num_defective.update(defective.sum())
        self._good.update(rows[~defective])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set thresholds and scale, by defects if there are any."""
        held_out = None
        if self._good.update_called and not self._num_defective.compute():
            held_out = NormalScores(*cast("torch.Tensor", self._good.compute()).unbind(dim=1))
        self._good.reset()
        self._num_defective.reset()
        if held_out is None or not self.enable_thresholding:
            self.from_good_images = False
            super().on_validation_epoch_end(trainer, pl_module)
            return
        for metric in (
            self._image_threshold_metric,
            self._pixel_threshold_metric,
            self._image_min_max_metric,
            self._pixel_min_max_metric,
        ):
            metric.reset()
        reference = getattr(pl_module, "reference", None)
        if reference is not None:
            self.use_good_images(reference.normal_scores, reference.num_known, held_out)
        elif self.image_threshold.isnan():
            # Otherwise a trained model keeps what training found: good images alone cannot improve it.
            self.use_good_images(None, 0, held_out)
