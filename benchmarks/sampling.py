# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""How many reverse steps a texture needs.

Example:
    python benchmarks/sampling.py --diffusion-paths '{"bottle": "ddpm/bottle", "screw": "ddpm/screw"}'

For each number of steps: the Fréchet distance of the teacher's features between unperturbed samples of a trained DDPM
and real images (see ``health.json``), as a multiple of the distance between two halves of the real images; the blur
that moves real images as far; and the seconds per texture, with both of its samples. ``ablation.py`` measures what the
steps are worth to a detector (``--variants synthesis=diffusion sampling_steps=2 ...``). Existing rows are skipped.
"""

import logging
import time
from pathlib import Path

import pandas as pd
import torch
from common import append_row, commit, has_row, make_parser, read_table, save_lines

from anomalib_ddpm_st.cli.health import HEALTH_LAYERS
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.detector.teacher import Teacher
from anomalib_ddpm_st.diffusion import load_pipeline
from anomalib_ddpm_st.synthesis import sample_bank
from anomalib_ddpm_st.synthesis.health import health_report

logger = logging.getLogger(__name__)

SIZE = (256, 256)
TEXTURES = 16
PANELS = {
    "seconds_per_texture": "seconds per texture",
    "paired": "samples from images:\ndistance / distance of real halves",
    "from_noise": "samples from noise:\ndistance / distance of real halves",
    "equivalent_blur": "equivalent blur in pixels",
}


def measure_steps(diffusion_path: Path, images: torch.Tensor, teacher: Teacher, steps: int) -> dict[str, float]:
    """Measure time and health of sampling with a number of reverse steps.

    Args:
        diffusion_path (Path): Folder of a trained DDPM.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        teacher (Teacher): Teacher with weights.
        steps (int): Number of reverse steps.

    Returns:
        dict[str, float]: Figures by column.
    """
    pipeline = load_pipeline(diffusion_path)
    start = time.perf_counter()
    sample_bank(pipeline, images, {"size": TEXTURES, "num_inference_steps": steps})
    seconds = (time.perf_counter() - start) / TEXTURES
    health = health_report(pipeline, images, teacher, steps)
    if health["yardstick"] is None or health["paired"] is None or health["from_noise"] is None:
        msg = f"The health of the DDPM needs more than {health['images']} images."
        raise ValueError(msg)
    return {
        "seconds_per_texture": round(seconds, 3),
        "paired": round(health["paired"] / health["yardstick"], 3),
        "from_noise": round(health["from_noise"] / health["yardstick"], 3),
        "equivalent_blur": round(health["equivalent_blur"] or 0.0, 3),
    }


def save_plot(table: pd.DataFrame, path: Path) -> None:
    """Plot each figure against the number of steps.

    Args:
        table (pd.DataFrame): Rows of the CSV file.
        path (Path): PNG file.
    """
    categories = {name: rows.sort_values("steps") for name, rows in table.groupby("category", sort=False)}
    panels = {
        label: {category: (rows["steps"], rows[name]) for category, rows in categories.items()}
        for name, label in PANELS.items()
    }
    save_lines(panels, "reverse steps", path, sorted(table["steps"].unique()))


def main() -> None:
    """Measure the missing rows of the table and plot it."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/sampling.csv")
    parser.add_argument("--diffusion-paths", type=dict, required=True, help="Folder of a trained DDPM, by category.")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 5, 10, 20, 50])
    options = parser.parse_args()
    teacher = Teacher("resnet18", HEALTH_LAYERS)
    teacher.load_weights(options.teacher_weights)
    for category in options.categories:
        paths = sorted((options.data_root / category / "train" / "good").iterdir())
        images = NormalImages.from_files(paths, SIZE).load()
        for steps in options.steps:
            if has_row(options.output, category=category, steps=steps):
                continue
            torch.manual_seed(options.seeds[0])
            figures = measure_steps(Path(options.diffusion_paths[category]), images, teacher, steps)
            row = {"category": category, "steps": steps, "commit": commit(), **figures}
            append_row(options.output, row)
            logger.warning("%s", row)
            save_plot(read_table(options.output), options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
