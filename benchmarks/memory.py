# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What position and teacher are worth in the memory bank alone, without student and segmentation.

Example:
    python benchmarks/memory.py --categories bottle screw magnetic_tile assembly
    python benchmarks/memory.py --backbone vit_small_patch14_dinov2 --teacher-weights FILE --categories bottle

The memory bank is filled from the normal images, with the weights of ``--position-weights`` for the position, and its
map measured on the test images. ``chosen`` marks the weight that DdpmSt chooses from the normal images. The category
``assembly`` is made from the three others, see :mod:`assembly`.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from assembly import NAME, write_assemblies
from common import append_row, commit, has_row, make_mvtec, make_parser, measure, raw_evaluator
from lightning.pytorch import seed_everything

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.detector.augmentation import MAX_REFERENCES
from anomalib_ddpm_st.detector.normal_reference import NormalReference
from anomalib_ddpm_st.detector.pose_selection import select_pose

logger = logging.getLogger(__name__)


def run(
    data_root: Path,
    category: str,
    seed: int,
    weights: list[float],
    backbone: str,
    teacher_weights: str | None,
    folder: Path,
) -> list[dict[str, Any]]:
    """Measure one category.

    Args:
        data_root (Path): Folder of the categories.
        category (str): Name of the category.
        seed (int): Seed of the memory bank.
        weights (list[float]): Weights of the position.
        backbone (str): Name of the timm model.
        teacher_weights (str | None): Local weights, or ``None`` to download them.
        folder (Path): Folder for what the engine writes.

    Returns:
        list[dict[str, Any]]: Row of each weight.
    """
    model = DdpmSt(backbone, evaluator=raw_evaluator(), post_processor=False, visualizer=False)
    model.model.teacher.load_weights(teacher_weights)
    model.model.component_weights = [0.0, 0.0, 1.0]
    datamodule = make_mvtec(data_root, category, num_workers=0)
    datamodule.setup()
    images = NormalImages.from_datamodule(datamodule, model.pre_processor)
    pose, reason = select_pose(images.load(MAX_REFERENCES), images.aspect(), model.model.teacher)
    logger.warning("%s: %s.", category, reason)
    model.model.set_pose(pose)
    pixels = images.turn(model.model.pose).load(MAX_REFERENCES)
    chosen = NormalReference(model.model, pixels).position_weight
    rows = []
    for weight in weights:
        seed_everything(seed, verbose=False)
        reference = NormalReference(model.model, pixels)
        reference.position_weight = weight
        reference.fill_memory_bank(pixels)
        metrics = measure(model.eval(), datamodule, verbose=False, default_root_dir=folder, enable_progress_bar=False)
        rows.append({
            "category": category,
            "backbone": backbone,
            "seed": seed,
            "position_weight": weight,
            "chosen": weight == chosen,
            **metrics,
        })
    return rows


@torch.no_grad()
def main() -> None:
    """Write one row for each category, seed and weight."""
    categories = ["bottle", "screw", "magnetic_tile", NAME]
    parser = make_parser(__doc__, categories, "benchmarks/results/memory.csv")
    parser.add_argument("--position-weights", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--backbone", default="resnet18")
    options = parser.parse_args()
    for category in options.categories:
        for seed in options.seeds:
            if has_row(options.output, category=category, backbone=options.backbone, seed=seed):
                continue
            with tempfile.TemporaryDirectory() as folder:
                root = options.data_root
                if category == NAME:
                    root = Path(folder)
                    write_assemblies(options.data_root, root)
                weights = [float(weight) for weight in options.position_weights]
                rows = run(root, category, seed, weights, options.backbone, options.teacher_weights, Path(folder))
            for row in rows:
                append_row(options.output, {**row, "commit": commit()})
                logger.warning("%s", row)


if __name__ == "__main__":
    main()
