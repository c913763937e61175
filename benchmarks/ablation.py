# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Table of variants of DdpmSt: what each part of the method is worth.

Example:
    python benchmarks/ablation.py --categories bottle screw magnetic_tile --seeds 1 --budget short

Each cell is a row of the output. Existing rows are skipped, so an interrupted table resumes where it stopped. Four
files are written: ``ablation.csv`` with the test set; ``ablation_validation.csv`` with the validation set of drawn
defects (see ``validation.py``), which settings are chosen by; ``ablation_faint.csv`` with the same defects at a third
of their visibility, which also separates variants that find all the plain ones; and ``ablation_families.csv`` with both
by family of defects, the worst of which decides (see ``rule.py``). Budgets:

- short: 128 px, 300 detector steps of 8, a DDPM of 800 steps of 8, a bank of 160; trained on four fifths of the normal
  images, the rest is for validation. It measures neither textures of 256 px images nor what a long training memorises.
- long: the same with 1200 detector steps.
- sharp: the same split, at the shipped image size, DDPM and bank, with 600 detector steps, for surfaces with fine
  structure.
- full: the shipped defaults on all normal images; without a validation set, so nothing can be chosen by it.

``seconds`` is the detector's training alone: DDPMs and banks come from a cache that the cells share. At the end the
script prints the mean gain of each variant over the first one, with its standard error, and ranks variants by their
worst family.
"""

import gc
import itertools
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from anomalib.data import MVTecAD
from common import (
    METRICS,
    append_row,
    append_rows,
    commit,
    has_row,
    make_mvtec,
    make_parser,
    make_training_engine,
    measure,
    merge,
    raw_evaluator,
    read_table,
)
from lightning.pytorch import seed_everything
from rule import measure_families, rank
from validation import split, write_validation_set

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.detector import DdpmStModel

logger = logging.getLogger(__name__)

Budget = Literal["short", "long", "sharp", "full"]

# Visibility of the drawn defects in each validation set.
VALIDATION_SETS = {"validation": 1.0, "faint": 0.35}
SHORT_SIZE = (128, 128)
SHORT: dict[str, Any] = {
    "training_steps": 300,
    "diffusion": {"training_steps": 800},
    "bank": {"size": 160},
    "top_k": 25,
}
SETTINGS: dict[Budget, dict[str, Any]] = {
    "short": SHORT,
    "long": {**SHORT, "training_steps": 1200},
    "sharp": {"training_steps": 600},
    "full": {},
}


@dataclass(frozen=True)
class Variant:
    """Variant of the detector.

    Attributes:
        arguments (Mapping[str, Any]): Init arguments of :class:`DdpmSt`, merged with those of the budget.
        control (Callable[[DdpmStModel], DdpmStModel] | None): Builds a control, which is no option of the package,
            from the parts of the default network. Defaults to ``None``.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    control: Callable[[DdpmStModel], DdpmStModel] | None = None

    def build(self, **arguments: Any) -> DdpmSt:  # noqa: ANN401
        """Build the model.

        Args:
            **arguments: Init arguments of :class:`DdpmSt`; those of the variant win.

        Returns:
            DdpmSt: Model.
        """
        model = DdpmSt(**merge(arguments, self.arguments))
        if self.control is not None:
            model.model = self.control(model.model)
        return model


def segmentation_alone(model: DdpmStModel) -> DdpmStModel:
    """Detector whose map is the segmentation alone, the only component that learns from the defects."""
    return DdpmStModel(model.teacher, model.student, model.head, component_weights=(1.0, 0.0), top_k=model.top_k)


def equal_weights(model: DdpmStModel) -> DdpmStModel:
    """Detector whose three components count the same."""
    parts = (model.teacher, model.student, model.head, model.memory_bank)
    return DdpmStModel(*parts, component_weights=(1 / 3, 1 / 3, 1 / 3), top_k=model.top_k)


SELF_TEXTURE = {"defects": {"source": "self_texture"}}
DIFFUSION = {"defects": {"source": "diffusion"}}
# Labels are those of the result files: where an option was renamed, they keep its old name.
VARIANTS: dict[str, Variant] = {
    # Source of the textures; the default is a mixture of both.
    "default": Variant(),
    "synthesis=self_texture": Variant(SELF_TEXTURE),
    "synthesis=diffusion": Variant(DIFFUSION),
    "synthesis=self_texture, map=segmentation": Variant(SELF_TEXTURE, segmentation_alone),
    "synthesis=diffusion, map=segmentation": Variant(DIFFUSION, segmentation_alone),
    # Reverse steps of a texture.
    **{
        f"sampling_steps={steps}": Variant({**DIFFUSION, "bank": {"num_inference_steps": steps}})
        for steps in (2, 5, 20, 50)
    },
    # Shape of the masks.
    "local=0": Variant({"defects": {"p_local": 0.0}}),
    "filled=0": Variant({"defects": {"p_filled": 0.0}}),
    "soft=0": Variant({"defects": {"p_soft": 0.0}}),
    # Displaced, turned, doubled and missing parts.
    "parts=0": Variant({"defects": {"p_parts": 0.0}}),
    "weights=equal": Variant(control=equal_weights),
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
        budget (Budget): All but ``"full"`` hold out normal images.
        batch_size (int): Images per training step.
        cache_dir (Path): Folder for a copy without the held-out images.

    Returns:
        tuple[MVTecAD, list[str]]: Datamodule, and the held-out normal images.
    """
    held_out: list[str] = []
    if budget != "full":
        category_dir = (data_root / category).resolve()
        _, held_out = split([str(path) for path in (category_dir / "train" / "good").iterdir()])
        # A copy, since a datamodule reads its folder again at every setup and follows no links out of it.
        data_root = cache_dir / "whole_parts"
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


def run_cell(
    variant: Variant,
    category: str,
    seed: int,
    budget: Budget,
    data_root: Path,
    cache_dir: Path,
    teacher_weights: str | None,
    precision: str = "32-true",
    batch_size: int = 8,
) -> tuple[float, dict[str, dict[str, float]], pd.DataFrame]:
    """Train one variant and measure it.

    Args:
        variant (Variant): Variant.
        category (str): Name of the category.
        seed (int): Seed of the detector's training.
        budget (Budget): One of the four above.
        data_root (Path): Folder of the categories.
        cache_dir (Path): Cache of DDPMs, banks and validation sets.
        teacher_weights (str | None): Local weights, or ``None`` to download them.
        precision (str): Precision of the Trainer in training; measured in FP32. Defaults to ``"32-true"``.
        batch_size (int): Images per training step. Defaults to ``8``.

    Returns:
        tuple[float, dict[str, dict[str, float]], pd.DataFrame]: Seconds of the detector's training, metrics in percent
        by set, and rows of each family by validation set, none at the full budget.
    """
    seed_everything(seed, verbose=False)
    datamodule, held_out = make_datamodule(data_root, category, budget, batch_size, cache_dir)
    model = variant.build(
        pre_processor=DdpmSt.configure_pre_processor(SHORT_SIZE if budget in {"short", "long"} else None),
        teacher_weights=teacher_weights,
        cache_dir=str(cache_dir),
        evaluator=raw_evaluator(),
        post_processor=False,
        visualizer=False,
        **SETTINGS[budget],
    )
    results: dict[str, dict[str, float]] = {}
    families = [pd.DataFrame()]
    with tempfile.TemporaryDirectory() as work_dir:
        quiet: dict[str, Any] = {
            "default_root_dir": work_dir,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        }
        engine = make_training_engine(precision, **quiet)
        engine.fit(model, datamodule=datamodule)
        results["test"] = measure(model, datamodule, verbose=False, **quiet)
        for name, visibility in VALIDATION_SETS.items() if held_out else ():
            folder = cache_dir / f"families_{name}-{category}"
            write_validation_set(held_out, folder, visibility=visibility)
            results[name], table = measure_families(model, folder, **quiet)
            families.append(table.assign(set=name))
    seconds = model.stage_seconds["detector"]
    del model, engine
    gc.collect()
    return seconds, results, pd.concat(families)


def gains(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Gain of each variant over a baseline, paired by category, seed and budget.

    Args:
        table (pd.DataFrame): Rows of one file.
        baseline (str): Label of a variant.

    Returns:
        pd.DataFrame: Mean gain in points, its standard error and the number of pairs, by variant and metric.
    """
    cell = ["category", "seed", "budget", "metric"]
    rows = table.melt(["variant", *cell[:-1]], METRICS, "metric", "value")
    pairs = rows.merge(rows[rows["variant"] == baseline], on=cell, suffixes=("", "_baseline"))
    pairs["gain"] = pairs["value"] - pairs["value_baseline"]
    others = pairs[pairs["variant"] != baseline]
    return others.groupby(["variant", "metric"], sort=False)["gain"].agg(["mean", "sem", "count"])


def main() -> None:
    """Run the missing cells of the table and print the gains over the first variant."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/ablation.csv")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--budget", type=Budget, default="short")
    parser.add_argument("--cache-dir", type=Path, default=Path("ablation_cache"))
    options = parser.parse_args()
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    outputs = {name: options.output.with_stem(f"{options.output.stem}_{name}") for name in VALIDATION_SETS}
    by_family = options.output.with_stem(f"{options.output.stem}_families")
    for variant, seed, category in itertools.product(options.variants, options.seeds, options.categories):
        key = {"variant": variant, "category": category, "seed": seed, "budget": options.budget}
        if has_row(options.output, **key):
            continue
        seconds, results, families = run_cell(
            VARIANTS[variant],
            category,
            seed,
            options.budget,
            options.data_root,
            options.cache_dir,
            options.teacher_weights,
            options.precision,
        )
        cell = {**key, "commit": commit(), "seconds": round(seconds, 1)}
        if len(families) and not has_row(by_family, **key):
            append_rows(by_family, [{**key, "commit": cell["commit"], **row} for row in families.to_dict("records")])
        # The test row comes last: it marks the cell as finished.
        for name, path in {**outputs, "test": options.output}.items():
            if name in results and not has_row(path, **key):
                append_row(path, {**cell, **results[name]})
        logger.warning("%s, %s, seed %d: %s", variant, category, seed, results)
    if len(options.variants) > 1:
        report(options.variants, options.budget, [options.output, *outputs.values()], by_family)


def report(variants: list[str], budget: Budget, tables: list[Path], by_family: Path) -> None:
    """Print the gains over the first variant, and the ranks by the worst family.

    Args:
        variants (list[str]): Labels of the variants.
        budget (Budget): Budget of the rows.
        tables (list[Path]): Tables of all sets.
        by_family (Path): Table of the families.
    """

    def read(path: Path) -> pd.DataFrame:
        table = read_table(path)
        return table[table["variant"].isin(variants) & (table["budget"] == budget)] if len(table) else table

    for path in tables:
        rows = read(path)
        if len(rows):
            gained = gains(rows, variants[0]).round(2).to_string()
            logger.warning("%s, gains over %s:\n%s", path.stem, variants[0], gained)
    rows = read(by_family)
    for name in VALIDATION_SETS if len(rows) else ():
        ranked = rank(rows[rows["set"] == name]).round(1).to_string()
        logger.warning("%s, %s, ranked by the worst family:\n%s", by_family.stem, name, ranked)


if __name__ == "__main__":
    main()
