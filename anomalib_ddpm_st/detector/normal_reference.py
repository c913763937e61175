# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Normal training images as the reference of what is normal: symmetries, memory bank and calibration of scores."""

import logging
import math
from collections.abc import Iterator
from functools import cached_property

import torch

from anomalib_ddpm_st.core.geometry import flip_rotate
from anomalib_ddpm_st.core.images import evenly_spaced
from anomalib_ddpm_st.core.progress import progress
from anomalib_ddpm_st.synthesis.foreground import find_foreground

from .augmentation import SYMMETRIES, Augmentation, allowed_symmetries, change_light, jitter_pair
from .position import ALIKE, ANYWHERE, MIN_IMAGES, choose_position_weight, explained_by_place
from .torch_model import DdpmStModel, NormalScores

logger = logging.getLogger(__name__)

# This many normal images show the poses of the part themselves, so that none is rotated.
ENOUGH_IMAGES = 100
BATCH_SIZE = 16
SCALE_IMAGES = 48
# Images show a surface if more than this part of them do.
MOST = 0.5


class NormalReference:
    """Derives from normal images how a detector may augment them, what it remembers and how it scales its scores.

    Args:
        model (DdpmStModel): Detector with the teacher's weights, on the device that it trains on.
        images (torch.Tensor | None): Normal images, ``uint8`` of shape ``(N, 3, H, W)``; a sample of them is kept.
            ``None`` if they are not known: then the memory bank stays empty and scores are not calibrated.
        augmentation (Augmentation): Flips and quarter turns of training images, see :class:`DdpmSt`.
            Defaults to ``"auto"``.

    Attributes:
        symmetries (torch.Tensor): Flips and quarter turns to train with, rows of ``SYMMETRIES``, boolean of shape
            ``(A, 3)``, on the CPU.
        normal_scores (NormalScores | None): Scores of slightly varied normal images, set by :meth:`calibrate_scores`.
        num_known (int): Number of different images among these.
    """

    def __init__(
        self,
        model: DdpmStModel,
        images: torch.Tensor | None,
        augmentation: Augmentation = "auto",
    ) -> None:
        self._model = model
        self._augmentation = augmentation
        self.symmetries = self._find_symmetries(images)
        self._calibrated_step: int | None = None
        self._sample: torch.Tensor | None = None
        self.normal_scores: NormalScores | None = None
        self.num_known = 0
        if images is not None:
            indices = evenly_spaced(len(images), SCALE_IMAGES)
            self.num_known = len(indices)
            self._sample = images[indices.repeat(math.ceil(SCALE_IMAGES / len(indices)))[:SCALE_IMAGES]]

    @cached_property
    def position_weight(self) -> float:
        """Weight of the position in the memory bank, see :func:`choose_position_weight`."""
        if self._sample is None or self.num_known < MIN_IMAGES:
            return ANYWHERE
        batches = [self._pose(batch) for batch in self._sample[: self.num_known].split(BATCH_SIZE)]
        with torch.no_grad():
            explained = explained_by_place([self._features(batch) for batch in batches])
        surfaces = torch.cat([find_foreground(batch).is_surface for batch in batches]).float().mean()
        weight = choose_position_weight(explained, is_surface=bool(surfaces > MOST))
        logger.info("Position counts %g: it explains %.2f of the variance of normal features.", weight, explained)
        return weight

    @property
    def parts_lie_alike(self) -> bool:
        """Whether the same place shows the same in all normal images, so that a displaced part is a defect."""
        return self.position_weight == ALIKE

    @property
    def unseen_symmetries(self) -> torch.Tensor:
        """Flips and quarter turns, the identity first, that new parts may show and the normal images need not.

        ``"auto"`` rotates images in training only if the normal images show all these poses anyway. The memory bank
        then holds them as they are: a computed rotation also rotates the light and the texture, a real one does not.
        """
        return self.symmetries[:1] if self._augmentation == "auto" else self.symmetries

    def fill_memory_bank(self, images: torch.Tensor | None) -> None:
        """Fill the memory bank of the detector.

        Args:
            images (torch.Tensor | None): Normal images as in the constructor, which does not keep them all. ``None``
                leaves the bank empty, with a warning.
        """
        memory_bank = self._model.memory_bank
        if memory_bank is None:
            return
        if images is None:
            logger.warning("The memory bank stays empty: the training set is not an anomalib dataset.")
            return
        # Twice as many images if they are rotated, since then more is normal.
        indices = torch.arange(len(images)).repeat(min(len(self.unseen_symmetries), 2))
        batches = indices.split(BATCH_SIZE)
        with torch.no_grad():
            memory_bank.fill(
                (self._features(_in_lights(self._pose(images[batch]))) for batch in progress(batches, "Memory bank")),
                (self._features(_in_lights(batch)) for batch in self._varied_images()),
                sum(len(batch) + len(batch[::2]) for batch in batches),
                self.position_weight,
            )

    def calibrate_scores(self, step: int | None = None) -> None:
        """Calibrate the scores with the current weights; the random state of the caller stays as it was.

        Args:
            step (int | None): Step of training; nothing is done if the scores were calibrated at the same step before.
                Defaults to ``None``.
        """
        if self._sample is None or (step is not None and step == self._calibrated_step):
            return
        self._calibrated_step = step
        was_training = self._model.training
        self._model.eval()
        with torch.random.fork_rng():
            self.normal_scores = self._model.calibrate(batch.to(self._device) for batch in self._varied_images())
        self._model.train(was_training)

    def _find_symmetries(self, images: torch.Tensor | None) -> torch.Tensor:
        """Flips and quarter turns to train with, boolean of shape ``(A, 3)``."""
        if self._augmentation != "auto":
            allowed = {"none": SYMMETRIES[:1], "flips": SYMMETRIES[:4], "flips_and_turns": SYMMETRIES}
            return torch.tensor(allowed[self._augmentation], dtype=torch.bool)
        if images is None or len(images) >= ENOUGH_IMAGES:
            return torch.tensor(SYMMETRIES[:1], dtype=torch.bool)
        symmetries, distances = allowed_symmetries(images, lambda batch: self._features(batch)[-2:])
        listed = ", ".join(f"{distance:.2f}" for distance in distances)
        logger.info("Training with %d of %d flips and turns (distances %s).", len(symmetries), len(SYMMETRIES), listed)
        return symmetries.cpu()

    @property
    def _device(self) -> torch.device:
        """Device of the detector."""
        return self._model.score_spread.device

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Teacher's features of images of shape ``(B, 3, H, W)`` with values in [0, 1]."""
        return self._model.teacher(images.to(self._device))

    def _pose(self, images: torch.Tensor) -> torch.Tensor:
        """Bring ``uint8`` images into poses of new parts; the result has values in [0, 1]."""
        poses = self.unseen_symmetries
        return flip_rotate(images.float() / 255, poses[torch.randint(len(poses), (len(images),))])

    def _varied_images(self) -> Iterator[torch.Tensor]:
        """Batches of normal images that differ slightly from those of the training set, as new ones would."""
        if self._sample is None:
            return
        for images in self._sample.split(BATCH_SIZE):
            posed = self._pose(images)
            yield jitter_pair(posed, posed, posed[:, :1])[0]


def _in_lights(images: torch.Tensor) -> torch.Tensor:
    """Images as they are, and every second one again in another light, which is no defect."""
    return torch.cat([images, change_light(images[::2])])
