# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Table of variants of DdpmSt: what each part of the method is worth.

Example:
    python benchmarks/ablation.py --categories bottle screw magnetic_tile --seeds 1 --budget short

Each cell is a row of the output; a cell whose row is there is not run again, so an interrupted table goes on where it
was. Three files are written: ``ablation.csv`` with the test set, ``ablation_validation.csv`` with the validation set of
drawn defects (see ``validation.py``), which is the one that choices are made by, and ``ablation_faint.csv`` with the
same defects at a third of their strength, which also tells variants apart that find all the plain ones. Budgets:

- short: 128 px, 300 detector steps of 8, a DDPM of 800 steps of 8, a bank of 160; trained on four fifths of the normal
  images, the rest is for validation. Textures of 256 px images are not what this measures, nor what a long training
  learns by heart.
- long: the same with 1200 detector steps.
- sharp: the same split, at the shipped image size, DDPM and bank, with 600 detector steps: what surfaces with fine
  structure are judged by.
- full: the shipped defaults on all normal images; no validation set, so nothing can be chosen by it.

``seconds`` is the detector's training alone: DDPMs and banks come from a cache that the cells share.
"""

import gc
import itertools
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

from anomalib.data import Folder, MVTecAD
from anomalib.data.utils import ValSplitMode
from common import (
    append_row,
    commit,
    make_mvtec,
    make_parser,
    make_training_engine,
    measure,
    raw_evaluator,
    read_rows,
)
from lightning.pytorch import seed_everything
from validation import split, write_validation_set

from anomalib_ddpm_st import DdpmSt

logger = logging.getLogger(__name__)

Budget = Literal["short", "long", "sharp", "full"]

# Visibility of the drawn defects in each validation set.
VALIDATION_SETS = {"validation": 1.0, "faint": 0.35}
SHORT_SIZE = (128, 128)
SHORT: dict[str, Any] = {"training_steps": 300, "diffusion_steps": 800, "bank_size": 160, "top_k": 25}
SETTINGS: dict[Budget, dict[str, Any]] = {
    "short": SHORT,
    "long": {**SHORT, "training_steps": 1200},
    "sharp": {"training_steps": 600},
    "full": {},
}

SEGMENTATION_ALONE = {"distance_weight": 0.0, "memory_weight": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    # Source of the defects; the default is a mixture of diffusion, paired with normal images, and self-textures.
    "default": {},
    "synthesis=none": {"synthesis": "none", "segmentation_weight": 0.0, "distance_weight": 1.0},
    "synthesis=noise": {"synthesis": "noise"},
    "synthesis=self_texture": {"synthesis": "self_texture"},
    "synthesis=diffusion_from_noise": {"synthesis": "diffusion", "from_noise": 1.0},
    "synthesis=diffusion_inpaint": {"synthesis": "diffusion", "inpaint": True},
    "synthesis=diffusion": {"synthesis": "diffusion"},
    # Perturbation of the reverse steps.
    "perturbation=scaled": {"perturbation": "scaled", "strength": [1.0, 20.0]},
    "strength=weak": {"strength": [0.2, 0.6]},
    "strength=strong": {"strength": [1.0, 3.0]},
    "strength=fixed": {"strength": [1.0, 1.0]},
    # Reverse steps of a texture.
    "sampling_steps=2": {"synthesis": "diffusion", "sampling_steps": 2},
    "sampling_steps=5": {"synthesis": "diffusion", "sampling_steps": 5},
    "sampling_steps=20": {"synthesis": "diffusion", "sampling_steps": 20},
    "sampling_steps=50": {"synthesis": "diffusion", "sampling_steps": 50},
    # From textures to defects.
    "local=0": {"local": 0.0},
    "contrast=off": {"contrast": [0.0, 0.0]},
    "contour=0.5": {"contour": 0.5},
    "jitter=0": {"jitter": 0.0},
    "soft=0": {"soft": 0.0},
    "filled=0": {"filled": 0.0},
    "displacement=0": {"displacement": 0.0},
    "augmentation=none": {"augmentation": "none"},
    "variation=0": {"variation": 0.0},
    "mixup=0.3": {"mixup": 0.3},
    # Detector.
    "loss=cosine": {"segmentation_weight": 0.0, "distance_weight": 1.0},
    "map=segmentation": SEGMENTATION_ALONE,
    "map=memory": {"memory_weight": 1.0},
    # What the defects teach shows in the segmentation: the other two thirds of the map hardly depend on them.
    "synthesis=self_texture, map=segmentation": {"synthesis": "self_texture", **SEGMENTATION_ALONE},
    "synthesis=diffusion, map=segmentation": {"synthesis": "diffusion", **SEGMENTATION_ALONE},
    "memory=0": {"memory_weight": 0.0},
    "memory=512": {"memory_size": 512},
    "student=symmetric": {"student": "symmetric"},
    "student=encoder": {"student": "encoder"},
    "head_input=distance": {"head_input": "distance"},
    "head_input=both": {"head_input": "both"},
    "learning_rate=1e-3": {"learning_rate": 1e-3},
}


def make_datamodule(
    data_root: Path,
    category: str,
    budget: Budget,
    batch_size: int,
    cache_dir: Path,
) -> tuple[MVTecAD, list[str]]:
    """Data of one category.

    Args:
        data_root (Path): Folder of the categories.
        category (str): Name of the category.
        budget (Budget): All but ``"full"`` hold normal images out of training.
        batch_size (int): Images of a training step.
        cache_dir (Path): Folder that gets a copy without the images that are held out.

    Returns:
        tuple[MVTecAD, list[str]]: Datamodule, and the normal images that are held out.
    """
    held_out: list[str] = []
    if budget != "full":
        category_dir = (data_root / category).resolve()
        _, held_out = split([str(path) for path in (category_dir / "train" / "good").iterdir()])
        # A copy, since a datamodule reads its folder again whenever it is set up, and follows no links out of it.
        data_root = cache_dir / "data"
        if not (data_root / category).exists():
            partial = data_root / f"{category}.partial"
            shutil.copytree(
                category_dir,
                partial,
                ignore=lambda folder, names: [name for name in names if str(Path(folder) / name) in held_out],
                dirs_exist_ok=True,
            )
            partial.rename(data_root / category)
    return make_mvtec(data_root, category, batch_size, eval_batch_size=16, num_workers=0), held_out


def validation_datamodule(folder: Path) -> Folder:
    """Datamodule whose test set is the validation set of drawn defects."""
    return Folder(
        name="validation",
        root=folder,
        normal_dir="good",
        normal_test_dir="good",
        abnormal_dir="defect",
        mask_dir="mask",
        eval_batch_size=16,
        num_workers=0,
        val_split_mode=ValSplitMode.NONE,
    )


def run_cell(
    arguments: dict[str, Any],
    category: str,
    seed: int,
    budget: Budget,
    data_root: Path,
    cache_dir: Path,
    precision: str = "32-true",
    batch_size: int = 8,
) -> tuple[float, dict[str, dict[str, float]]]:
    """Train one variant and measure it.

    Args:
        arguments (dict[str, Any]): Init arguments of :class:`DdpmSt`.
        category (str): Name of the category.
        seed (int): Seed of the detector's training.
        budget (Budget): One of the four above.
        data_root (Path): Folder of the categories.
        cache_dir (Path): Cache of DDPMs, banks and validation sets.
        precision (str): Precision of the Trainer while training; measured in 32 bit.
        batch_size (int): Images of a training step.

    Returns:
        tuple[float, dict[str, dict[str, float]]]: Seconds of the detector's training, and metrics in percent by set.
    """
    seed_everything(seed, verbose=False)
    datamodule, held_out = make_datamodule(data_root, category, budget, batch_size, cache_dir)
    size = SHORT_SIZE if budget in {"short", "long"} else None
    arguments = {"pre_processor": DdpmSt.configure_pre_processor(size), **SETTINGS[budget], **arguments}
    model = DdpmSt(
        cache_dir=str(cache_dir),
        evaluator=raw_evaluator(),
        post_processor=False,
        visualizer=False,
        **arguments,
    )
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work_dir:
        quiet: dict[str, Any] = {
            "default_root_dir": work_dir,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        }
        engine = make_training_engine(precision, **quiet)
        engine.fit(model, datamodule=datamodule)
        sets: dict[str, MVTecAD | Folder] = {"test": datamodule}
        for name, visibility in VALIDATION_SETS.items() if held_out else ():
            folder = cache_dir / f"{name}-{category}"
            write_validation_set(held_out, folder, visibility=visibility)
            sets[name] = validation_datamodule(folder)
        for name, data in sets.items():
            results[name] = measure(model, data, verbose=False, **quiet)
    seconds = model.stage_seconds["detector"]
    del model, engine
    gc.collect()
    return seconds, results


def finished_cells(path: Path) -> set[tuple[str, str, str, str]]:
    """Variant, category, seed and budget of the rows of a file."""
    return {(row["variant"], row["category"], row["seed"], row["budget"]) for row in read_rows(path)}


def main() -> None:
    """Run the cells of the table that are not there yet."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/ablation.csv")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--budget", type=Budget, default="short")
    parser.add_argument("--cache-dir", type=Path, default=Path("ablation_cache"))
    options = parser.parse_args()
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    outputs = {name: options.output.with_stem(f"{options.output.stem}_{name}") for name in VALIDATION_SETS}
    for variant, seed, category in itertools.product(options.variants, options.seeds, options.categories):
        key = (variant, category, str(seed), options.budget)
        if key in finished_cells(options.output):
            continue
        seconds, results = run_cell(
            {"teacher_weights": options.teacher_weights, **VARIANTS[variant]},
            category,
            seed,
            options.budget,
            options.data_root,
            options.cache_dir,
            options.precision,
        )
        cell = {
            "variant": variant,
            "category": category,
            "seed": seed,
            "budget": options.budget,
            "commit": commit(),
            "seconds": round(seconds, 1),
        }
        # The test row comes last: it is the one that says the cell is done.
        for name, path in {**outputs, "test": options.output}.items():
            if name in results and key not in finished_cells(path):
                append_row(path, {**cell, **results[name]})
        logger.warning("%s, %s, seed %d: %s", variant, category, seed, results)


if __name__ == "__main__":
    main()
