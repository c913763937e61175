# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Accuracy on folders in the layout of MVTec AD: last checkpoint, raw scores.

Example:
    python benchmarks/accuracy.py --data-root ../shared/data/mvtec_layout --categories bottle --seeds 42 \
        --output benchmarks/results/accuracy.csv

If the output ends in ``.json``, a single run is recorded in more detail instead of as a table row.
"""

import itertools
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from anomalib.data import MVTecAD
from anomalib.models import AnomalibModule, get_model
from anomalib.pre_processing import PreProcessor
from common import (
    append_row,
    commit,
    ddpm_st_arguments,
    make_mvtec,
    make_parser,
    make_training_engine,
    measure,
    peak_rss_gib,
    picture_file,
    raw_evaluator,
    save_record,
)
from lightning.pytorch import seed_everything
from torchvision.transforms.v2 import Compose, Normalize
from torchvision.utils import save_image

from anomalib_ddpm_st import CanonicalPose, DdpmSt, DiffusionAnomalyGenerator
from anomalib_ddpm_st.core.transforms import flatten_transform
from anomalib_ddpm_st.diffusion import load_pipeline
from anomalib_ddpm_st.visualization import save_contact_sheet, save_score_histogram

logger = logging.getLogger(__name__)

SYNTHETIC_ROWS = 12


def evaluate(
    model: AnomalibModule,
    datamodule: MVTecAD,
    precision: str,
    work_dir: Path,
    max_epochs: int | None = None,
) -> dict[str, float]:
    """Train a model and measure it on the test set once, after the last step.

    Args:
        model (AnomalibModule): Model without post-processor and with :func:`raw_evaluator`.
        datamodule (MVTecAD): Data without a validation set.
        precision (str): Precision of the Trainer.
        work_dir (Path): Folder for checkpoints.
        max_epochs (int | None): Epochs of a model without a schedule of its own. Defaults to ``None``.

    Returns:
        dict[str, float]: Metrics in percent.
    """
    bounds = {} if max_epochs is None else {"max_epochs": max_epochs}
    engine = make_training_engine(precision, default_root_dir=work_dir, **bounds)
    engine.fit(model, datamodule=datamodule)
    return measure(model, datamodule, default_root_dir=work_dir)


@torch.no_grad()
def save_pictures(
    model: AnomalibModule,
    datamodule: MVTecAD,
    prefix: Path,
    pictures: Path,
    per_type: int = 3,
) -> None:
    """Save raw anomaly maps of some test images of each kind, and a histogram of all scores.

    Args:
        model (AnomalibModule): Trained model.
        datamodule (MVTecAD): Data.
        prefix (Path): Prefix of the PNG files.
        pictures (Path): Folder for pictures of images that may not be passed on.
        per_type (int): Number of images of each kind of defect. Defaults to ``3``.
    """
    model.eval()
    columns: dict[str, list[torch.Tensor]] = {"image": [], "annotation": [], "anomaly map": []}
    scores, labels = [], []
    shown: dict[str, int] = {}
    for batch in datamodule.test_dataloader():
        prediction = model.model.to(batch.image.device)(model.pre_processor(batch.image))
        scores.append(prediction.pred_score.flatten())
        labels.append(batch.gt_label)
        for image, mask, anomaly_map, path in zip(
            batch.image,
            batch.gt_mask,
            prediction.anomaly_map,
            batch.image_path,
            strict=True,
        ):
            kind = Path(path).parent.name
            shown[kind] = shown.get(kind, 0) + 1
            if shown[kind] <= per_type:
                columns["image"].append(image)
                columns["annotation"].append(mask.float().reshape(1, *mask.shape[-2:]))
                columns["anomaly map"].append(anomaly_map.reshape(1, *anomaly_map.shape[-2:]))
    save_contact_sheet(picture_file(prefix, "maps", datamodule.category, pictures), columns)
    save_score_histogram(f"{prefix}_scores.png", torch.cat(scores), torch.cat(labels))


@torch.no_grad()
def save_synthesis_pictures(model: DdpmSt, datamodule: MVTecAD, prefix: Path, pictures: Path) -> None:
    """Save unperturbed samples of the DDPM, and synthetic defects with their masks.

    Args:
        model (DdpmSt): Model trained in this process.
        datamodule (MVTecAD): Data.
        prefix (Path): Prefix of the PNG files.
        pictures (Path): Folder for pictures of images that may not be passed on.
    """
    generator = torch.Generator().manual_seed(0)
    samples = load_pipeline(model.diffusion_dir)(batch_size=16, generator=generator, num_inference_steps=50).images
    save_image(samples, picture_file(prefix, "ddpm_samples", datamodule.category, pictures), nrow=4)
    transform = DiffusionAnomalyGenerator(model.bank_dir, replace(model.defects, probability=1.0), generator)
    images = [datamodule.train_data[index].image for index in range(min(len(datamodule.train_data), SYNTHETIC_ROWS))]
    normal = torch.cat([model.model.align(model.pre_processor(image[None])) for image in images])
    synthetic, masks = transform(normal)
    columns = {"normal": list(normal), "synthetic": list(synthetic), "mask": list(masks)}
    save_contact_sheet(picture_file(prefix, "synthetic", datamodule.category, pictures), columns)


def with_canonical_pose(pre_processor: PreProcessor) -> PreProcessor:
    """Turn parts to one pose after the resize of a pre-processor.

    Args:
        pre_processor (PreProcessor): Pre-processor of a model.

    Returns:
        PreProcessor: The same with a :class:`CanonicalPose` before the normalisation.
    """
    steps = flatten_transform(pre_processor.transform)
    first = next((index for index, step in enumerate(steps) if isinstance(step, Normalize)), len(steps))
    return PreProcessor(transform=Compose([*steps[:first], CanonicalPose(), *steps[first:]]))


def main() -> None:
    """Train and test models; write one row for each model, category and seed."""
    parser = make_parser(__doc__, ["bottle"], "benchmarks/results/accuracy.csv")
    parser.add_argument("--models", nargs="+", default=["DdpmSt"], help="Names for anomalib's get_model.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--cache-dir",
        type=str | None,
        default=None,
        help="Cache of DDPMs and banks. By default a new one for each run, so that their time is counted.",
    )
    parser.add_argument("--model-arguments", type=dict, default={}, help="Further init arguments of models, as JSON.")
    parser.add_argument(
        "--max-epochs",
        type=int | None,
        default=None,
        help="For models without a schedule: STFPM would train for 1000 epochs, anomalib's config of it says 100.",
    )
    parser.add_argument(
        "--canonical-pose",
        type=bool,
        default=False,
        help="Turn parts to one pose in the pre-processor. For other models than DdpmSt, which does so itself.",
    )
    options = parser.parse_args()
    for name, category, seed in itertools.product(options.models, options.categories, options.seeds):
        with tempfile.TemporaryDirectory() as work_dir:
            arguments = dict(options.model_arguments)
            if name == DdpmSt.__name__:
                arguments = ddpm_st_arguments(options.teacher_weights, options.cache_dir, work_dir, arguments)
            run(
                name,
                category,
                seed,
                arguments,
                options.data_root,
                options.batch_size,
                options.precision,
                Path(work_dir),
                options.output,
                options.pictures,
                options.max_epochs,
                options.canonical_pose,
            )


def run(
    name: str,
    category: str,
    seed: int,
    arguments: dict[str, Any],
    data_root: Path,
    batch_size: int,
    precision: str,
    work_dir: Path,
    output: Path,
    pictures: Path,
    max_epochs: int | None = None,
    canonical_pose: bool = False,
) -> None:
    """Train and test one model on one category with one seed."""
    seed_everything(seed)
    start = time.perf_counter()
    model = get_model(name, evaluator=raw_evaluator(), post_processor=False, visualizer=False, **arguments)
    if canonical_pose:
        model.pre_processor = with_canonical_pose(model.pre_processor)
        name = f"{name}, canonical pose"
    datamodule = make_mvtec(data_root, category, batch_size, batch_size)
    metrics = evaluate(model, datamodule, precision, work_dir, max_epochs)
    seconds = time.perf_counter() - start
    if output.suffix == ".json":
        record = {
            "model": name,
            "category": category,
            "seed": seed,
            "seconds": {
                **{stage: round(value, 1) for stage, value in getattr(model, "stage_seconds", {}).items()},
                "total": round(seconds, 1),
            },
            "peak_rss_gib": round(peak_rss_gib(), 3),
            "metrics": metrics,
        }
        save_record(output, record)
        save_pictures(model, datamodule, output.with_suffix(""), pictures)
        if isinstance(model, DdpmSt) and model.bank_dir is not None:
            save_synthesis_pictures(model, datamodule, output.with_suffix(""), pictures)
    else:
        row = {"model": name, "category": category, "seed": seed, "commit": commit(), "seconds": round(seconds, 1)}
        append_row(output, {**row, **metrics})
    logger.warning("%s on %s, seed %d: %s", name, category, seed, metrics)


if __name__ == "__main__":
    main()
