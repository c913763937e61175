# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st diffusion``: stage 1 alone."""

from pathlib import Path

import torch
from anomalib.data.utils import get_image_filenames
from torchvision.utils import save_image

from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE, NormalImages
from anomalib_ddpm_st.diffusion import DiffusionConfig, train_diffusion

from .health import measure_health

DEFAULT_DIFFUSION = DiffusionConfig()
SAMPLES = 16


def diffusion(
    images: Path,
    output: Path,
    diffusion: DiffusionConfig = DEFAULT_DIFFUSION,
    image_size: tuple[int, int] = DEFAULT_IMAGE_SIZE,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    teacher_weights: str | None = None,
) -> None:
    """Train the DDPM of stage 1 alone, on a folder of normal images.

    Args:
        images (Path): Folder of normal images.
        output (Path): Folder for the trained DDPM, in the diffusers format. An interrupted training resumes from it.
        diffusion (DiffusionConfig): Training of the DDPM.
        image_size (tuple[int, int]): Height and width in pixels.
        accelerator (str): Accelerator of the Trainer.
        devices (int | str): Devices of the Trainer.
        precision (str): Precision of the Trainer; bf16-mixed is faster on many processors, but not on all.
        teacher_weights (str | None): Local ResNet-18 weights, used to measure the health of the DDPM; downloaded by
            default. If the download fails, the health is not measured.

    Raises:
        FileExistsError: If the output folder already holds a trained DDPM.
    """
    if (output / "model_index.json").exists():
        msg = f"{output} already holds a trained DDPM: choose another folder, or delete this one to train again."
        raise FileExistsError(msg)
    normal = NormalImages.from_files(get_image_filenames(images), image_size).load(min_images=1)
    pipeline = train_diffusion(
        normal,
        output,
        diffusion,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
    )
    generator = torch.Generator().manual_seed(diffusion.seed)
    samples = pipeline(batch_size=SAMPLES, generator=generator)[0]
    save_image(samples, output / "samples.png", nrow=4)
    print(f"Saved the trained DDPM in {output}. The samples in {output / 'samples.png'} should look normal.")  # noqa: T201
    measure_health(pipeline, normal, output, teacher_weights)
