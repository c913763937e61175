# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st size``: the input size that the smallest defect needs."""

from pathlib import Path
from typing import cast

import torch
import yaml

from anomalib_ddpm_st.core.config import check_positive
from anomalib_ddpm_st.core.input_size import MAX_COST, budget_pixels, choose_input_size
from anomalib_ddpm_st.detector import DdpmSt
from anomalib_ddpm_st.detector.cost import CostMeter
from anomalib_ddpm_st.detector.defect_size import describe_choice
from anomalib_ddpm_st.detector.training_data import DetectorModule

from .sources import find_normal_images


def size(
    smallest_defect: float,
    images: Path | None = None,
    data: Path | None = None,
    pixel_size: float | None = None,
    max_cost: float = MAX_COST,
    max_minutes: float | None = None,
    max_milliseconds: float | None = None,
) -> None:
    """Recommend an input size by the smallest defect that matters.

    It prints the size, its cost on this machine and the config that sets it. The cost is that of the default settings
    in batches of 8 images, in 32 bit, and on a GPU if there is one.

    Args:
        smallest_defect (float): Longer side of the smallest defect that matters, in pixels of the original images, or
            in mm with pixel_size.
        images (Path | None): Folder of normal images.
        data (Path | None): Config of an anomalib datamodule (YAML with class_path and init_args), instead of a folder.
        pixel_size (float | None): Side of a pixel of the original images in mm.
        max_cost (float): Largest number of pixels of the input, in units of 256 x 256.
        max_minutes (float | None): Longest training on this machine, in minutes.
        max_milliseconds (float | None): Longest prediction of one image in PyTorch on this machine, in milliseconds.

    Raises:
        ValueError: If a setting is not above 0, there are no images or one cannot be read, the defect is larger than
            the images, or the time budget is too small.
    """
    allowed = budget_pixels(max_cost)
    if max_minutes is not None:
        check_positive("max_minutes", max_minutes)
    if max_milliseconds is not None:
        check_positive("max_milliseconds", max_milliseconds)
    sizes = find_normal_images(images, data)(None).shown_sizes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meter = CostMeter(cast("DetectorModule", DdpmSt()), device)
    max_pixels = min(allowed, meter.max_pixels(max_minutes, max_milliseconds))
    chosen = choose_input_size(sizes, smallest_defect, pixel_size, max_pixels)
    resize = {"size": list(chosen.image_size), "antialias": False}
    transform = {"class_path": "torchvision.transforms.v2.Resize", "init_args": resize}
    part = {"class_path": "anomalib.pre_processing.PreProcessor", "init_args": {"transform": transform}}
    config = yaml.safe_dump({"model": {"init_args": {"pre_processor": part}}}, sort_keys=False)
    milliseconds, minutes = meter.milliseconds(chosen.image_size), meter.minutes(chosen.image_size)
    print(describe_choice(chosen, milliseconds, minutes))  # noqa: T201
    print(f"\nFor the config of the model:\n\n{config}")  # noqa: T201
    print(f'For diffusion and synthesize: --image_size "{list(chosen.image_size)}"')  # noqa: T201
