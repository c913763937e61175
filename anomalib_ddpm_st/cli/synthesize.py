# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st synthesize``: images with synthetic defects and their masks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from anomalib_ddpm_st.core.config import check_integer
from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE
from anomalib_ddpm_st.diffusion import DiffusionConfig, load_pipeline
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig, prepare_generator
from anomalib_ddpm_st.synthesis.pairs import write_pairs
from anomalib_ddpm_st.synthesis.preparation import prepare_diffusion
from anomalib_ddpm_st.synthesis.report import save_report

from .diffusion import DEFAULT_DIFFUSION
from .health import measure_health
from .sources import find_normal_images

DEFAULT_DEFECTS = DefectConfig(source="diffusion")
DEFAULT_BANK = BankConfig()


def synthesize(
    output: Path,
    images: Path | None = None,
    data: Path | None = None,
    per_image: int = 1,
    count: int | None = None,
    defects: DefectConfig = DEFAULT_DEFECTS,
    bank: BankConfig = DEFAULT_BANK,
    diffusion: DiffusionConfig = DEFAULT_DIFFUSION,
    diffusion_path: Path | None = None,
    image_size: tuple[int, int] = DEFAULT_IMAGE_SIZE,
    full_size: bool = False,
    teacher_weights: str | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    precision: str = "32-true",
) -> None:
    """Write images with synthetic defects and their masks, for anomalib's Folder datamodule or for visual inspection.

    Training a DdpmSt on the same images with the same bank and diffusion settings reuses the DDPM and the bank.

    Args:
        output (Path): Folder for image/, mask/, pairs.csv, contact_sheet.png and report.html. An interrupted run
            resumes from it.
        images (Path | None): Folder of normal images.
        data (Path | None): Config of an anomalib datamodule (YAML with class_path and init_args), instead of a folder.
        per_image (int): Number of pairs per normal image.
        count (int | None): Total number of pairs, overrides per_image.
        defects (DefectConfig): Synthetic defects.
        bank (BankConfig): Bank of defect textures.
        diffusion (DiffusionConfig): Training of the DDPM.
        diffusion_path (Path | None): Folder of a trained DDPM. By default one is trained, or taken from the cache.
        image_size (tuple[int, int]): Height and width in pixels, of the DDPM and of the pairs.
        full_size (bool): Write each pair at the size of its normal image instead.
        teacher_weights (str | None): Local ResNet-18 weights, used to measure the health of the DDPM; downloaded by
            default. If the download fails, the health is not measured.
        seed (int): Seed of the pairs. Bank and DDPM have their own seeds; the same seeds give the same files.
        cache_dir (Path | None): Folder for DDPMs and banks. By default the user's cache folder.
        precision (str): Precision of training and sampling; bf16-mixed is faster on many processors, but not on all.

    Raises:
        FileExistsError: If the output folder holds pairs that were made with other settings.
        ValueError: If a setting is out of its range, or an image or the datamodule config cannot be read.
    """
    # Checked now, not after stages 1 and 2.
    check_integer("per_image", per_image, 1)
    if count is not None:
        check_integer("count", count, 1)
    normal_images = find_normal_images(images, data)
    sources = normal_images(image_size)
    # What identifies the pairs, named like the options.
    groups: dict[str, dict[str, Any]] = {"defects": asdict(defects)}
    pipeline, normal, health = None, None, None
    output.mkdir(parents=True, exist_ok=True)
    if defects.needs_bank:
        groups["bank"] = asdict(bank)
        groups["diffusion"] = {"path": str(diffusion_path)} if diffusion_path else asdict(diffusion)
        normal = sources.load(min_images=1)
        if diffusion_path is None:
            diffusion_path = prepare_diffusion(normal, diffusion, cache_dir, precision=precision)
        pipeline = load_pipeline(diffusion_path)
        health = measure_health(pipeline, normal, output, teacher_weights)
    settings = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    generator = prepare_generator(
        sources,
        defects,
        bank,
        diffusion,
        diffusion_path=diffusion_path,
        cache_dir=cache_dir,
        precision=precision,
    )
    settings["image_size"] = None if full_size else image_size
    if full_size:
        sources = normal_images(None)
    pairs = write_pairs(generator, sources, output, per_image, count, seed, settings)
    page = save_report(output, pairs, sources, {**settings, "seed": seed}, pipeline, normal, health)
    print(f"Wrote {len(pairs)} pairs to {output}; {page} shows some of them.")  # noqa: T201
