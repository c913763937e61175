# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Which input size finds defects of a given size, with the memory bank alone.

Example:
    OMP_NUM_THREADS=1 python benchmarks/input_size.py

A memory bank of 512 features of each level from ``--images`` normal images scores as many held-out images without and
with one drawn defect each, see :func:`validation.draw_sized`. Defects have 4, 8, 16 or 32 pixels of the original image.
Input sizes are ``--fractions`` of the median original size, rounded to multiples of 32. Parts are not turned to one
pose, and their position does not count. No test image is used.

The plot shows image AUROC by the input size, a line for each size of defect; the stars are the measured sizes next to
those that :func:`~anomalib_ddpm_st.choose_input_size` chooses.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from common import append_row, commit, has_row, make_parser, read_table
from lightning.pytorch import seed_everything
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchvision.transforms.v2 import functional
from validation import draw_sized, split

from anomalib_ddpm_st import DdpmSt, choose_input_size
from anomalib_ddpm_st.core.images import NormalImages, evenly_spaced
from anomalib_ddpm_st.detector import build_model
from anomalib_ddpm_st.detector.augmentation import jitter_pair
from anomalib_ddpm_st.detector.memory_bank import MemoryBank

logger = logging.getLogger(__name__)

MEMORY_SIZE = 512
DEFECT_SIZES = (4, 8, 16, 32)
MULTIPLE = 32
# Shading and rough areas are large by nature.
FAMILIES = {"lines": ("scratch", "crack"), "spots": ("spot", "stain"), "shapes": ("dent", "missing")}
ATTEMPTS = 20

Sample = tuple[np.ndarray, np.ndarray, str, int]


def choose_evenly(paths: Sequence[str], most: int) -> list[str]:
    """At most ``most`` evenly spaced files."""
    return [paths[index] for index in evenly_spaced(len(paths), most).tolist()]


def candidate_sizes(paths: Sequence[str], fractions: Sequence[float]) -> list[tuple[int, int]]:
    """Heights and widths to measure, at fractions of the median size of the original images."""
    height, width = np.median([cv2.imread(path).shape[:2] for path in paths], axis=0)
    sides = [[max(1, round(side * part / MULTIPLE)) * MULTIPLE for side in (height, width)] for part in fractions]
    return [(rows, columns) for rows, columns in sides]


def draw_samples(held_out: Sequence[str], seed: int) -> list[Sample]:
    """Held-out images, each without a defect and with one of each size.

    Args:
        held_out (Sequence[str]): Files.
        seed (int): Seed of the defects.

    Returns:
        list[Sample]: Image, mask, family and size of the defect; an empty mask, no family and 0 without one.
    """
    rng = np.random.default_rng(seed)
    names = [kind for kinds in zip(*FAMILIES.values(), strict=True) for kind in kinds]
    families = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
    samples: list[Sample] = []
    for index, path in enumerate(held_out):
        image = cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        samples.append((image, np.zeros(image.shape[:2], np.uint8), "", 0))
        for size in DEFECT_SIZES:
            turns = (names[(index + turn // ATTEMPTS) % len(names)] for turn in range(ATTEMPTS * len(names)))
            drawn = ((kind, draw_sized(image, kind, size, rng)) for kind in turns)
            found = next(((kind, result) for kind, result in drawn if result is not None), None)
            if found is None:
                msg = f"No defect of {size} pixels is visible on {path}."
                raise ValueError(msg)
            kind, (changed, mask) = found
            samples.append((changed, mask, families[kind], size))
    return samples


class MemoryDetector:
    """The memory bank of DdpmSt alone.

    Args:
        train (Sequence[str]): Normal images.
        size (tuple[int, int]): Height and width of the input.
        teacher_weights (str | None): Local weights, or ``None`` to download them.
    """

    def __init__(self, train: Sequence[str], size: tuple[int, int], teacher_weights: str | None) -> None:
        self.model = build_model(memory_size=MEMORY_SIZE).eval()
        self.model.teacher.load_weights(teacher_weights)
        self.transform = DdpmSt.configure_pre_processor(size).transform
        images = NormalImages.from_files(train, size).load().float().split(1)
        normal = [batch / 255 for batch in images]
        varied = (jitter_pair(batch, batch, batch[:, :1])[0] for batch in normal)
        teacher = self.model.teacher
        self.memory_bank.fill(map(teacher, normal), map(teacher, varied), len(normal))

    @property
    def memory_bank(self) -> MemoryBank:
        """Memory bank."""
        return cast("MemoryBank", self.model.memory_bank)

    def __call__(self, image: np.ndarray) -> tuple[float, torch.Tensor]:
        """Score and map of an image.

        Args:
            image (np.ndarray): Image, ``uint8`` of shape ``(H, W, 3)``.

        Returns:
            tuple[float, torch.Tensor]: Score, and map of shape ``(H, W)``.
        """
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        seen = self.transform(pixels)
        anomaly_map = self.memory_bank.scaled_distances(self.model.teacher(seen))
        score = self.model.component_scores([torch.zeros_like(seen[:, :1]), anomaly_map])[0, 1]
        resized = functional.resize(anomaly_map, list(image.shape[:2]), antialias=False)
        return score.item(), resized[0, 0]


def measure(detector: MemoryDetector, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """Measure how well defects of each size are found.

    Args:
        detector (MemoryDetector): Detector.
        samples (Sequence[Sample]): Images of :func:`draw_samples`.

    Yields:
        dict[str, Any]: Size of the defects and metrics in percent.
    """
    results = [detector(image) for image, _, _, _ in samples]
    scores = torch.tensor([score for score, _ in results])
    sizes = torch.tensor([size for _, _, _, size in samples])
    families = np.array([family for _, _, family, _ in samples])

    def auroc(chosen: torch.Tensor) -> float:
        kept = chosen | (sizes == 0)
        return round(100 * binary_auroc(scores[kept], (sizes[kept] > 0).long()).item(), 2)

    for size in DEFECT_SIZES:
        chosen = sizes == size
        kept = (chosen | (sizes == 0)).nonzero().flatten().tolist()
        maps = torch.cat([results[index][1].flatten() for index in kept])
        masks = torch.cat([torch.from_numpy(samples[index][1]).flatten() > 0 for index in kept])
        by_family = {}
        for family in FAMILIES:
            members = chosen & torch.from_numpy(families == family)
            # A handful says nothing.
            by_family[f"AUROC_{family}"] = auroc(members) if members.sum() >= 5 else None
        yield {
            "defect": size,
            "image_AUROC": auroc(chosen),
            "pixel_AUPR": round(100 * binary_average_precision(maps, masks.long()).item(), 2),
            **by_family,
        }


def run(
    paths: Sequence[str],
    seed: int,
    teacher_weights: str | None,
    count: int,
    fractions: Sequence[float],
    is_known: Callable[[tuple[int, int]], bool],
) -> Iterator[dict[str, Any]]:
    """Measure one category.

    Args:
        paths (Sequence[str]): Normal training images.
        seed (int): Seed of defects and memory bank.
        teacher_weights (str | None): Local weights, or ``None`` to download them.
        count (int): Number of images to train on, and of held-out images.
        fractions (Sequence[float]): Input sizes, as fractions of the median original size.
        is_known (Callable[[tuple[int, int]], bool]): Whether an input size has been measured.

    Yields:
        dict[str, Any]: Row for each other input size and size of defect.
    """
    train, held_out = split(paths)
    samples: list[Sample] = []
    for size in candidate_sizes(train, fractions):
        if is_known(size):
            continue
        samples = samples or draw_samples(choose_evenly(held_out, count), seed)
        seed_everything(seed, verbose=False)
        start = time.process_time()
        detector = MemoryDetector(choose_evenly(train, count), size, teacher_weights)
        rows = list(measure(detector, samples))
        seconds = round(time.process_time() - start, 1)
        yield from ({"height": size[0], "width": size[1], **row, "cpu_seconds": seconds} for row in rows)


def save_plot(table: pd.DataFrame, sizes: dict[str, list[tuple[int, int]]], path: Path) -> None:
    """Plot image AUROC by input size.

    Args:
        table (pd.DataFrame): Rows.
        sizes (dict[str, list[tuple[int, int]]]): Sizes of the original images by category.
        path (Path): PNG file.
    """
    width = 4 * len(sizes)
    figure, axes = plt.subplots(1, len(sizes), figsize=(width, 3.5), layout="constrained", squeeze=False, sharey=True)
    means = table.groupby(["category", "defect", "height", "width"], as_index=False)["image_AUROC"].mean()
    for panel, category in zip(axes[0], sizes, strict=True):
        for defect, rows in means[means["category"] == category].groupby("defect"):
            sides = (rows["height"] * rows["width"]) ** 0.5
            (line,) = panel.plot(sides, rows["image_AUROC"], marker="o", label=f"{defect} pixels")
            chosen = choose_input_size(sizes[category], float(defect))
            nearest = (sides - (chosen.height * chosen.width) ** 0.5).abs().idxmin()
            panel.plot(sides[nearest], rows["image_AUROC"][nearest], "*", markersize=16, color=line.get_color())
        panel.set_title(category)
        panel.set_xlabel("side of the input in pixels (root of the area)")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("image AUROC in %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, title="Defect (star: choice)", loc="outside right upper")
    figure.savefig(path, dpi=100)
    plt.close(figure)


@torch.no_grad()
def main() -> None:
    """Write one row for each category, seed, input size and size of defect, and the plot."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/input_size.csv")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.5, 2.0])
    options = parser.parse_args()
    sizes = {}
    for category in options.categories:
        paths = [str(path) for path in sorted((options.data_root / category / "train" / "good").glob("*.png"))]
        sizes[category] = NormalImages.from_files(paths).shown_sizes()
        for seed in options.seeds:
            known = {"category": category, "seed": seed, "images": options.images}
            is_known = lambda size: has_row(options.output, height=size[0], width=size[1], **known)  # noqa: B023, E731
            for row in run(paths, seed, options.teacher_weights, options.images, options.fractions, is_known):
                append_row(options.output, {**known, **row, "commit": commit()})
                logger.warning("%s %s", category, row)
    save_plot(read_table(options.output), sizes, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
