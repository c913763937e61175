# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What can be known to fail is found before stage 1, which takes a while, and all of it at once."""

import copy
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from anomalib.metrics import AnomalibMetric
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from anomalib_ddpm_st.core.cache import default_cache_dir
from anomalib_ddpm_st.core.datasets import list_images, read_item
from anomalib_ddpm_st.core.images import MIN_BAR, NormalImages
from anomalib_ddpm_st.core.progress import progress
from anomalib_ddpm_st.diffusion import load_pipeline

from .components import OneClassEvaluator, crops_before_resize
from .post_processing import ConformalPostProcessor
from .training_data import DetectorModule, TrainingData, count_labels

logger = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
LOGGED_IN_TRAINING = ("train_loss", "train_loss_step", "train_loss_epoch")
# What a ModelCheckpoint can monitor although nobody logs it.
COUNTED = {"epoch", "step"}
# Packages whose callbacks log nothing.
QUIET_PACKAGES = ("lightning", "anomalib", "anomalib_ddpm_st")
MAX_LISTED = 20


def check_before_training(
    model: DetectorModule,
    data: TrainingData | None,
    found: Iterable[Exception] = (),
) -> None:
    """Check settings, folders, weights and every image file before the first stage.

    Args:
        model (DetectorModule): Model, attached to its Trainer.
        data (TrainingData | None): Data. ``None`` if it is not known.
        found (Iterable[Exception]): Problems that are known already. Defaults to none.

    Raises:
        Exception: The problem, if there is one.
        ValueError: All problems, if there are several.
    """
    trainer = model.trainer
    problems = [*found, *_check_trainer(model, trainer), *_check_monitors(model, trainer, data)]
    problems += [*_check_folders(model, trainer), *_check_weights(model)]
    if data is not None:
        unread = [] if data.images is None else list(data.images.unread())
        problems += [*unread, *check_files([*data.validation, *data.test])]
        if data.images is not None and not unread:
            problems += _check_network(model, data.images, data.batch_size)
    if not problems:
        _warn(model, data)
        return
    if len(problems) == 1:
        raise problems[0]
    lines = [f"- {problem}" for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"- and {len(problems) - MAX_LISTED} more.")
    msg = "Training cannot start:\n" + "\n".join(lines)
    raise ValueError(msg)


def _warn(model: DetectorModule, data: TrainingData | None) -> None:
    """Warn of transforms that show the detector other images than the exported model."""
    if crops_before_resize(getattr(model.pre_processor, "transform", None)):
        logger.warning(
            "The pre-processor crops or pads before Resize. anomalib's datamodules resize first, so the exported model "
            "will see other images than training: put Resize first, or crop in the datamodule's augmentations."
        )
    if data is not None and data.images is not None and len(data.images.item_sizes) > 1:
        logger.warning(
            "The images have %d different sizes before the pre-processor. anomalib stretches those of a batch to one "
            "size, so what the detector sees depends on the batch: give Resize a height and a width.",
            len(data.images.item_sizes),
        )


def _check_trainer(model: DetectorModule, trainer: Trainer) -> Iterator[Exception]:
    """Check precision, smallest number of steps and what calibrates the thresholds."""
    precision = str(trainer.precision)
    if precision not in PRECISIONS:
        yield ValueError(f"DdpmSt does not train with precision '{precision}': choose from {', '.join(PRECISIONS)}.")
    if (trainer.min_steps or 0) > model.training_steps:
        yield ValueError(
            f"min_steps ({trainer.min_steps}) is above training_steps ({model.training_steps}), the length of the "
            "schedule: raise training_steps."
        )
    post_processor = getattr(model, "post_processor", None)
    if isinstance(post_processor, ConformalPostProcessor):
        try:
            post_processor.check_validation_set(trainer)
        except ValueError as error:
            yield error


def _check_monitors(model: DetectorModule, trainer: Trainer, data: TrainingData | None) -> Iterator[Exception]:
    """Check that the metrics that callbacks monitor will exist."""
    callbacks = cast("Any", trainer).callbacks
    if any(type(callback).__module__.split(".")[0] not in QUIET_PACKAGES for callback in callbacks):
        return
    names = set(LOGGED_IN_TRAINING)
    validates = data is None or (data.validation and trainer.limit_val_batches)
    if validates and isinstance(model.evaluator, OneClassEvaluator) and data is not None:
        # It leaves out the metrics of a set without defects.
        validates = count_labels(data.validation) == (0, 0) or count_labels(data.validation)[1] > 0
    if validates and (data is None or model.evaluator is not None):
        names |= {cast("AnomalibMetric", metric).name for metric in getattr(model.evaluator, "val_metrics", [])}
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        known = names | COUNTED if isinstance(callback, ModelCheckpoint) else names
        if monitor is not None and monitor not in known and getattr(callback, "strict", True):
            yield ValueError(
                f"{type(callback).__name__} monitors '{monitor}', which this training does not log: choose from "
                f"{', '.join(sorted(known))}."
            )


def _check_folders(model: DetectorModule, trainer: Trainer) -> Iterator[Exception]:
    """Check that results and cache can be written."""
    folders = {"default_root_dir": Path(trainer.default_root_dir)}
    if model.defects.needs_bank:
        folders["cache_dir"] = Path(model.cache_dir) if model.cache_dir else default_cache_dir()
    for name, folder in folders.items():
        problem = _write_problem(folder)
        if problem is not None:
            yield OSError(f"The folder {folder} cannot be written ({problem}): choose another one with {name}.")


def _write_problem(folder: Path) -> OSError | None:
    """Problem of writing a file into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error


def _check_weights(model: DetectorModule) -> Iterator[Exception]:
    """Load the weights of the teacher, and check that there is a DDPM where one is given."""
    if model.pre_trained and not bool(model.model.teacher.has_weights):
        try:
            model.model.teacher.load_weights()
        except (ConnectionError, ValueError) as error:
            yield error
    if model.diffusion_path is not None and model.defects.needs_bank:
        try:
            load_pipeline(model.diffusion_path)
        except (OSError, ValueError) as error:
            yield error


def check_files(datasets: Iterable[Dataset]) -> list[Exception]:
    """Read every image and mask of datasets once.

    Args:
        datasets (Iterable[Dataset]): Datasets; those that do not list their images are left out.

    Returns:
        list[Exception]: One problem for each file that cannot be read.
    """
    entries: dict[str, tuple[Dataset, int, str]] = {}
    for dataset in datasets:
        with suppress(TypeError):
            entries |= {path: (part, position, path) for part, position, path, _ in list_images(dataset)}

    def read(entry: tuple[Dataset, int, str]) -> Exception | None:
        try:
            read_item(*entry)
        except ValueError as error:
            return error
        return None

    # Decoding releases Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(read, entries.values())
        if len(entries) >= MIN_BAR:
            results = iter(progress(results, "Checking test images", len(entries)))
        return [problem for problem in results if problem is not None]


def _check_network(model: DetectorModule, images: NormalImages, batch_size: int | None) -> Iterator[Exception]:
    """Check number and size of the images, and let the smallest batch pass the network."""
    try:
        pixels = images.load()
    except ValueError as error:
        yield error
        return
    smallest = 2 if batch_size is None else len(images) % batch_size or min(len(images), batch_size)
    height, width = pixels.shape[-2:]
    network = copy.deepcopy(getattr(model.model, "_orig_mod", model.model)).train()
    example = network.score_spread.new_zeros(smallest, 3, height, width)
    try:
        with torch.no_grad():
            network(example, example)
    except (RuntimeError, ValueError) as error:
        yield ValueError(
            f"Images of {height} x {width} pixels in a batch of {smallest} are too small for the backbone "
            f"'{network.teacher.backbone}' ({error}): use larger images or larger batches."
        )
