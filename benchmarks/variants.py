# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Does the detector work with any pre-processor?

Example:
    python benchmarks/variants.py --steps 100 --batch-size 4 --train-images 100 --precision bf16-mixed

With these options the whole table takes about 35 minutes of one core of an Intel Xeon with AMX, and about 50 in FP32.

Each category is learnt with each of ten pre-processors (``VARIANTS``), all in the same way. If training reads its
images in another way than a test does, in any of its stages, good test images look unlike anything that was learnt:
their scores rise and image AUROC falls. The training is short, so accuracies are far below those of ``accuracy.py``;
compare rows of this table with each other only. Each row holds

- ``score_train``, ``score_good``, ``score_defective``: mean raw scores of normal training images, of good test images
  and of defective ones, all of them through the Engine;
- ``image_AUROC``, ``pixel_AUPR``: on the test set, in percent, by raw scores;
- ``pixel_difference``: mean difference, in levels of 255, between the training images as memory bank and calibration
  read them and as the Engine gives them to the detector. Rounding makes at most 0.25. Bicubic overshoots, which only
  the Engine keeps, add to it, and so does anomalib where images of several sizes meet in a batch: it stretches them to
  one size;
- ``score_good_minus_plain``, ``auroc_minus_plain``: difference to the first variant, in the same category;
- ``outside``, for variants that crop: the defective test images with more than half of their defect outside of the
  crop, and those of them with all of it; ``image_AUROC_inside`` leaves them out, and ``auroc_inside_minus_plain`` is
  the difference to the first variant without the same images.

At the top level, ``no_good_score_above_plain`` says whether each mean score of good test images is at most 0.1 above
the plain one, and ``no_auroc_below_plain`` whether each image AUROC is at most 2 points below it; the rows that are not
are listed. Existing rows with the same settings are skipped, so an interrupted table resumes where it stopped; one with
other settings is replaced. A plot is saved next to the table.

By default the defects are shuffled tiles, so that no DDPM is trained. ``--source mixture`` trains a short one for each
row, which takes much longer.
"""

import json
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, cast

import matplotlib.pyplot as plt
import torch
from anomalib.data import ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.metrics import AUPR, AUROC, Evaluator
from anomalib.pre_processing import PreProcessor
from common import commit, ddpm_st_arguments, make_mvtec, make_training_engine, merge, save_record
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2 import CenterCrop, Compose, Grayscale, InterpolationMode, Pad, Resize
from torchvision.tv_tensors import Mask

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.core.images import NormalImages, evenly_spaced

logger = logging.getLogger(__name__)

Row = dict[str, Any]

MAX_SCORE_ABOVE = 0.1
MAX_AUROC_BELOW = 2.0
# Settings of a short stage 1 and 2.
SOURCES: dict[str, dict[str, Any]] = {
    "self_texture": {},
    "mixture": {"diffusion": {"training_steps": 100}, "bank": {"size": 32}},
}


@dataclass(frozen=True)
class Variant:
    """Variant of the pre-processor.

    Attributes:
        transforms (tuple[nn.Module, ...]): Transforms of the pre-processor. Defaults to none, ``pre_processor=False``.
        file_size (tuple[int, int] | None): Height and width that image files are resized to beforehand. ``None`` takes
            them as they are. Defaults to ``None``.
    """

    transforms: tuple[nn.Module, ...] = ()
    file_size: tuple[int, int] | None = None

    @property
    def uncropped(self) -> tuple[nn.Module, ...]:
        """Transforms other than crops."""
        return tuple(transform for transform in self.transforms if not isinstance(transform, CenterCrop))

    @property
    def crops(self) -> bool:
        """Whether it crops."""
        return len(self.uncropped) < len(self.transforms)

    @property
    def pixels(self) -> int:
        """Number of pixels that the detector sees of a square image, which the time of a cell depends on."""
        image = torch.zeros(1, 3, *(self.file_size or (256, 256)))
        return nn.Sequential(*self.transforms)(image)[0, 0].numel()

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by name, as the record holds them."""
        return {
            "transforms": [str(part) for part in self.transforms],
            "file_size": self.file_size and [*self.file_size],
        }

    def pre_processor(self) -> PreProcessor | bool:
        """Pre-processor for :class:`DdpmSt`."""
        return PreProcessor(transform=Compose(list(self.transforms))) if self.transforms else False


def resize(size: int | tuple[int, int]) -> Resize:
    """Transform that resizes as the default pre-processor does; an ``int`` is the length of the shorter side."""
    return Resize(size, antialias=False)


PLAIN = "plain"
VARIANTS: dict[str, Variant] = {
    PLAIN: Variant((resize((256, 256)),)),
    "centre-crop": Variant((resize((256, 256)), CenterCrop(224))),
    "centre-crop-small": Variant((resize((160, 160)), CenterCrop(128))),
    "shorter-side": Variant((resize(144), CenterCrop(128))),
    "pad": Variant((resize((224, 224)), Pad(16))),
    "grey": Variant((resize((256, 256)), Grayscale(3))),
    "bicubic": Variant((Resize((256, 256), InterpolationMode.BICUBIC, antialias=True),)),
    "none": Variant(file_size=(128, 128)),
    "512": Variant((resize((512, 512)),)),
    "oblong": Variant((resize((96, 192)),)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Data


def copy_category(source: Path, target: Path, train_images: int | None, size: tuple[int, int] | None) -> None:
    """Copy a category in the layout of MVTec AD.

    Args:
        source (Path): Folder of the category.
        target (Path): Folder to copy to.
        train_images (int | None): Largest number of training images; of more, evenly spaced ones are copied. ``None``
            copies all.
        size (tuple[int, int] | None): Height and width to resize images and masks to. ``None`` keeps the files.
    """
    train = sorted((source / "train" / "good").iterdir())
    chosen = evenly_spaced(len(train), train_images or len(train)).tolist()
    files = [train[index] for index in chosen]
    files += [path for part in ("test", "ground_truth") for path in (source / part).rglob("*.*")]
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            shutil.copy(path, copy)
            continue
        is_mask = copy.is_relative_to(target / "ground_truth")
        with Image.open(path) as image:
            method = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
            image.resize(size[::-1], method).save(copy.with_suffix(".png"))


def category_root(data_root: Path, category: str, work_dir: Path, train_images: int | None, variant: Variant) -> Path:
    """Folder of categories to read a variant's images from; files are copied only if they are to differ.

    Args:
        data_root (Path): Folder of the categories.
        category (str): Name of the category.
        work_dir (Path): Folder for copies.
        train_images (int | None): As in :func:`copy_category`.
        variant (Variant): Variant.

    Returns:
        Path: ``data_root``, or a folder with a copy of the category.
    """
    if train_images is None and variant.file_size is None:
        return data_root
    root = work_dir / ("files" if variant.file_size is None else "x".join(map(str, variant.file_size)))
    if not (root / category).exists():
        copy_category((data_root / category).resolve(), root / category, train_images, variant.file_size)
    return root


def visible_fraction(mask: torch.Tensor, variant: Variant) -> float:
    """Fraction of a defect that is in the field of view of a variant.

    Args:
        mask (torch.Tensor): Mask of the defect, of shape ``(H, W)``.
        variant (Variant): Variant.

    Returns:
        float: Area of the defect that the detector sees, divided by that without the crop. ``1.0`` if there is none
        without the crop either, since then it is not the crop that removes it.
    """
    whole, seen = (
        int(nn.Sequential(*transforms)(Mask(mask[None])).count_nonzero())
        for transforms in (variant.uncropped, variant.transforms)
    )
    return seen / whole if whole else 1.0


def visible_defects(datamodule: MVTecAD, variant: Variant) -> dict[str, float]:
    """Fraction of the defect that is in the field of view, for each defective test image.

    Args:
        datamodule (MVTecAD): Data, set up for a test of the variant: batches are as its pre-processor gets them.
        variant (Variant): Variant.

    Returns:
        dict[str, float]: Fractions by name of the image.
    """
    return {
        short_name(path): visible_fraction(mask.squeeze(), variant)
        for batch in datamodule.test_dataloader()
        for path, mask, label in zip(batch.image_path, batch.gt_mask, batch.gt_label, strict=True)
        if label
    }


def short_name(path: str) -> str:
    """Name of an image with that of its folder, the kind of defect."""
    return f"{Path(path).parent.name}/{Path(path).name}"


def is_defective(name: str) -> bool:
    """Whether a short name is that of a defective image."""
    return not name.startswith("good/")


# ---------------------------------------------------------------------------------------------------------------------
# Cells


class Scores(Callback):
    """Collects what a detector sees and answers in a test or a prediction.

    Args:
        normal_images (NormalImages | None): The same images as the stages of training read them. Defaults to ``None``.

    Attributes:
        scores (dict[str, float]): Raw scores by short name of the image.
        sizes (set[tuple[int, ...]]): Height and width of what the detector saw.
        differences (list[float]): Mean difference of each image to the normal images, in levels of 255; 255 if they
            differ in size.
    """

    def __init__(self, normal_images: NormalImages | None = None) -> None:
        self._normal_images = normal_images
        self._indices = {} if normal_images is None else {path: at for at, path in enumerate(normal_images.paths)}
        self.scores: dict[str, float] = {}
        self.sizes: set[tuple[int, ...]] = set()
        self.differences: list[float] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        self.sizes.add(tuple(outputs.image.shape[-2:]))
        for path, image, score in zip(outputs.image_path, outputs.image, outputs.pred_score, strict=True):
            self.scores[short_name(path)] = round(float(score), 6)
            if self._normal_images is not None:
                read = self._normal_images[self._indices[path]]
                same_size = read.shape == image.shape
                self.differences.append(float((255 * image.cpu() - read).abs().mean()) if same_size else 255.0)

    on_predict_batch_end = on_test_batch_end


def mean_score(scores: Mapping[str, float], defective: bool) -> float:
    """Mean score of good or of defective images, by scores by short name."""
    return mean(score for name, score in scores.items() if is_defective(name) == defective)


def image_auroc(scores: Mapping[str, float], without: Sequence[str] = ()) -> float:
    """Image AUROC in percent.

    Args:
        scores (Mapping[str, float]): Scores by short name.
        without (Sequence[str]): Images to leave out. Defaults to none.

    Returns:
        float: AUROC; NaN if no defective image is left.
    """
    kept = {name: score for name, score in scores.items() if name not in without}
    labels = torch.tensor([int(is_defective(name)) for name in kept])
    return 100 * float(binary_auroc(torch.tensor([*kept.values()]), labels)) if labels.any() else math.nan


def run_cell(
    variant: Variant,
    data_root: Path,
    category: str,
    batch_size: int,
    seed: int,
    precision: str,
    arguments: Mapping[str, Any],
    work_dir: Path,
) -> Row:
    """Train with one pre-processor and measure.

    Args:
        variant (Variant): Variant.
        data_root (Path): Folder of the categories.
        category (str): Name of the category.
        batch_size (int): Images per training step.
        seed (int): Seed.
        precision (str): Precision of the Trainer in training; measured in FP32.
        arguments (Mapping[str, Any]): Init arguments of :class:`DdpmSt`.
        work_dir (Path): Folder for checkpoints.

    Returns:
        Row: Figures by name.
    """
    start = time.perf_counter()
    seed_everything(seed, verbose=False)
    fields = {"anomaly_map": ["anomaly_map", "gt_mask"], "pred_score": ["pred_score", "gt_label"]}
    model = DdpmSt(
        pre_processor=variant.pre_processor(),
        evaluator=Evaluator(
            test_metrics=[
                AUROC(fields=fields["pred_score"], prefix="image_"),
                AUPR(fields=fields["anomaly_map"], prefix="pixel_"),
            ],
        ),
        post_processor=False,
        visualizer=False,
        **arguments,
    )
    datamodule = make_mvtec(data_root, category, batch_size, num_workers=0)
    quiet: dict[str, Any] = {"default_root_dir": work_dir, "enable_model_summary": False, "enable_progress_bar": False}
    make_training_engine(precision, **quiet).fit(model, datamodule=datamodule)
    training_seconds = time.perf_counter() - start

    def engine(callback: Callback) -> Engine:
        return Engine(precision="32-true", devices=1, logger=False, callbacks=[callback], **quiet)

    tested = Scores()
    metrics = engine(tested).test(model, datamodule=datamodule, verbose=False)[0]
    # The Engine has given it the same augmentations as the test set.
    train_data = datamodule.train_data
    loader = DataLoader(train_data, datamodule.eval_batch_size, collate_fn=train_data.collate_fn)
    trained = Scores(NormalImages.from_datamodule(datamodule, model.pre_processor))
    engine(trained).predict(model, dataloaders=loader, return_predictions=False)
    row: Row = {
        "image_sizes": ["x".join(map(str, size)) for size in sorted(tested.sizes | trained.sizes)],
        "train_images": len(train_data),
        "score_train": mean_score(trained.scores, defective=False),
        "score_good": mean_score(tested.scores, defective=False),
        "score_defective": mean_score(tested.scores, defective=True),
        "image_AUROC": 100 * metrics["image_AUROC"],
        "pixel_AUPR": 100 * metrics["pixel_AUPR"],
        "pixel_difference": mean(trained.differences),
        "training_seconds": training_seconds,
    }
    if variant.crops:
        visible = visible_defects(datamodule, variant)
        outside = sorted(name for name, fraction in visible.items() if fraction < 0.5)
        row["outside"] = {
            "images": len(outside),
            "more_than_half": outside,
            "all": [name for name in outside if visible[name] == 0],
        }
        row["image_AUROC_inside"] = image_auroc(tested.scores, outside)
    row |= {"seconds": time.perf_counter() - start, "scores": tested.scores}
    return {name: rounded(value) if isinstance(value, float) else value for name, value in row.items()}


def rounded(value: float) -> float | None:
    """Value as the record holds it; JSON has no NaN."""
    return None if math.isnan(value) else round(value, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Table


def compare(rows: Sequence[Row]) -> list[Row]:
    """Add the differences to the plain pre-processor.

    Args:
        rows (Sequence[Row]): Rows. The plain ones hold the scores of all test images.

    Returns:
        list[Row]: Rows with ``score_good_minus_plain``, ``auroc_minus_plain`` and, if they crop,
        ``auroc_inside_minus_plain``; ``None`` if the plain row is missing or no defect is inside.
    """
    plain = {row["category"]: row for row in rows if row["variant"] == PLAIN}
    compared = []
    for row in rows:
        base = plain.get(row["category"])
        pairs = {
            "score_good_minus_plain": (row["score_good"], base and base["score_good"]),
            "auroc_minus_plain": (row["image_AUROC"], base and base["image_AUROC"]),
        }
        if "outside" in row:
            same = base and image_auroc(base["scores"], row["outside"]["more_than_half"])
            pairs["auroc_inside_minus_plain"] = (row["image_AUROC_inside"], same)
        differences = {
            name: None if value is None or other is None else rounded(value - other)
            for name, (value, other) in pairs.items()
        }
        compared.append({**row, **differences})
    return compared


def judge(rows: Sequence[Row]) -> dict[str, Any]:
    """Judge by the two criteria.

    Args:
        rows (Sequence[Row]): Rows of :func:`compare`.

    Returns:
        dict[str, Any]: Whether each criterion is met, ``None`` without a row to judge, and the rows that miss it.
    """
    judged = [row for row in rows if row["variant"] != PLAIN and row["auroc_minus_plain"] is not None]
    above = [row for row in judged if row["score_good_minus_plain"] > MAX_SCORE_ABOVE]
    below = [row for row in judged if row["auroc_minus_plain"] < -MAX_AUROC_BELOW]
    cell, crop = ("category", "variant"), ("outside", "image_AUROC_inside", "auroc_inside_minus_plain")

    def listed(found: Sequence[Row], *names: str) -> list[Row]:
        return [{name: row[name] for name in (*cell, *names) if name in row} for row in found]

    return {
        "judged_cells": len(judged),
        "max_score_above_plain": MAX_SCORE_ABOVE,
        "no_good_score_above_plain": not above if judged else None,
        "good_score_above_plain": listed(above, "score_good", "score_good_minus_plain"),
        "max_auroc_below_plain": MAX_AUROC_BELOW,
        "no_auroc_below_plain": not below if judged else None,
        "auroc_below_plain": listed(below, "image_AUROC", "auroc_minus_plain", *crop),
    }


def read_rows(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Rows of an earlier table with the same settings.

    Args:
        path (Path): JSON file.
        settings (Mapping[str, Any]): Settings of all rows.

    Returns:
        list[Row]: Rows of variants as they are now.
    """
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if record.get("settings") != settings:
        return []
    rows = cast("list[Row]", record["rows"])
    return [row for row in rows if row["variant"] in VARIANTS and row["settings"] == VARIANTS[row["variant"]].settings]


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Plot score of good test images and image AUROC by variant, one panel for each category.

    Args:
        rows (Sequence[Row]): Rows of :func:`compare`.
        path (Path): PNG file.
    """
    categories = list(dict.fromkeys(row["category"] for row in rows))
    figure, axes = plt.subplots(
        1, len(categories), figsize=(2 + 4 * len(categories), 4), layout="constrained", sharey=True, squeeze=False
    )
    order = {name: place for place, name in enumerate(VARIANTS)}
    for panel, category in zip(axes[0], categories, strict=True):
        chosen = [row for row in rows if row["category"] == category]
        places = [order[row["variant"]] for row in chosen]
        panel.plot([row["image_AUROC"] / 100 for row in chosen], places, "s", color="C0", label="image AUROC")
        panel.plot([row["score_good"] for row in chosen], places, "o", color="C1", label="mean score of good images")
        for row in chosen:
            if row["variant"] == PLAIN:
                least, most = row["image_AUROC"] / 100 - MAX_AUROC_BELOW / 100, row["score_good"] + MAX_SCORE_ABOVE
                panel.axvline(least, color="C0", linestyle=":", label="lowest AUROC by the criterion")
                panel.axvline(most, color="C1", linestyle=":", label="highest score by the criterion")
        panel.set(title=category, xlim=(-0.02, 1.02), xlabel="AUROC, score")
        panel.grid(alpha=0.3)
    axes[0, 0].set_yticks(list(order.values()), list(order))
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def make_options() -> ArgumentParser:
    """Parser of the options."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data/mvtec_layout"))
    parser.add_argument(
        "--teacher-weights",
        type=str | None,
        default="../shared/weights/resnet18_tv_in1k_stem_to_layer3_bnfolded.pth",
        help="Local weights; null downloads them.",
    )
    parser.add_argument("--categories", nargs="+", default=["bottle", "screw", "magnetic_tile"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--source", choices=list(SOURCES), default="self_texture", help="Textures of the defects.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--train-images", type=int | None, default=None, help="At most as many, evenly spaced.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", type=str, default="32-true", help="Of training; measured in FP32.")
    parser.add_argument("--model-arguments", type=dict, default={}, help="Further init arguments of DdpmSt, as JSON.")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/variants.json"))
    return parser


def main() -> None:
    """Run the missing cells; write the table and its plot after each."""
    options = make_options().parse_args()
    for name in ("anomalib", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    own = {"training_steps": options.steps, "defects": {"source": options.source}, **SOURCES[options.source]}
    settings = {
        "batch_size": options.batch_size,
        "max_train_images": options.train_images,
        "seed": options.seed,
        "precision": options.precision,
        "model_arguments": merge(own, options.model_arguments),
    }
    cells = list(product(options.categories, options.variants))
    rows = {(row["category"], row["variant"]): row for row in read_rows(options.output, settings)}
    missing = [cell for cell in cells if cell not in rows]
    seconds, pixels = 0.0, 0
    with tempfile.TemporaryDirectory() as work_name:
        work_dir = Path(work_name)
        for number, (category, name) in enumerate(missing, start=1):
            variant = VARIANTS[name]
            figures = run_cell(
                variant,
                category_root(options.data_root, category, work_dir, options.train_images, variant),
                category,
                options.batch_size,
                options.seed,
                options.precision,
                ddpm_st_arguments(options.teacher_weights, None, work_dir, settings["model_arguments"]),
                work_dir,
            )
            if name != PLAIN:
                del figures["scores"]
            key = {"category": category, "variant": name}
            rows[category, name] = {**key, "settings": variant.settings, "commit": commit(), **figures}
            save(options.output, list(rows.values()), settings)
            seconds, pixels = seconds + figures["seconds"], pixels + variant.pixels
            left = seconds / pixels * sum(VARIANTS[other].pixels for _, other in missing[number:])
            shown = {metric: figures[metric] for metric in ("score_good", "image_AUROC", "pixel_AUPR", "seconds")}
            progress = f"{number} of {len(missing)} cells, about {left / 60:.0f} min left"
            logger.warning("%s, %s: %s; %s", category, name, shown, progress)


def save(output: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write table and plot.

    Args:
        output (Path): JSON file; the plot is saved next to it.
        rows (Sequence[Row]): Rows.
        settings (Mapping[str, Any]): Settings of all rows.
    """
    order = {name: place for place, name in enumerate(VARIANTS)}
    categories = {row["category"]: place for place, row in reversed(list(enumerate(rows)))}
    compared = compare(sorted(rows, key=lambda row: (categories[row["category"]], order[row["variant"]])))
    record = {
        **judge(compared),
        "settings": settings,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("anomalib", "anomalib_ddpm_st", "lightning", "torchvision")},
        "rows": compared,
    }
    save_record(output, record)
    save_plot(compared, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
