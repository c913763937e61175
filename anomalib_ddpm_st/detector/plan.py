# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What a training will do and how long it takes on this machine, said before its first stage."""

import copy
import math
from typing import cast

import torch
from lightning.pytorch import Trainer

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.timing import describe_duration, seconds_per_call
from anomalib_ddpm_st.diffusion import time_diffusion
from anomalib_ddpm_st.synthesis.preparation import find_prepared

from .training_data import DetectorModule, TrainingData, count_labels

# Images that a step of the detector is timed with.
TIMED_IMAGES = 8


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
        step, reverse_step = (0.0, 0.0) if all(found) else time_diffusion(pixels, model.diffusion, device, precision)
        # Each texture is sampled with and without the perturbation.
        sampled = 2 * model.bank.size * model.bank.num_inference_steps
        seconds = (step * model.diffusion.training_steps, reverse_step * sampled)
        for (stage, name), is_found, duration in zip(names.items(), found, seconds, strict=True):
            given = "given" if stage == "Stage 1" and model.diffusion_path is not None else "in the cache"
            lines.append(f"  {stage}  {name}: {given if is_found else describe_duration(duration)}")
            total += 0 if is_found else duration
    else:
        lines = [f"  {stage}  {name}: not needed" for stage, name in names.items()]
    steps = _number_of_steps(model, math.ceil(len(images) / batch_size))
    if getattr(model.trainer, "ckpt_path", None):
        return [*lines, f"  Stage 3  detector, up to step {steps}: resumed from a checkpoint"]
    duration = steps * _time_detector(model, pixels, min(batch_size, len(images)), device, precision)
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


def _time_detector(
    model: DetectorModule, pixels: torch.Tensor, batch_size: int, device: torch.device, precision: str
) -> float:
    """Seconds of a step of the detector, without the drawing of defects, which takes little."""
    network = copy.deepcopy(getattr(model.model, "_orig_mod", model.model)).to(device).train()
    count = min(batch_size, TIMED_IMAGES)
    images = (pixels[:1].float() / 255).expand(max(count, 2), -1, -1, -1).to(device)
    masks = torch.zeros_like(images[:, :1])
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

    def step() -> None:
        with torch.autocast(device.type, kinds.get(precision), enabled=precision in kinds):
            loss = model.loss(*network(images, images), masks)
        loss.backward()

    return seconds_per_call(step, device) * batch_size / len(images)
