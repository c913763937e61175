# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What a training of DdpmSt spends on waiting for data and on validation, with few images.

Example:
    python benchmarks/training_loop.py --images 20 200

For each number of images, the first ones of a category, the detector trains with anomalib's default of eight workers:
with the data loader of the datamodule, whose workers start again at every epoch, and with ``TrainingLoader``, whose
workers stay. ``waiting`` is the share of the time between the end of a step and the start of the next one, validation
aside. ``validation`` is the share of validation and calibration, at the interval that DdpmSt chooses, in a training
that is as long as two intervals. Both are measured from the end of the first step.
"""

import logging
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from anomalib.data import Folder
from anomalib.engine import Engine
from common import make_parser, save_record
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.detector.normal_reference import SCALE_IMAGES
from anomalib_ddpm_st.detector.training_run import VALIDATION_SHARE, TrainingRun

logger = logging.getLogger(__name__)

LOADERS = ("datamodule", "training_loader")


class Clock(Callback):
    """Sums up the time of steps, of waiting for data and of validation."""

    def __init__(self) -> None:
        self.seconds = {"steps": 0.0, "waiting": 0.0, "validation": 0.0}
        self._last: float | None = None
        self._validated = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Count the time since the last step."""
        del pl_module, args
        now = time.perf_counter()
        if self._last is not None:
            self.seconds["validation" if self._validated else "waiting"] += now - self._last
        self._start, self._validated = now, False
        del trainer

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object, **kwargs: object) -> None:
        """Count the time of the step, unless it is the first one."""
        del pl_module, args, kwargs
        now = time.perf_counter()
        if trainer.global_step > 1:
            self.seconds["steps"] += now - self._start
        self._last = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the time until the next step is that of a validation."""
        del trainer, pl_module
        self._validated = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the last validation."""
        del trainer, pl_module
        if self._validated and self._last is not None:
            self.seconds["validation"] += time.perf_counter() - self._last

    def shares(self) -> dict[str, float]:
        """Seconds and shares in percent."""
        total = sum(self.seconds.values())
        shares = {f"{name}_percent": round(100 * value / total, 2) for name, value in self.seconds.items()}
        return {"seconds": round(total, 2), **shares}


def train(
    root: Path,
    loader: str,
    steps: int,
    batch_size: int,
    workers: int,
    validate: bool,
    **model: Any,  # noqa: ANN401
) -> Clock:
    """Train a detector and measure.

    Args:
        root (Path): Folder in the layout of MVTec AD.
        loader (str): ``"datamodule"`` or ``"training_loader"``.
        steps (int): Number of training steps.
        batch_size (int): Images per step.
        workers (int): Processes that read images.
        validate (bool): Validate as by default.
        **model: Arguments of the model.

    Returns:
        Clock: Times.
    """
    seed_everything(0, verbose=False)
    data = Folder(
        "few",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/defect",
        train_batch_size=batch_size,
        num_workers=workers,
        val_split_mode="same_as_test",
    )
    original = TrainingRun._resumable  # noqa: SLF001
    if loader == "datamodule":
        TrainingRun._resumable = lambda _, make: make()  # type: ignore[method-assign] # noqa: SLF001
    clock = Clock()
    try:
        engine = Engine(
            default_root_dir=root / "results",
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[clock],
            **({} if validate else {"limit_val_batches": 0}),
        )
        detector = DdpmSt(training_steps=steps, defects={"source": "self_texture"}, visualizer=False, **model)
        engine.fit(detector, datamodule=data)
    finally:
        TrainingRun._resumable = original  # type: ignore[method-assign] # noqa: SLF001
    return clock


def copy_images(source: Path, target: Path, count: int) -> None:
    """Copy the first training images of a category, and all of its test images.

    Args:
        source (Path): Folder of the category in the layout of MVTec AD.
        target (Path): Folder to copy to.
        count (int): Number of training images.
    """
    parts = {"train/good": sorted((source / "train" / "good").iterdir())[:count]}
    parts["test/good"] = sorted((source / "test" / "good").iterdir())
    defects = [folder for folder in sorted((source / "test").iterdir()) if folder.name != "good"]
    parts["test/defect"] = [path for folder in defects for path in sorted(folder.iterdir())]
    for name, files in parts.items():
        (target / name).mkdir(parents=True)
        for path in files:
            shutil.copy(path, target / name / f"{path.parent.name}_{path.name}")


def main() -> None:
    """Measure and save the record."""
    parser = make_parser(__doc__, ["bottle"], "benchmarks/results/training_loop.json")
    parser.add_argument("--images", type=int, nargs="+", default=[20, 200], help="Numbers of training images.")
    parser.add_argument("--steps", type=int, default=15, help="Steps of the comparison of the data loaders.")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=256)
    options = parser.parse_args()
    model = {
        "teacher_weights": options.teacher_weights,
        "pre_trained": options.teacher_weights is not None,
        "pre_processor": DdpmSt.configure_pre_processor((options.image_size, options.image_size)),
    }
    rows = []
    for category in options.categories:
        for count in options.images:
            with tempfile.TemporaryDirectory() as work:
                root = Path(work)
                copy_images(options.data_root / category, root, count)
                row: dict[str, Any] = {"category": category, "images": count}
                settings = (options.batch_size, options.workers)
                for loader in LOADERS:
                    row[loader] = train(root, loader, options.steps, *settings, validate=False, **model).shares()
                images = sum(1 for _ in (root / "test").rglob("*.png"))
                per_step = count / math.ceil(count / options.batch_size)
                steps = 2 * math.ceil((images + SCALE_IMAGES) / (VALIDATION_SHARE * per_step))
                row["validated"] = train(root, LOADERS[1], steps, *settings, validate=True, **model).shares()
                row["validated"]["steps"] = steps
                rows.append(row)
                logger.info("%s", row)
    settings = {"batch_size": options.batch_size, "workers": options.workers, "image_size": options.image_size}
    save_record(options.output, {"rows": rows, **settings, "seed": 0})


if __name__ == "__main__":
    main()
