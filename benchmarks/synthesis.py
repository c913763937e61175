# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What synthetic defects cost: a sample, a training step, and a hundred pairs.

Example:
    python benchmarks/synthesis.py --diffusion-path DIR --output benchmarks/results/synthesis.json

Weights are random if only time is measured. RealNet's generator (Zhang et al., 2024) is rebuilt in its shape from
blocks of diffusers and run for one step; its 20 steps cost 20 times as much.

- ``flops_ratio``, ``time_ratio``: a sample of RealNet over a texture of the bank, which takes two samples.
- ``generator_share``, ``perlin_share``: fraction of a training step of the default detector that the generator takes,
  and anomalib's Perlin generator in its place; both are run alternately on the same images.
- ``seconds_100_pairs``: ``anomalib-ddpm-st synthesize`` for a hundred pairs, page and bank included.
"""

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from common import flops, save_record
from diffusers import UNet2DModel
from jsonargparse import ArgumentParser

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.detector import DdpmStLoss, build_model
from anomalib_ddpm_st.detector.augmentation import jitter_pair
from anomalib_ddpm_st.diffusion import DefectPipeline, PerturbedDDPMScheduler, build_unet, load_pipeline
from anomalib_ddpm_st.synthesis import DefectConfig, DiffusionAnomalyGenerator, sample_bank

logger = logging.getLogger(__name__)

SIZE = (256, 256)
REALNET_STEPS = 20
BATCH_SIZE = 8
PAIRS = 100


def realnet_unet() -> UNet2DModel:
    """Network in the shape of RealNet's: width 256, multipliers 1, 1, 2, 2, 4, 4, attention at 32, 16 and 8 pixels."""
    widths = (256, 256, 512, 512, 1024, 1024)
    down = ("DownBlock2D",) * 3 + ("AttnDownBlock2D",) * 3
    up = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",) * 3
    return UNet2DModel(
        SIZE,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=64,
    ).eval()


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call; with several repeats, after one that does not count."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        with torch.no_grad():
            run()
        times.append(time.perf_counter() - start)
    return median(times[-repeats:])


def compare_samples() -> dict[str, float]:
    """Cost of one texture compared with one sample of RealNet's generator."""
    pipeline = DefectPipeline(build_unet(SIZE).eval(), PerturbedDDPMScheduler(prediction_type="sample"))
    pipeline.set_progress_bar_config(disable=True)
    image = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)

    def texture() -> None:
        sample_bank(pipeline, image, {"size": 1})

    own_flops, own_seconds = flops(texture), seconds(texture, 5)
    unet, noise = realnet_unet(), torch.randn(1, 3, *SIZE)

    def step() -> None:
        unet(noise, 500)

    peer_flops, peer_seconds = REALNET_STEPS * flops(step), REALNET_STEPS * seconds(step, 1)
    return {
        "flops_ratio": peer_flops / own_flops,
        "time_ratio": peer_seconds / own_seconds,
        "texture_gflops": own_flops / 1e9,
        "texture_seconds": own_seconds,
        "realnet_gflops": peer_flops / 1e9,
        "realnet_seconds": peer_seconds,
    }


def compare_steps(images: torch.Tensor, diffusion_path: Path, repeats: int, bfloat16: bool) -> dict[str, float]:
    """Fraction of a training step that each generator takes.

    Args:
        images (torch.Tensor): Batch of normal images, ``uint8`` of shape ``(B, 3, H, W)``.
        diffusion_path (Path): Folder of a trained DDPM.
        repeats (int): Number of steps to take the median of.
        bfloat16 (bool): Run the detector in mixed precision.

    Returns:
        dict[str, float]: Fractions, and seconds of each part.
    """
    bank = sample_bank(load_pipeline(diffusion_path), images, {"size": len(images)})
    generators: dict[str, Callable] = {
        "generator": DiffusionAnomalyGenerator(bank),
        "perlin": PerlinAnomalyGenerator(probability=DefectConfig().probability),
    }
    model, loss = build_model().to(memory_format=torch.channels_last).train(), DdpmStLoss()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
    batch = images.float() / 255
    spent: dict[str, list[float]] = {name: [] for name in (*generators, "rest")}
    for _ in range(repeats + 1):
        for name, generator in generators.items():
            start = time.perf_counter()
            augmented, masks = generator(batch)
            spent[name].append(time.perf_counter() - start)
        start = time.perf_counter()
        clean, augmented, masks = jitter_pair(batch, augmented, masks)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            value = loss(*model(augmented, clean), masks)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        spent["rest"].append(time.perf_counter() - start)
    typical = {name: median(times[1:]) for name, times in spent.items()}
    fractions = {f"{name}_share": typical[name] / (typical[name] + typical["rest"]) for name in generators}
    return {**fractions, **{f"{name}_seconds": value for name, value in typical.items()}}


def time_pairs(images: Path, diffusion_path: Path, precision: str, weights: str | None) -> float:
    """Seconds of the command that writes a hundred pairs, with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        arguments = ["--images", str(images), "--output", f"{folder}/pairs", "--count", str(PAIRS)]
        more = ["--diffusion_path", str(diffusion_path), "--cache_dir", f"{folder}/cache", "--precision", precision]
        given = [] if weights is None else ["--teacher_weights", weights]
        subprocess.run(
            [sys.executable, "-m", "anomalib_ddpm_st.cli", "synthesize", *arguments, *more, *given], check=True
        )
        return time.perf_counter() - start


def main() -> None:
    """Measure and write the record."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--diffusion-path", type=Path, required=True, help="Folder of a trained DDPM.")
    parser.add_argument("--images", type=Path, default=Path("../shared/data/mvtec_layout/bottle/train/good"))
    parser.add_argument("--teacher-weights", type=str | None, default=None, help="For the health; null downloads them.")
    parser.add_argument("--precision", type=str, default="32-true")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/synthesis.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    batch = NormalImages.from_files(sorted(options.images.iterdir())[:BATCH_SIZE], SIZE).load()
    figures = {
        **compare_samples(),
        **compare_steps(batch, options.diffusion_path, options.repeats, options.precision == "bf16-mixed"),
        "seconds_100_pairs": time_pairs(
            options.images, options.diffusion_path, options.precision, options.teacher_weights
        ),
    }
    rounded = {name: round(value, 4) for name, value in figures.items()}
    save_record(options.output, {**rounded, "threads": torch.get_num_threads(), "data": str(options.images)})
    logger.warning("%s", options.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
