# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What a training will do and how long it takes on this machine, said before its first stage."""

import math
from typing import cast

import torch
from lightning.pytorch import Trainer

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.timing import describe_duration
from anomalib_ddpm_st.synthesis.preparation import estimate_preparation, find_prepared

from .cost import time_detector
from .training_data import DetectorModule, TrainingData, count_labels


def describe_training(model: DetectorModule, data: TrainingData) -> str:
    """Describe the data, stages, time and results of a training, from a few timed steps of the real networks.

    Args:
        model (DetectorModule): Model, attached to its Trainer.
        data (TrainingData): Data.

    Returns:
        str: At most eight lines.
    """
    lines = ["Training plan", f"  Images   {_describe_data(data)}"]
    if data.images is not None:
        pixels = data.images.load()
        lines += [f"  Input    {pixels.shape[-2]} x {pixels.shape[-1]} pixels, batches of {data.batch_size}"]
        lines += _describe_stages(model, data.images, pixels, data.batch_size or len(pixels))
    lines.append(f"  Results  {model.trainer.default_root_dir}")
    return "\n".join(lines)


def _describe_data(data: TrainingData) -> str:
    """Number of images of each set."""
    parts = [] if data.images is None else [f"{len(data.images)} good for training"]
    for name, datasets in (("validation", data.validation), ("test", data.test)):
        good, defective = count_labels(datasets)
        parts.append(f"{good} good and {defective} defective for {name}" if good or defective else f"none for {name}")
    return ", ".join(parts)


def _describe_stages(model: DetectorModule, images: NormalImages, pixels: torch.Tensor, batch_size: int) -> list[str]:
    """One line for each stage, and one for all of them."""
    device, precision = model.trainer.strategy.root_device, str(model.trainer.precision)
    names = {
        "Stage 1": f"DDPM of the good images, {model.diffusion.training_steps} steps",
        "Stage 2": f"{model.bank.size} defect textures",
    }
    lines, total = [], 0.0
    if model.defects.needs_bank:
        settings = (model.bank, model.diffusion, model.diffusion_path, model.cache_dir)
        found = find_prepared(images, *settings, min_images=2)
        seconds = (0.0, 0.0)
        if not all(found):
            seconds = estimate_preparation(pixels, model.bank, model.diffusion, device, precision)
        for (stage, name), is_found, duration in zip(names.items(), found, seconds, strict=True):
            given = "given" if stage == "Stage 1" and model.diffusion_path is not None else "in the cache"
            lines.append(f"  {stage}  {name}: {given if is_found else describe_duration(duration)}")
            total += 0 if is_found else duration
    else:
        lines = [f"  {stage}  {name}: not needed" for stage, name in names.items()]
    steps = _number_of_steps(model, math.ceil(len(images) / batch_size))
    if getattr(model.trainer, "ckpt_path", None):
        return [*lines, f"  Stage 3  detector, up to step {steps}: resumed from a checkpoint"]
    batch_size = min(batch_size, len(images))
    duration = steps * time_detector(model.model, model.loss, pixels, batch_size, device, precision)
    lines.append(f"  Stage 3  detector, {steps} steps: {describe_duration(duration)}")
    return [*lines, f"  Time     {describe_duration(total + duration)} on this machine ({device.type})"]


def _number_of_steps(model: DetectorModule, steps_per_epoch: int) -> int:
    """Steps of the detector, with the bounds of the Trainer."""
    trainer = cast("Trainer", model.trainer)
    steps = [model.training_steps]
    if trainer.max_steps > 0:
        steps.append(trainer.max_steps)
    if (trainer.max_epochs or 0) > 0:
        steps.append(cast("int", trainer.max_epochs) * steps_per_epoch)
    return min(steps)
