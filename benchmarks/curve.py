# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Accuracy on the test set against the training time of DdpmSt, to see where each data set saturates.

Example:
    python benchmarks/curve.py --categories bottle screw magnetic_tile --precision bf16-mixed

One training run for each category and seed: its weights are kept after each of ``--fractions`` of the one-cycle
schedule and measured when it is complete. All but the last come from the middle of the schedule, at a high learning
rate, so a schedule of that length would do better. The last is the shipped detector. ``seconds`` counts from the start,
with DDPM and bank if ``--cache-dir`` is new. Existing curves are skipped, and with ``--weights-dir`` an interrupted one
resumes from its last checkpoint. ``--accuracy-output`` also gets the last row, as ``accuracy.py`` would write it after
the same training.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import MVTecAD
from common import (
    METRICS,
    append_row,
    commit,
    ddpm_st_arguments,
    has_row,
    make_mvtec,
    make_parser,
    make_training_engine,
    measure,
    raw_evaluator,
    read_table,
    save_lines,
)
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.detector.earlier_weights import upgrade_weights

logger = logging.getLogger(__name__)

CHECKPOINT = "interrupted"
CHECKPOINT_STEPS = 250
RENEW_MEMORY_HELP = "Refill the memory bank: for weights of an older commit."


class Snapshots(Callback):
    """Keep the weights at some steps of training, and the training time up to there, across interruptions.

    Args:
        steps (Sequence[int]): Numbers of optimiser steps.
        folder (Path): Folder for the weights.
    """

    def __init__(self, steps: Sequence[int], folder: Path) -> None:
        self.steps = sorted(set(steps))
        self.folder = folder
        self.seconds: dict[int, float] = {}
        self.start = time.perf_counter()

    def path(self, step: int) -> Path:
        """File of the weights after a step."""
        return self.folder / f"step{step}.pt"

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args, **kwargs) -> None:
        """Save the weights if the step is one of those to keep."""
        del args, kwargs
        step = trainer.global_step
        if step in self.steps and step not in self.seconds:
            self.seconds[step] = time.perf_counter() - self.start
            torch.save(pl_module.state_dict(), self.path(step))

    def state_dict(self) -> dict[str, Any]:
        """Training time up to a checkpoint."""
        return {"seconds": self.seconds, "elapsed": time.perf_counter() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the training time of a checkpoint."""
        self.seconds = state_dict["seconds"]
        self.start = time.perf_counter() - state_dict["elapsed"]


def finished(checkpoint: Path, snapshots: Snapshots, training_steps: int) -> dict[int, float] | None:
    """Read the training time of a complete training, whose weights only need to be measured.

    Args:
        checkpoint (Path): Checkpoint of the training.
        snapshots (Snapshots): Weights to keep.
        training_steps (int): Steps of the whole schedule.

    Returns:
        dict[int, float] | None: Seconds by step, or ``None`` if the training is not complete.
    """
    if not checkpoint.exists():
        return None
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    seconds = content["callbacks"][snapshots.state_key]["seconds"]
    done = content["global_step"] >= training_steps and set(seconds) == set(snapshots.steps)
    return seconds if done and all(snapshots.path(step).exists() for step in seconds) else None


def load_snapshot(
    model: DdpmSt,
    weights: Path,
    datamodule: MVTecAD,
    seed: int,
    renew_memory: bool = False,
) -> None:
    """Load kept weights and calibrate their scores, which training does only when it ends.

    Args:
        model (DdpmSt): Model to load into.
        weights (Path): File of the weights.
        datamodule (MVTecAD): Data of the training, set up.
        seed (int): Seed of the calibration.
        renew_memory (bool): Refill the memory bank. Defaults to ``False``.
    """
    # The layout of training: another one would round sums differently.
    model.model.to(memory_format=torch.channels_last)
    state = torch.load(weights, weights_only=True)
    weights_of_model = {key.removeprefix("model."): state[key] for key in state if key.startswith("model.")}
    frame = weights_of_model.get("pose_frame")
    if frame is not None:
        # Frames had no margins before there could be padding around images.
        weights_of_model["pose_frame"] = functional.pad(frame, (0, len(model.model.pose_frame) - len(frame)))
    model.model.load_state_dict(upgrade_weights(weights_of_model, model.model.state_dict()))
    torch.manual_seed(seed)
    model.calibrate_scores(datamodule, renew_memory)


def run(
    category: str,
    seed: int,
    fractions: Sequence[float],
    arguments: dict[str, Any],
    data_root: Path,
    precision: str,
    folder: Path,
    renew_memory: bool = False,
) -> list[dict[str, Any]]:
    """Train once and measure the weights along the way.

    Args:
        category (str): Name of the category.
        seed (int): Seed.
        fractions (Sequence[float]): Fractions of the schedule to measure after.
        arguments (dict[str, Any]): Init arguments of :class:`DdpmSt`.
        data_root (Path): Folder of the categories.
        precision (str): Precision of the Trainer in training; measured in FP32.
        folder (Path): Folder for weights. Training resumes from a checkpoint in it; a complete training is only
            measured.
        renew_memory (bool): Refill the memory bank before measuring. Defaults to ``False``.

    Returns:
        list[dict[str, Any]]: One row for each fraction.
    """
    seed_everything(seed, verbose=False)
    model = DdpmSt(evaluator=raw_evaluator(), post_processor=False, visualizer=False, **arguments)
    datamodule = make_mvtec(data_root, category)
    snapshots = Snapshots([round(fraction * model.training_steps) for fraction in fractions], folder)
    checkpoint = folder / f"{CHECKPOINT}.ckpt"
    interval = min(CHECKPOINT_STEPS, model.training_steps)
    keep = ModelCheckpoint(folder, CHECKPOINT, every_n_train_steps=interval, enable_version_counter=False)
    seconds = finished(checkpoint, snapshots, model.training_steps)
    if seconds is None:
        engine = make_training_engine(precision, default_root_dir=folder, callbacks=[snapshots, keep])
        engine.fit(model, datamodule=datamodule, ckpt_path=checkpoint if checkpoint.exists() else None)
        seconds = snapshots.seconds
    datamodule.setup()
    rows = []
    for step, elapsed in seconds.items():
        load_snapshot(model, snapshots.path(step), datamodule, seed, renew_memory)
        metrics = measure(model, datamodule, verbose=False, default_root_dir=folder)
        row = {"category": category, "seed": seed, "commit": commit(), "step": step, "seconds": round(elapsed, 1)}
        rows.append({**row, **metrics})
    return rows


def save_plot(table: pd.DataFrame, path: Path) -> None:
    """Plot each metric against the time.

    Args:
        table (pd.DataFrame): Rows of the CSV file.
        path (Path): PNG file.
    """
    runs = {
        f"{category}, seed {seed}": run for (category, seed), run in table.groupby(["category", "seed"], sort=False)
    }
    panels = {
        f"{metric} in %": {name: (run["seconds"] / 60, run[metric]) for name, run in runs.items()} for metric in METRICS
    }
    save_lines(panels, "minutes of training, with DDPM and bank", path)


def main() -> None:
    """Run the missing curves and plot all of them."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/curve.csv")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
    parser.add_argument("--cache-dir", type=str | None, default=None, help="By default a new one for each curve.")
    parser.add_argument("--weights-dir", type=Path | None, default=None, help="Keep the weights here.")
    parser.add_argument("--accuracy-output", type=Path | None, default=None, help="Table of accuracy.py to append to.")
    parser.add_argument("--model-arguments", type=dict, default={}, help="Further init arguments of DdpmSt, as JSON.")
    parser.add_argument("--renew-memory", type=bool, default=False, help=RENEW_MEMORY_HELP)
    options = parser.parse_args()
    for seed, category in product(options.seeds, options.categories):
        if has_row(options.output, category=category, seed=seed):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if options.weights_dir is None else options.weights_dir / f"{category}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            arguments = ddpm_st_arguments(
                options.teacher_weights,
                options.cache_dir,
                temporary,
                options.model_arguments,
            )
            rows = run(
                category,
                seed,
                options.fractions,
                arguments,
                options.data_root,
                options.precision,
                folder,
                options.renew_memory,
            )
        for row in rows:
            append_row(options.output, row)
            logger.warning("%s", row)
        if options.accuracy_output is not None and max(options.fractions) == 1:
            last = {name: value for name, value in rows[-1].items() if name != "step"}
            append_row(options.accuracy_output, {"model": DdpmSt.__name__, **last})
        save_plot(read_table(options.output), options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
