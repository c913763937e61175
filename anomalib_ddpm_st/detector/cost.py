# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What training and testing the detector cost on this machine, from a few timed steps."""

import copy
from functools import cached_property

import torch
from torch import nn

from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE
from anomalib_ddpm_st.core.timing import mixed_precision, seconds_per_call
from anomalib_ddpm_st.diffusion.training import ENOUGH_IMAGES, MAX_WHOLE_SIZE, WINDOW_SIZE
from anomalib_ddpm_st.synthesis import DiffusionAnomalyGenerator
from anomalib_ddpm_st.synthesis.preparation import estimate_preparation

from .torch_model import DdpmStModel
from .training_data import DetectorModule

# Images per step of the training that the cost of a size is estimated for.
BATCH_SIZE = 8
# Images that a step of the detector is timed with at most.
TIMED_IMAGES = 8


def time_detector(
    model: DdpmStModel,
    loss: nn.Module,
    images: torch.Tensor,
    batch_size: int,
    device: torch.device,
    precision: str = "32-true",
) -> float:
    """Measure how long a training step of the detector takes, with the drawing of defects but without the optimiser.

    Args:
        model (DdpmStModel): Detector; it is not changed.
        loss (nn.Module): Loss of the detector.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        batch_size (int): Images per step. Eight are timed at most; the time of more is in proportion to their number.
        device (torch.device): Device to train on.
        precision (str): Precision of the Trainer. Defaults to ``"32-true"``.

    Returns:
        float: Seconds.
    """
    network = _copy(model, device).train()
    # Batch normalisation needs two images.
    count = max(min(batch_size, TIMED_IMAGES), 2)
    normal = (images[:1].float() / 255).repeat(count, 1, 1, 1).to(device)
    generator = DiffusionAnomalyGenerator()

    def step() -> None:
        with mixed_precision(device, precision):
            augmented, masks = generator(normal)
            value = loss(*network(augmented, normal), masks)
        value.backward()
        network.zero_grad()

    return seconds_per_call(step, device) * batch_size / count


def time_prediction(
    model: DdpmStModel,
    image_size: tuple[int, int],
    device: torch.device,
    precision: str = "32-true",
) -> float:
    """Measure how long the prediction of one image takes in PyTorch, without reading and resizing.

    Args:
        model (DdpmStModel): Detector; it is not changed.
        image_size (tuple[int, int]): Height and width of the input in pixels.
        device (torch.device): Device to predict on.
        precision (str): Precision of the Trainer. Defaults to ``"32-true"``.

    Returns:
        float: Seconds.
    """
    network = _copy(model, device).eval()
    images = torch.zeros(1, 3, *image_size, device=device)

    def step() -> None:
        with torch.no_grad(), mixed_precision(device, precision):
            network(images)

    return seconds_per_call(step, device)


def _copy(model: DdpmStModel, device: torch.device) -> DdpmStModel:
    """Copy of a model, which is not compiled."""
    return copy.deepcopy(getattr(model, "_orig_mod", model)).to(device)


class CostMeter:
    """Estimates the duration of a training and of a prediction at any input size.

    One step of each stage is timed at 256 x 256 pixels; the time of larger images is in proportion to their pixels.
    Reading images, memory bank, validation and what the cache holds already are left out.

    Args:
        module (DetectorModule): Model with its settings; it is not changed.
        device (torch.device): Device to compute on.
    """

    def __init__(self, module: DetectorModule, device: torch.device) -> None:
        self._module = module
        self._device = device

    def minutes(self, image_size: tuple[int, int]) -> float:
        """Duration of a training in batches of 8 images.

        Args:
            image_size (tuple[int, int]): Height and width of the input in pixels.

        Returns:
            float: Minutes.
        """
        detector, diffusion, bank = self._stages
        pixels = image_size[0] * image_size[1]
        # Larger images are learned in windows, and sampled in tiles.
        learned = WINDOW_SIZE**2 if max(image_size) > MAX_WHOLE_SIZE else pixels
        return (detector * pixels + diffusion * learned + bank * pixels) / 60

    def milliseconds(self, image_size: tuple[int, int]) -> float:
        """Duration of the prediction of one image.

        Args:
            image_size (tuple[int, int]): Height and width of the input in pixels.

        Returns:
            float: Milliseconds in PyTorch, without reading and resizing.
        """
        return 1000 * time_prediction(self._module.model, image_size, self._device)

    def max_pixels(self, max_minutes: float | None, max_milliseconds: float | None) -> float:
        """Largest number of pixels of an input within a time budget.

        Args:
            max_minutes (float | None): Longest training. ``None`` for no bound.
            max_milliseconds (float | None): Longest prediction. ``None`` for no bound.

        Returns:
            float: Number of pixels.
        """
        pixels = DEFAULT_IMAGE_SIZE[0] * DEFAULT_IMAGE_SIZE[1]
        bounds = [float("inf")]
        if max_minutes is not None:
            bounds.append(pixels * max_minutes / self.minutes(DEFAULT_IMAGE_SIZE))
        if max_milliseconds is not None:
            bounds.append(pixels * max_milliseconds / self.milliseconds(DEFAULT_IMAGE_SIZE))
        return min(bounds)

    @cached_property
    def _stages(self) -> tuple[float, float, float]:
        """Seconds for each pixel of an image of training the detector, training the DDPM and sampling the bank."""
        module, device, pixels = self._module, self._device, DEFAULT_IMAGE_SIZE[0] * DEFAULT_IMAGE_SIZE[1]
        # So many that the DDPM does not augment them.
        shape, generator = (ENOUGH_IMAGES, 3, *DEFAULT_IMAGE_SIZE), torch.Generator().manual_seed(0)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        detector = module.training_steps * time_detector(module.model, module.loss, images, BATCH_SIZE, device)
        diffusion = bank = 0.0
        if module.defects.needs_bank:
            diffusion, bank = estimate_preparation(images, module.bank, module.diffusion, device)
        return detector / pixels, diffusion / pixels, bank / pixels
