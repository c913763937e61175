# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""How a training runs in Lightning's loop: its validations, interruptions, checkpoints and how it resumes."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from anomalib.data import AnomalibDataModule
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, RandomSampler

from anomalib_ddpm_st.core.interruption import StopOnSignal
from anomalib_ddpm_st.core.optimization import replace_default_epochs
from anomalib_ddpm_st.core.random_state import random_state, set_random_state
from anomalib_ddpm_st.core.training_loader import TrainingLoader

from .normal_reference import SCALE_IMAGES
from .post_processing import ConformalPostProcessor
from .training_data import DetectorModule, list_loaders

# Largest number of images of validations, as a fraction of those of training steps. An image of a training step takes
# longer, but validation starts its workers each time: together it stays below a tenth of the time.
VALIDATION_SHARE = 0.05
RECORD_FILE = "training.json"


class TrainingRun(StopOnSignal):
    """Runs the schedule of :class:`DdpmSt` in the loop of a Trainer.

    - A schedule of steps runs to its end on few images, too.
    - Unless the user sets an interval, validation takes less than a tenth of the time of training.
    - Ctrl-C and SIGTERM end training after the current step; a second one ends it at once. The process exits with 128
      plus the number of the signal, as usual.
    - However training ends, its scores are calibrated, a checkpoint is saved, and the last line says where it is.
    - A resumed training equals an uninterrupted one: checkpoints hold the random state and the position in the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owns_interval = False
        self._limits: dict[str, Any] = {}
        self._datamodule: AnomalibDataModule | None = None
        self._loader: TrainingLoader | None = None
        self._loader_state: dict[str, int] | None = None
        # Of the last training step: validation must leave no trace in training.
        self._random_state: dict[str, Any] | None = None
        self._to_restore: dict[str, Any] | None = None
        self._interval = 0
        self._saved_step: int | None = None

    def attach(self, trainer: Trainer) -> None:
        """Prepare a Trainer; its other callbacks read its interval of validation in their ``setup``.

        Args:
            trainer (Trainer): Trainer.

        Raises:
            RuntimeError: If it has trained another model.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.global_step > 0:
            msg = (
                f"This Engine has trained for {trainer.global_step} steps, which would count as steps of this "
                "training: make a new Engine for each training."
            )
            raise RuntimeError(msg)
        self._limits = {
            # An interval in hours and minutes is kept elsewhere by Lightning.
            "val_check_interval": getattr(trainer, "val_check_interval", None),
            "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
        }
        self._owns_interval = self._limits == {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}
        if self._owns_interval:
            # Not yet known; set when training starts.
            trainer.val_check_interval, trainer.check_val_every_n_epoch = 10**9, None

    # ---------------------------------------------------------------------------------------------------------------
    # Start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bound the epochs, and let the datamodule's training images come from a loader that can resume."""
        if stage != TrainerFn.FITTING:
            return
        self._limits |= {
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "limit_val_batches": trainer.limit_val_batches,
        }
        replace_default_epochs(trainer, cast("DetectorModule", pl_module).training_steps)
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, AnomalibDataModule) and not len(getattr(datamodule, "val_data", ())):
            # anomalib's data loader fails with val_split_mode "none".
            trainer.limit_val_batches = 0
        if (
            isinstance(datamodule, AnomalibDataModule)
            and trainer.world_size == 1
            and not cast("Any", trainer).overfit_batches
        ):
            self._datamodule = datamodule
            self._limits["train_dataloader"] = vars(datamodule).get("train_dataloader")
            original = datamodule.train_dataloader

            def train_dataloader() -> DataLoader:
                return self._resumable(original)

            datamodule.train_dataloader = train_dataloader  # type: ignore[method-assign]

    def _resumable(self, original: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Replace a data loader with a plain random order; others stay as they are."""
        loader = original()
        if type(loader) is not DataLoader or type(loader.sampler) is not RandomSampler or loader.drop_last:
            return loader
        sampler = loader.sampler
        if loader.batch_size is None or sampler.replacement or sampler.num_samples != len(sampler.data_source):
            return loader
        self._loader = TrainingLoader(loader)
        if self._loader_state is not None:
            self._loader.load_state_dict(self._loader_state)
            # Lightning may ask for a new one later, which does not start there again.
            self._loader_state = None
        return self._loader

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the interval of validation, take over the signals and note that training runs."""
        self._interval = self._find_interval(trainer)
        if self._owns_interval:
            trainer.val_check_batch = self._interval
        super().on_train_start(trainer, pl_module)
        self._record(trainer, pl_module, finished=False)

    @staticmethod
    def _find_interval(trainer: Trainer) -> int:
        """Steps between validations whose images are a fraction of those of training."""
        train = cast("DataLoader", trainer.train_dataloader)
        try:
            per_step = len(train.dataset) / len(train)  # type: ignore[arg-type]
        except TypeError:  # a stream
            per_step = getattr(train, "batch_size", None) or 1
        images = SCALE_IMAGES
        for loader, batches in zip(list_loaders(trainer.val_dataloaders), trainer.num_val_batches, strict=False):
            images += int(batches) * (loader.batch_size or 1) if math.isfinite(batches) else 0
        return math.ceil(images / (VALIDATION_SHARE * per_step))

    # ---------------------------------------------------------------------------------------------------------------
    # Steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Continue with the random state of a checkpoint, or with the one before a validation."""
        del trainer, pl_module, args
        if self._to_restore is not None:
            set_random_state(self._to_restore)
            self._to_restore = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object, **kwargs: object) -> None:
        """Stop on a signal; without validations, save at the same interval."""
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        self._random_state = random_state()
        if trainer.should_stop:
            return
        if self._owns_interval and not self._validates(trainer) and trainer.global_step % self._interval == 0:
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop on a signal."""
        del pl_module
        if trainer.state.fn == TrainerFn.FITTING:
            self._to_restore = self._random_state
            if self.signal_number is not None:
                trainer.should_stop = True

    @staticmethod
    def _validates(trainer: Trainer) -> bool:
        """Whether there is anything to validate."""
        return bool(trainer.enable_validation and sum(trainer.num_val_batches))

    # ---------------------------------------------------------------------------------------------------------------
    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """State in checkpoints: random state and position in the data after the last training step."""
        state: dict[str, Any] = {"random_state": self._random_state or random_state()}
        if self._loader is not None:
            state["loader"] = self._loader.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state from a checkpoint."""
        self._to_restore = state_dict["random_state"]
        self._loader_state = state_dict.get("loader")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that there is something left to train.

        Raises:
            ValueError: If the schedule of the checkpoint is over.
        """
        steps = cast("DetectorModule", pl_module).training_steps
        if trainer.state.fn == TrainerFn.FITTING and checkpoint["global_step"] >= steps:
            msg = (
                f"The checkpoint has trained for {checkpoint['global_step']} of {steps} steps: raise training_steps to "
                "train on."
            )
            raise ValueError(msg)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the step of the last checkpoint."""
        del pl_module, checkpoint
        self._saved_step = trainer.global_step

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint with calibrated scores, unless there is one of this step."""
        reference = cast("DetectorModule", pl_module).reference
        if reference is not None:
            reference.calibrate_scores(trainer.global_step)
            post_processor = getattr(pl_module, "post_processor", None)
            if isinstance(post_processor, ConformalPostProcessor) and not self._validates(trainer):
                post_processor.use_good_images(reference.normal_scores, reference.num_known, None)
        callbacks = cast("list[ModelCheckpoint]", trainer.checkpoint_callbacks)
        if not callbacks or cast("Any", trainer).fast_dev_run or trainer.global_step == 0:
            return
        for callback in callbacks:
            if callback.monitor is None:
                callback.on_validation_end(trainer, pl_module)
        if self._saved_step != trainer.global_step:
            folder = callbacks[0].dirpath or Path(trainer.default_root_dir) / "weights" / "lightning"
            trainer.save_checkpoint(Path(folder) / "last.ckpt")

    # ---------------------------------------------------------------------------------------------------------------
    # End

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of training."""
        self._save(trainer, pl_module)
        # Lightning puts back the handlers that it replaced before it calls teardown.
        self.give_back_signals()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where the checkpoint is and how to go on; exit after a signal.

        Raises:
            SystemExit: If a signal ended training.
        """
        if stage != TrainerFn.FITTING:
            return
        self._restore(trainer)
        interrupted = self.signal_number is not None
        self._record(trainer, pl_module, finished=not interrupted)
        if trainer.is_global_zero:
            steps = cast("DetectorModule", pl_module).training_steps
            folders = {callback.dirpath for callback in cast("list[ModelCheckpoint]", trainer.checkpoint_callbacks)}
            path = newest(file for folder in folders if folder for file in Path(folder).glob("*.ckpt"))
            line = f"Training ended at step {trainer.global_step} of {steps}. "
            line += f"Checkpoint with calibrated scores: {path}" if path else "No checkpoint was saved."
            if trainer.global_step < steps and path:
                line += "\nTo go on, run it again with this path as ckpt_path (on the command line --ckpt_path)"
                line += "." if interrupted else " and a higher bound of steps, epochs or time."
            print(line, flush=True)  # noqa: T201
        if self.signal_number is not None:
            raise SystemExit(128 + self.signal_number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave everything as it was after an error or an interruption, too, for which Lightning calls no teardown."""
        del exception
        if trainer.state.fn == TrainerFn.FITTING:
            self._restore(trainer)
            pl_module.teardown(TrainerFn.FITTING)

    def _restore(self, trainer: Trainer) -> None:
        """Leave Trainer, datamodule and signals as they were."""
        self.give_back_signals()
        if self._datamodule is not None:
            del self._datamodule.train_dataloader
            if self._limits["train_dataloader"] is not None:  # the user's own
                self._datamodule.train_dataloader = self._limits["train_dataloader"]  # type: ignore[method-assign]
            self._datamodule = None
        if "val_check_interval" in self._limits:
            trainer.val_check_interval = self._limits["val_check_interval"]
            trainer.check_val_every_n_epoch = self._limits["check_val_every_n_epoch"]
        if "max_epochs" in self._limits:
            trainer.fit_loop.max_epochs = self._limits["max_epochs"]
            trainer.fit_loop.epoch_loop.max_steps = self._limits["max_steps"]
            trainer.limit_val_batches = self._limits["limit_val_batches"]

    @staticmethod
    def _record(trainer: Trainer, pl_module: LightningModule, finished: bool) -> None:
        """Note in the folder of the run whether it is finished, for a command that finds interrupted runs."""
        fingerprint = cast("DetectorModule", pl_module).fingerprint
        if fingerprint is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / RECORD_FILE
        partial = path.with_suffix(".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"fingerprint": fingerprint, "finished": finished}), encoding="utf-8")
        partial.replace(path)


def newest(files: Iterable[Path]) -> Path | None:
    """Choose the file that was written last.

    Args:
        files (Iterable[Path]): Files.

    Returns:
        Path | None: File, ``None`` if there are none.
    """
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def interrupted_checkpoint(root: Path, fingerprint: str) -> Path | None:
    """Find the last checkpoint of a run that was interrupted.

    Args:
        root (Path): Folder of runs.
        fingerprint (str): What identifies the settings of the run.

    Returns:
        Path | None: Checkpoint, ``None`` if the last run with these settings came to its end or left no checkpoint.
    """
    records = {path: _read_record(path) for path in root.rglob(RECORD_FILE)}
    last = newest(path for path, record in records.items() if record.get("fingerprint") == fingerprint)
    return None if last is None or records[last].get("finished") else newest(last.parent.rglob("*.ckpt"))


def _read_record(path: Path) -> dict[str, Any]:
    """Record of a run; empty for a file of the same name that another program wrote."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
