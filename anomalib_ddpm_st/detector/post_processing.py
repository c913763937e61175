# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from good images: anomalib's F1 threshold needs labelled defects."""

import logging
from typing import Any, cast

import torch
from anomalib.data import Batch
from anomalib.data.utils import ValSplitMode
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import CatMetric, SumMetric

from .conformal import check_rate, conformal_threshold, images_needed, p_values, promise_for
from .torch_model import NormalScores

logger = logging.getLogger(__name__)

DEFAULT_RATE = 0.01
# Smallest distance of the threshold from the median score of good images, in standard deviations: three, as in a
# control chart, and two because training images score lower than new parts.
MARGIN = 5.0
# Median absolute deviation to standard deviation, of a normal distribution.
FROM_MAD = 1.4826
CALIBRATION = ("calibration_scores", "calibration_maxima")
# Keeps 0 / 0 from being undefined. OpenVINO takes much smaller numbers for 0.
SMALLEST = 1e-6


def threshold_above(scores: torch.Tensor) -> torch.Tensor:
    """Threshold from too few scores of good images for the false-alarm rate that is asked for.

    It is the highest score, or five standard deviations above the median if that is higher: the highest of a few scores
    is soon exceeded. The standard deviation is estimated from the median absolute deviation, so that unusual images
    among the good ones do not widen it. The margin is at most half of the distance from the highest score to 1, or to
    twice the highest score if that is above 1, so that a defect can always be found.

    Args:
        scores (torch.Tensor): Scores of good images, of shape ``(N,)``.

    Returns:
        torch.Tensor: Threshold, a scalar that is at least the highest score.
    """
    highest = scores.max()
    # Unlike median(), the mean of the two in the middle of an even number.
    median = scores.quantile(0.5)
    spread = FROM_MAD * (scores - median).abs().quantile(0.5)
    limit = torch.where(highest > 1, 2 * highest, torch.ones_like(highest))
    return torch.maximum(highest, torch.minimum(median + MARGIN * spread, (limit + highest) / 2))


class ConformalPostProcessor(PostProcessor):
    r"""Post-processor whose thresholds keep a false-alarm rate, from good images alone; for any anomalib model.

    The good images of the validation set, which must not be those of the test set, calibrate the thresholds
    (``val_split_mode: from_train`` holds them out of the training images). With enough of them, a new good image counts
    as defective with at most the probability ``false_alarm_rate``, and gets a mask with at most the same, if it is
    exchangeable with them (:func:`conformal_threshold`): 1 % needs 99 images, 0.1 % needs 999. Near-duplicates, such
    as two images of one part, count once.

    With fewer images, the thresholds lie at or above the highest score (:func:`threshold_above`), in which
    :class:`DdpmSt` also uses varied training images. One line at the end of training says what is promised.

    With labelled defects in the validation set, thresholds maximise the F1 score, as everywhere in anomalib, unless
    ``use_defects`` is ``False``.

    A score :math:`s` becomes :math:`s / (s + t)` with the threshold :math:`t`, and so do the pixels of an anomaly map:
    0.5 is the threshold in every picture, and :math:`s = t v / (1 - v)` gives the raw score back. Scores that can be
    negative are counted from the lowest of the validation set.

    Args:
        false_alarm_rate (float): Largest part of good images that may count as defective, in (0, 1).
            Defaults to ``0.01``.
        use_defects (bool): Use labelled defects of the validation set. Defaults to ``True``.
        **kwargs (Any): Arguments of ``anomalib.post_processing.PostProcessor``.

    Attributes:
        from_good_images (bool): Whether the thresholds come from good images alone. Part of checkpoints.
        calibration_scores (torch.Tensor): Raw scores of the held-out good images, of shape ``(N,)``.
        calibration_maxima (torch.Tensor): Highest value of each of their raw anomaly maps, of shape ``(N,)``.

    Raises:
        ValueError: If the rate is out of its range.

    Example:
        >>> from anomalib.models import Patchcore
        >>> from anomalib_ddpm_st import ConformalPostProcessor
        >>> model = Patchcore(pre_trained=False, post_processor=ConformalPostProcessor(false_alarm_rate=0.02))
    """

    calibration_scores: torch.Tensor
    calibration_maxima: torch.Tensor

    def __init__(
        self,
        false_alarm_rate: float = DEFAULT_RATE,
        use_defects: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        check_rate(false_alarm_rate)
        self.false_alarm_rate = float(false_alarm_rate)
        self.use_defects = use_defects
        self.from_good_images = False
        for name in CALIBRATION:
            self.register_buffer(name, torch.empty(0))
        self._num_training = 0
        # Rows of image score, highest and lowest value of the map.
        self._good = CatMetric()
        self._num_defective = SumMetric()

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        """Plain data that a checkpoint holds."""
        return (*super()._checkpoint_config_keys, "false_alarm_rate", "use_defects", "from_good_images")

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore what :meth:`checkpoint_config` returned, or that of anomalib's own post-processor."""
        super().load_checkpoint_config({"from_good_images": False, **config})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Load buffers whose length depends on the data; weights of another post-processor have none."""
        for name in CALIBRATION:
            values = state_dict.setdefault(prefix + name, torch.empty(0))
            setattr(self, name, torch.empty_like(values, device=self.image_min.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ---------------------------------------------------------------------------------------------------------------
    # Scores

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        """Scale scores or maps so that the threshold becomes 0.5; without a threshold they stay as they are."""
        del norm_max
        if preds is None:
            return None
        origin = norm_min.nan_to_num(0.0).clamp(max=0)
        above = (preds - origin).clamp(min=0)
        scaled = above / (above + (threshold - origin)).clamp(min=SMALLEST)
        return torch.where(torch.isnan(threshold), preds, scaled)

    def p_values(self, pred_score: torch.Tensor) -> torch.Tensor:
        """Conformal p-values of predicted scores.

        Args:
            pred_score (torch.Tensor): Scores as this post-processor returns them, of any shape.

        Returns:
            torch.Tensor: p-values in (0, 1], of the same shape, see :func:`conformal.p_values`.

        Raises:
            RuntimeError: If no good images have calibrated the threshold.
        """
        if not len(self.calibration_scores):
            msg = "There are no calibration scores: train or validate with good images in the validation set."
            raise RuntimeError(msg)
        calibration: torch.Tensor | None = self.calibration_scores
        if self.enable_normalization:
            calibration = self._normalize(calibration, self.image_min, self.image_max, self.image_threshold)
        return p_values(pred_score, cast("torch.Tensor", calibration))

    # ---------------------------------------------------------------------------------------------------------------
    # Thresholds

    def use_good_images(self, training: NormalScores | None, num_training: int, held_out: NormalScores | None) -> None:
        """Set the thresholds from the raw scores of good images.

        Args:
            training (NormalScores | None): Scores of varied training images, used only if there are too few others.
            num_training (int): Number of different images among these.
            held_out (NormalScores | None): Scores of good images that were not trained on.
        """
        parts = [part for part in (training, held_out) if part is not None]
        if not parts or not self.enable_thresholding:
            return
        device = self.image_min.device
        images, highest, lowest = (torch.cat([part.to(device) for part in kind]) for kind in zip(*parts, strict=True))
        if held_out is not None and self._enough(held_out):
            image_threshold, pixel_threshold = (
                conformal_threshold(scores, self.false_alarm_rate) for scores in (held_out.images, held_out.highest)
            )
        else:
            image_threshold, pixel_threshold = threshold_above(images), threshold_above(highest)
        self._image_threshold.copy_(image_threshold)
        self._pixel_threshold.copy_(pixel_threshold)
        self.from_good_images = True
        self._num_training = num_training
        self._keep_calibration(held_out)
        self.image_min.copy_(images.min())
        self.image_max.copy_(images.max())
        self.pixel_min.copy_(lowest.min())
        self.pixel_max.copy_(highest.max())

    def _keep_calibration(self, held_out: NormalScores | None) -> None:
        """Keep the scores that the thresholds come from, or none."""
        scores = (torch.empty(0), torch.empty(0)) if held_out is None else (held_out.images, held_out.highest)
        self.calibration_scores, self.calibration_maxima = (part.to(self.image_min.device) for part in scores)

    def _enough(self, held_out: NormalScores) -> bool:
        """Whether there are enough images for the false-alarm rate."""
        return len(held_out.images) >= images_needed(self.false_alarm_rate)

    def describe(self) -> str:
        """Say what the thresholds promise.

        Returns:
            str: One line; empty if they come from labelled defects.
        """
        if not self.from_good_images:
            return ""
        count, needed = len(self.calibration_scores), images_needed(self.false_alarm_rate)
        if count >= needed:
            promise = promise_for(count, self.false_alarm_rate)
            line = f"The threshold comes from {count} good images that were not trained on: {promise}, "
            return line + "as long as new parts are like them."
        msg = (
            f"A false-alarm rate of {100 * self.false_alarm_rate:g} % needs {needed} good images that were not trained "
            "on (val_split_mode: from_train holds out a part, val_split_ratio), but "
        )
        if count:
            found = "there is 1: with it" if count == 1 else f"there are {count}: with these"
            return f"{msg}{found}, {promise_for(count, self.false_alarm_rate)}."
        msg += f"there are none: the threshold is that of {self._num_training} training images. "
        return msg + "Check it on new parts."

    def check_validation_set(self, trainer: Trainer) -> None:
        """Check that the test images do not calibrate the thresholds.

        Args:
            trainer (Trainer): Trainer with its datamodule.

        Raises:
            ValueError: If the validation set is the test set.
        """
        mode = getattr(getattr(trainer, "datamodule", None), "val_split_mode", None)
        if not self.use_defects and mode == ValSplitMode.SAME_AS_TEST:
            msg = (
                "The validation set is the test set, so test images would set the threshold: set val_split_mode to "
                "from_train."
            )
            raise ValueError(msg)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the validation set, and forget where thresholds came from."""
        del pl_module
        self.check_validation_set(trainer)
        self.from_good_images = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in one line what the thresholds promise."""
        del pl_module
        if self.from_good_images and trainer.is_global_zero:
            enough = len(self.calibration_scores) >= images_needed(self.false_alarm_rate)
            logger.log(logging.INFO if enough else logging.WARNING, "%s", self.describe())

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
        if outputs.gt_label is None or outputs.anomaly_map is None:
            return
        defective = outputs.gt_label.bool().flatten()
        lowest, highest = outputs.anomaly_map.flatten(1).aminmax(dim=1)
        scores = highest if outputs.pred_score is None else outputs.pred_score.flatten()
        rows = torch.stack([scores, highest, lowest], dim=1)
        self._num_defective.update(defective.sum())
        self._good.update(rows[~defective])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set thresholds and scale, by defects if there are any and they may be used."""
        held_out = None
        if self._good.update_called and not (self.use_defects and self._num_defective.compute()):
            rows = cast("torch.Tensor", self._good.compute())
            held_out = NormalScores(*rows.unbind(dim=1)) if len(rows) else None
        self._good.reset()
        self._num_defective.reset()
        if held_out is None or not self.enable_thresholding:
            self.from_good_images = False
            self._keep_calibration(None)
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
        elif trainer.state.fn == TrainerFn.FITTING or self.image_threshold.isnan() or self._enough(held_out):
            # Otherwise a trained model keeps what training found: a few good images cannot improve it.
            self.use_good_images(None, 0, held_out)
