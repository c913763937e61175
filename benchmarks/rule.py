# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The rule by which variants are ranked on drawn defects, and its check against rankings that are known.

Example:
    python benchmarks/rule.py --categories screw --weights-dir WEIGHTS --known benchmarks/results/curve_pose.csv
    python benchmarks/rule.py --categories screw --pose true

The value of a family of drawn defects (see :mod:`validation`) is the mean of image AUROC and pixel AUPR of its images
and the normal ones. The family with the lowest value decides. Which one it is may differ by variant: what is gained on
one family must not be lost on another.

With ``--weights-dir``, the weights of ``curve.py`` after some steps are variants; ``--known`` is the table of the same
training on test images. With ``--pose true``, the memory bank alone with parts as they lie and turned to one pose are
variants. It is filled without the held-out parts. Trainings of ``curve.py`` have seen all normal images, so scores of
normal images are lower than those of new ones would be.
"""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from anomalib.data import Batch, Folder
from anomalib.data.utils import ValSplitMode
from anomalib.metrics import AUPR, AUROC
from common import append_rows, commit, has_row, make_mvtec, make_parser, measure, raw_evaluator, read_table
from curve import load_snapshot
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from validation import FAMILIES, FAMILY_OF, split, write_validation_set

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.core.images import NormalImages, evenly_spaced
from anomalib_ddpm_st.detector.augmentation import MAX_REFERENCES
from anomalib_ddpm_st.detector.normal_reference import NormalReference
from anomalib_ddpm_st.detector.pose_selection import select_pose

logger = logging.getLogger(__name__)

FAMILY_METRICS = ("image_AUROC", "pixel_AUPR")
CELL = ["category", "seed"]


class FamilyEvaluator(Callback):
    """Metrics of a test on drawn defects by family: its images against all normal ones."""

    def __init__(self) -> None:
        self.batches: list[SimpleNamespace] = []
        self.families: list[str] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Batch,
        *args: object,
        **kwargs: object,
    ) -> None:
        """Keep the predictions of a batch."""
        del trainer, pl_module, outputs, args, kwargs
        self.families += [family_of(path) for path in batch.image_path]
        fields = ("pred_score", "gt_label", "anomaly_map", "gt_mask")
        self.batches.append(SimpleNamespace(**{name: getattr(batch, name).detach().cpu() for name in fields}))

    def table(self) -> pd.DataFrame:
        """Rows with family, number of its images and ``FAMILY_METRICS`` in percent."""
        fields = {name: torch.cat([getattr(batch, name) for batch in self.batches]) for name in vars(self.batches[0])}
        rows = []
        for family in FAMILIES:
            chosen = torch.tensor([name in {family, ""} for name in self.families])
            count = self.families.count(family)
            if count:
                part = SimpleNamespace(**{name: values[chosen] for name, values in fields.items()})
                rows.append({"family": family, "images": count, **_measure_part(part)})
        return pd.DataFrame(rows)


def _measure_part(predictions: SimpleNamespace) -> dict[str, float]:
    """Image AUROC and pixel AUPR in percent."""
    metrics = AUROC(fields=["pred_score", "gt_label"]), AUPR(fields=["anomaly_map", "gt_mask"])
    values = {}
    for name, metric in zip(FAMILY_METRICS, metrics, strict=True):
        metric.update(predictions)
        values[name] = round(100 * float(metric.compute()), 3)
    return values


def family_of(path: str | Path) -> str:
    """Family of a file of the validation set, ``""`` if it is a normal image."""
    return FAMILY_OF.get(Path(path).stem.rpartition("_")[2], "") if Path(path).parent.name == "defect" else ""


def rank(table: pd.DataFrame) -> pd.DataFrame:
    """Rank variants by their worst family.

    Seeds are averaged first. The worst family is that of each data set, and ``worst`` the mean over data sets, so that
    the hardest one does not decide alone. Only data sets and seeds that all variants have count.

    Args:
        table (pd.DataFrame): Rows with variant, category, seed, family and ``FAMILY_METRICS``.

    Returns:
        pd.DataFrame: Means over families, value of the worst family and which one it is in each data set, by variant,
        the best first.
    """
    complete = table.groupby(CELL)["variant"].transform("nunique") == table["variant"].nunique()
    values = table[complete].assign(value=table[list(FAMILY_METRICS)].mean(axis=1))
    families = values.groupby(["variant", "category", "family"], sort=False)[[*FAMILY_METRICS, "value"]].mean()
    sets = families.groupby(["variant", "category"], sort=False)
    by_set = sets.mean().add_prefix("mean_")
    by_set["worst"] = sets["value"].min()
    ranked = by_set.groupby("variant", sort=False).mean()
    lowest = pd.DataFrame(list(sets["value"].idxmin()), columns=["variant", "category", "family"])
    lowest["family"] = lowest["category"] + ": " + lowest["family"]
    ranked["worst_family"] = lowest.groupby("variant")["family"].agg(", ".join)
    return ranked.sort_values("worst", ascending=False, kind="stable")


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


def measure_families(model: DdpmSt, folder: Path, **trainer_arguments: Any) -> tuple[dict[str, float], pd.DataFrame]:  # noqa: ANN401
    """Measure a model on a validation set.

    Args:
        model (DdpmSt): Model.
        folder (Path): Folder of the validation set.
        **trainer_arguments: Further arguments of the Trainer.

    Returns:
        tuple[dict[str, float], pd.DataFrame]: Metrics in percent over all images, and rows by family.
    """
    evaluator = FamilyEvaluator()
    data = validation_datamodule(folder)
    metrics = measure(model, data, verbose=False, callbacks=[evaluator], **trainer_arguments)
    return metrics, evaluator.table()


def snapshots(folder: Path, data_root: Path, category: str, seed: int) -> dict[str, Callable[[], DdpmSt]]:
    """Loaders of the weights that ``curve.py`` kept, by step."""

    def load(path: Path) -> DdpmSt:
        datamodule = make_mvtec(data_root, category, num_workers=0)
        datamodule.setup()
        model = DdpmSt(evaluator=raw_evaluator(), post_processor=False, visualizer=False)
        load_snapshot(model, path, datamodule, seed)
        return model.eval()

    paths = sorted(folder.glob("step*.pt"), key=lambda path: int(path.stem.removeprefix("step")))
    return {path.stem: partial(load, path) for path in paths}


def poses(train: list[str], seed: int, teacher_weights: str | None) -> dict[str, Callable[[], DdpmSt]]:
    """Loaders of memory banks of parts as they lie and, if the normal images choose so, turned to one pose."""

    def load(*, turned: bool) -> DdpmSt:
        seed_everything(seed, verbose=False)
        model = DdpmSt(evaluator=raw_evaluator(), post_processor=False, visualizer=False)
        model.model.teacher.load_weights(teacher_weights)
        model.model.component_weights = [0.0, 0.0, 1.0]
        images = NormalImages.from_files(train, model.input_size)
        if turned:
            pose, reason = select_pose(images.load(MAX_REFERENCES), images.aspect(), model.model.teacher)
            logger.warning("%s.", reason)
            model.model.set_pose(pose)
        pixels = images.turn(model.model.pose).load(MAX_REFERENCES)
        with torch.no_grad():
            NormalReference(model.model, pixels).fill_memory_bank(pixels)
        return model.eval()

    return {"pose=off": partial(load, turned=False), "pose=auto": partial(load, turned=True)}


def compare_with_known(ranked: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Put the test results of the same weights next to a ranking.

    Args:
        ranked (pd.DataFrame): Result of :func:`rank` with variants such as ``step600``.
        known (pd.DataFrame): Rows of ``curve.py``, of the same data sets and seeds.

    Returns:
        pd.DataFrame: The ranking with the columns ``test_image_AUROC``, ``test_pixel_AUPR`` and their mean ``test``.
    """
    results = known.groupby("step" + known["step"].astype(str))[list(FAMILY_METRICS)].mean()
    results["value"] = results.mean(axis=1)
    return ranked.join(results.add_prefix("test_"))


def main() -> None:
    """Measure the missing variants and rank all of them."""
    parser = make_parser(__doc__, ["screw"], "benchmarks/results/rule.csv")
    parser.add_argument("--weights-dir", type=Path | None, default=None, help="Weights of curve.py.")
    parser.add_argument("--pose", type=bool, default=False, help="Compare parts as they lie and turned.")
    parser.add_argument("--known", type=Path | None, default=None, help="Table of curve.py with the test results.")
    parser.add_argument("--variants", nargs="+", default=[], help="Only these, such as step600. By default all.")
    parser.add_argument("--images", type=int, default=32, help="Held-out normal images to draw on.")
    options = parser.parse_args()
    quiet: dict[str, Any] = {"enable_model_summary": False, "enable_progress_bar": False}
    for category in options.categories:
        train, held_out = split([str(path) for path in (options.data_root / category / "train" / "good").iterdir()])
        chosen = [held_out[int(index)] for index in evenly_spaced(len(held_out), options.images)]
        with tempfile.TemporaryDirectory() as work_dir:
            folder = Path(work_dir) / category
            write_validation_set(chosen, folder)
            for seed in options.seeds:
                loaders = poses(train, seed, options.teacher_weights) if options.pose else {}
                if options.weights_dir is not None:
                    weights = options.weights_dir / f"{category}-{seed}"
                    loaders |= snapshots(weights, options.data_root, category, seed)
                for variant, load in loaders.items():
                    key = {"variant": variant, "category": category, "seed": seed}
                    if options.variants and variant not in options.variants:
                        continue
                    if has_row(options.output, **key):
                        continue
                    metrics, families = measure_families(load(), folder, default_root_dir=work_dir, **quiet)
                    logger.warning("%s: %s\n%s", key, metrics, families.to_string(index=False))
                    append_rows(
                        options.output, [{**key, "commit": commit(), **row} for row in families.to_dict("records")]
                    )
    ranked = rank(read_table(options.output))
    if options.known is not None:
        known = read_table(options.known)
        known = known[known["category"].isin(options.categories) & known["seed"].isin(options.seeds)]
        ranked = compare_with_known(ranked, known)
    logger.warning("The best first:\n%s", ranked.round(1).to_string())


if __name__ == "__main__":
    main()
