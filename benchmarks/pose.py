# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What ``pose: auto`` decides from the normal images of a category, and how far a change of light turns parts.

Example:
    python benchmarks/pose.py --categories bottle screw magnetic_tile

The decision is the one that a training makes, from normal images alone. Where parts are turned, each of 64 images is
also seen in another light (:func:`change_light`): ``degrees`` and ``pixels`` are the differences between the two poses,
which should be those of one part, at the median, the 95 % quantile and the largest. A picture of each such category is
saved.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from common import make_parser, picture_file, save_record

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose
from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE, NormalImages, evenly_spaced
from anomalib_ddpm_st.core.pose import Pose
from anomalib_ddpm_st.detector.augmentation import MAX_REFERENCES, change_light
from anomalib_ddpm_st.detector.pose_selection import select_pose
from anomalib_ddpm_st.detector.teacher import Teacher
from anomalib_ddpm_st.visualization import save_contact_sheet

logger = logging.getLogger(__name__)

IMAGES = 64
SHOWN = 8
QUANTILES = (0.5, 0.95, 1.0)


def compare(first: Pose, second: Pose, height: int) -> dict[str, list[float]]:
    """Compare two poses of each part.

    Args:
        first (Pose): Poses.
        second (Pose): Other poses of the same parts.
        height (int): Height of the images in pixels.

    Returns:
        dict[str, list[float]]: Differences of direction in degrees and of the centre in pixels, at ``QUANTILES``.
    """
    cosine = (first.direction * second.direction).sum(dim=1).clamp(-1, 1)
    distance = (first.centre - second.centre).norm(dim=1) * height / 2
    differences = {"degrees": cosine.acos().rad2deg(), "pixels": distance}
    quantiles = torch.tensor(QUANTILES, dtype=cosine.dtype)
    return {
        name: [round(float(value), 2) for value in values.quantile(quantiles)] for name, values in differences.items()
    }


def measure_pose(images: NormalImages, teacher: Teacher, picture: Path) -> dict[str, Any]:
    """Decide on one category, and see it in another light.

    Args:
        images (NormalImages): Normal images.
        teacher (Teacher): Teacher with its weights.
        picture (Path): PNG file to write if parts are turned.

    Returns:
        dict[str, Any]: Figures.
    """
    pixels = images.load(MAX_REFERENCES)
    start = time.perf_counter()
    canonical, reason = select_pose(pixels, images.aspect(), teacher)
    figures: dict[str, Any] = {"turned": canonical is not None, "reason": reason}
    figures["seconds"] = round(time.perf_counter() - start, 1)
    if canonical is None:
        return figures
    sample = pixels[evenly_spaced(len(pixels), IMAGES)].double() / 255
    changed = change_light(sample, torch.Generator().manual_seed(0))
    poses = [canonical.estimate(part) for part in (sample, changed)]
    figures["frame"] = canonical.frame.size(*sample.shape[-2:])
    figures["changed_light"] = compare(*poses, sample.shape[-2])
    save_picture(canonical, (sample, changed), poses, picture)
    return figures


def save_picture(canonical: CanonicalPose, lights: tuple, poses: list[Pose], path: Path) -> None:
    """Save images in both lights next to their turned parts."""
    shown = evenly_spaced(len(lights[0]), SHOWN)
    columns: dict[str, list[torch.Tensor]] = {}
    for name, images, pose in zip(("", ", other light"), lights, poses, strict=True):
        turned = canonical.align(images[shown], Pose(*(values[shown] for values in pose)))
        columns |= {f"image{name}": list(images[shown]), f"turned{name}": list(turned)}
    save_contact_sheet(path, columns)


def main() -> None:
    """Write one record of all categories."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/pose.json")
    options = parser.parse_args()
    teacher = Teacher().eval()
    teacher.load_weights(options.teacher_weights)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figures = {}
    for category in options.categories:
        paths = sorted((options.data_root / category / "train" / "good").iterdir())
        picture = picture_file(options.output.with_suffix(""), category, category, options.pictures)
        figures[category] = measure_pose(NormalImages.from_files(paths, DEFAULT_IMAGE_SIZE), teacher, picture)
        logger.info("%s: %s", category, figures[category])
    save_record(options.output, {"categories": figures, "quantiles": QUANTILES})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
