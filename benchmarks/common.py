# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What the benchmarks share: data, training, metrics, tables, records and plots."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, MVTecAD
from anomalib.data.utils import ValSplitMode
from anomalib.engine import Engine
from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
# Data sets whose images may be passed on (NOTICE). Pictures that show others stay out of the repository.
REDISTRIBUTABLE = frozenset({"magnetic_tile"})
METRICS = ("image_AUROC", "pixel_AUROC", "pixel_AUPR", "pixel_AUPRO")
# Names that can look like numbers.
TEXT_COLUMNS = dict.fromkeys(("model", "category", "commit", "variant"), str)


def command() -> str:
    """Command line of this run, from the root of the repository."""
    return " ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]])


def commit() -> str:
    """Commit that is checked out, marked as dirty if files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    # A benchmark writes the results itself.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")


def machine() -> str:
    """Processor or GPU, number of cores and version of torch, which the figures depend on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        name = names[0] if names else name
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def peak_rss_gib() -> float:
    """Peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def raw_evaluator() -> Evaluator:
    """Metrics of the benchmarks. With ``post_processor=False`` they see raw scores and maps."""
    pixel = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_"}
    return Evaluator(
        test_metrics=[
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            AUROC(**pixel),
            AUPR(**pixel),
            AUPRO(**pixel),
        ],
    )


def make_mvtec(
    data_root: Path,
    category: str,
    batch_size: int = 8,
    eval_batch_size: int = 8,
    num_workers: int = 2,
) -> MVTecAD:
    """Data of one category, without a validation set: all test images are kept for the test.

    Args:
        data_root (Path): Folder of the categories.
        category (str): Name of the category.
        batch_size (int): Images per training step. Defaults to ``8``.
        eval_batch_size (int): Images per evaluation batch. Defaults to ``8``.
        num_workers (int): Processes that read images. Defaults to ``2``.

    Returns:
        MVTecAD: Datamodule without a validation set.
    """
    return MVTecAD(
        root=data_root,
        category=category,
        train_batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        num_workers=num_workers,
        val_split_mode=ValSplitMode.NONE,
    )


def make_training_engine(precision: str, **trainer_arguments: Any) -> Engine:  # noqa: ANN401
    """Engine that trains to the end of the schedule without validation.

    Args:
        precision (str): Precision of the Trainer.
        **trainer_arguments: Further arguments of the Trainer.

    Returns:
        Engine: Engine on one device.
    """
    return Engine(precision=precision, devices=1, logger=False, limit_val_batches=0, **trainer_arguments)


def measure(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    verbose: bool = True,
    **trainer_arguments: Any,  # noqa: ANN401
) -> dict[str, float]:
    """Measure a model on a test set in FP32.

    Args:
        model (AnomalibModule): Model without post-processor and with :func:`raw_evaluator`.
        datamodule (AnomalibDataModule): Data.
        verbose (bool): Print anomalib's table. Defaults to ``True``.
        **trainer_arguments: Further arguments of the Trainer.

    Returns:
        dict[str, float]: Metrics in percent.
    """
    engine = Engine(precision="32-true", devices=1, logger=False, **trainer_arguments)
    results = engine.test(model, datamodule=datamodule, verbose=verbose)[0]
    return {name: round(100 * results[name], 3) for name in METRICS}


def make_parser(description: str | None, categories: Sequence[str], output: str) -> ArgumentParser:
    """Parser with the options of every benchmark that trains.

    Args:
        description (str | None): Docstring of the script.
        categories (Sequence[str]): Default categories.
        output (str): Default output file.

    Returns:
        ArgumentParser: Parser to add further options to.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data/mvtec_layout"))
    parser.add_argument("--categories", nargs="+", default=list(categories))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument(
        "--teacher-weights",
        type=str | None,
        default="../shared/weights/resnet18_tv_in1k_stem_to_layer3_bnfolded.pth",
        help="Local weights for DdpmSt; null downloads them.",
    )
    parser.add_argument("--precision", type=str, default="32-true", help="Of training; measured in FP32.")
    parser.add_argument(
        "--pictures",
        type=Path,
        default=Path("benchmarks/pictures"),
        help="Folder for pictures of images that may not be passed on; git ignores the default.",
    )
    return parser


def picture_file(prefix: Path, kind: str, category: str, pictures: Path) -> Path:
    """PNG file for a picture that shows images of a category.

    Args:
        prefix (Path): Folder and beginning of the name, next to the table.
        kind (str): Rest of the name.
        category (str): Category of the images.
        pictures (Path): Folder that takes the place of the table's if the images may not be passed on.

    Returns:
        Path: File in a folder that exists.
    """
    folder = prefix.parent if category in REDISTRIBUTABLE else pictures
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{prefix.name}_{kind}.png"


def merge(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings.

    Args:
        *settings (Mapping[str, Any]): Settings; values of later ones win, and mappings are merged in the same way.

    Returns:
        dict[str, Any]: Settings of all of them.
    """
    merged: dict[str, Any] = {}
    for name, value in (item for part in settings for item in part.items()):
        previous = merged.get(name)
        both = isinstance(previous, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(previous, value) if both else value
    return merged


def ddpm_st_arguments(
    teacher_weights: str | None,
    cache_dir: str | None,
    work_dir: str | Path,
    model_arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Init arguments of DdpmSt from the options of a benchmark.

    Args:
        teacher_weights (str | None): Local weights, or ``None`` to download them.
        cache_dir (str | None): Cache of DDPMs and banks. ``None`` creates a new one in ``work_dir``.
        work_dir (str | Path): Folder of this run.
        model_arguments (Mapping[str, Any]): Further arguments, which win.

    Returns:
        dict[str, Any]: Arguments.
    """
    defaults = {"teacher_weights": teacher_weights, "cache_dir": cache_dir or str(Path(work_dir) / "cache")}
    return merge(defaults, model_arguments)


def save_record(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures to a JSON file, with command, commit and machine.

    Args:
        path (Path): File to write.
        figures (Mapping[str, Any]): Figures and settings.
    """
    record = {**figures, "command": command(), "commit": commit(), "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # An interruption must not leave half a file.
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file, with a header if the file is new; rows written before an interruption stay."""
    append_rows(path, [row])


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows that belong together to a CSV file, see :func:`append_row`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(path, mode="a", header=not path.exists(), index=False, lineterminator="\n", encoding="utf-8")


def read_table(path: Path) -> pd.DataFrame:
    """Rows of a CSV file; an empty table if there is no file."""
    return pd.read_csv(path, dtype=TEXT_COLUMNS) if path.exists() else pd.DataFrame()


def has_row(path: Path, **values: Any) -> bool:  # noqa: ANN401
    """Whether a CSV file has a row with these values, so that it need not be measured again."""
    table = read_table(path)
    return not table.empty and bool((table[list(values)] == pd.Series(values, dtype=object)).all(axis=1).any())


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


Line = tuple[Sequence[float], Sequence[float]]


def save_lines(panels: Mapping[str, Mapping[str, Line]], xlabel: str, path: Path, ticks: Sequence[int] = ()) -> None:
    """Plot lines in panels side by side.

    Args:
        panels (Mapping[str, Mapping[str, Line]]): For each label of a vertical axis the lines of its panel: values of
            both axes by name.
        xlabel (str): Label of the horizontal axes.
        path (Path): PNG file.
        ticks (Sequence[int]): Ticks of the horizontal axes, which are logarithmic if there are any. Defaults to none.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.5), layout="constrained")
    for panel, (ylabel, lines) in zip(axes, panels.items(), strict=True):
        for name, line in lines.items():
            panel.plot(*line, marker="o", label=name)
        if ticks:
            panel.set_xscale("log")
            panel.set_xticks(ticks)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
        panel.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
