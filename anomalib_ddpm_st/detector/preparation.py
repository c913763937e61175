# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What comes before the detector's training: its data, checks, the pose of parts, and stages 1 and 2."""

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from anomalib.data import AnomalibDataModule
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig
from anomalib_ddpm_st.synthesis.preparation import prepare_bank

from .augmentation import MAX_REFERENCES
from .checks import check_before_training
from .cost import time_prediction
from .defect_size import DefectSizePreProcessor, describe_choice
from .plan import describe_training
from .pose_selection import PoseOption, select_pose
from .torch_model import DdpmStModel
from .training_data import DetectorModule, TrainingData

if TYPE_CHECKING:
    from anomalib.models import AnomalibModule as Base
else:
    Base = object

logger = logging.getLogger(__name__)


class PreparationMixin(Base):
    """Everything before the detector's training; comes before ``AnomalibModule`` in the bases of :class:`DdpmSt`."""

    model: DdpmStModel
    diffusion: DiffusionConfig
    bank: BankConfig
    defects: DefectConfig
    pose: PoseOption
    training_steps: int
    diffusion_path: str | None
    cache_dir: str | None
    stage_seconds: dict[str, float]
    diffusion_dir: Path | None
    bank_dir: Path | None
    # Set by our command line, which prints the plan; otherwise it is logged.
    announce: Callable[[str], None] | None = None
    _data: TrainingData | None = None

    def prepare_data(self) -> None:
        """Check everything that can be known; train the DDPM and fill the bank, unless the cache holds them already."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.trainer.state.fn != TrainerFn.FITTING or not isinstance(datamodule, AnomalibDataModule):
            return
        try:
            datamodule.setup(TrainerFn.FITTING)
        except FileNotFoundError as error:
            msg = f"The images are missing ({error}): check the root and the folders of the datamodule."
            check_before_training(cast("DetectorModule", self), None, [FileNotFoundError(msg)])
        if isinstance(self.pre_processor, DefectSizePreProcessor):
            self.pre_processor.choose(datamodule)
        self._data = TrainingData.from_datamodule(datamodule, self.pre_processor)
        check_before_training(cast("DetectorModule", self), self._data)
        self._report_cost()
        self._select_pose(self._data.images)
        self._announce_plan(self._data)
        self._prepare_bank(self._data.images)

    def _report_cost(self) -> None:
        """Report why the input size was chosen and what a prediction costs, if the pre-processor has chosen it."""
        if not isinstance(self.pre_processor, DefectSizePreProcessor) or not logger.isEnabledFor(logging.INFO):
            return
        size, device, precision = (
            self.pre_processor.input_size,
            self.trainer.strategy.root_device,
            str(self.trainer.precision),
        )
        if size is not None:
            milliseconds = 1000 * time_prediction(self.model, size.image_size, device, precision)
            logger.info("%s", describe_choice(size, milliseconds))

    def _announce_plan(self, data: TrainingData) -> None:
        """Say what will be trained and how long it takes, unless nobody listens: the estimate takes seconds."""
        if self.announce is not None:
            self.announce(describe_training(cast("DetectorModule", self), data))
        elif logger.isEnabledFor(logging.INFO):
            logger.info("%s", describe_training(cast("DetectorModule", self), data))

    def _prepare_bank(self, images: NormalImages | None) -> None:
        """Prepare the bank of textures of normal images, if the source of the defects needs one."""
        if images is None or not self.defects.needs_bank:
            return
        device, precision = self.trainer.strategy.root_device, str(self.trainer.precision)
        settings = (self.bank, self.diffusion, self.diffusion_path, self.cache_dir, device, precision)
        try:
            prepared = prepare_bank(images, *settings, min_images=2)
        except KeyboardInterrupt as interruption:
            # Lightning would leave Ctrl-C ignored, and swallow the message.
            print(f"Interrupted. {interruption}", flush=True)  # noqa: T201
            raise SystemExit(128 + signal.SIGINT) from interruption
        self.diffusion_dir, self.bank_dir = prepared.diffusion_dir, prepared.bank_dir
        self.stage_seconds.update(prepared.seconds)

    def _find_data(self) -> TrainingData:
        """Data of a training without a datamodule, checked and with its bank, or of another process than the first."""
        try:
            data = TrainingData.from_trainer(self.trainer, self.pre_processor)
        except TypeError as error:
            if self.defects.needs_bank:
                msg = f"{error} Or set defects.source to 'self_texture'."
                raise TypeError(msg) from error
            data = TrainingData(None)
        if not isinstance(getattr(self.trainer, "datamodule", None), AnomalibDataModule):
            check_before_training(cast("DetectorModule", self), data)
        self._select_pose(data.images)
        # A bank can only be that of an earlier training; another process than the first finds it in the cache.
        self._prepare_bank(data.images)
        return data

    def _select_pose(self, images: NormalImages | None) -> None:
        """Decide whether parts are turned to one pose, and let all stages see them so."""
        pose = None
        if self.pose == "auto" and images is not None:
            pixels = images.load(MAX_REFERENCES)
            device = self.model.score_spread.device
            pose, reason = select_pose(pixels, images.aspect(), lambda batch: self.model.teacher(batch.to(device)))
            logger.info("Pose %s: %s.", "off" if pose is None else "on", reason)
        self.model.set_pose(pose)
        if images is not None:
            images.turn(self.model.pose)
