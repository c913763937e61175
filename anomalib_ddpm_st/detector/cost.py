# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What training and testing will cost on this machine, from a few timed steps."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.diffusion.training import MAX_WHOLE_SIZE, WINDOW_SIZE
from anomalib_ddpm_st.diffusion.unet import build_unet, denoise, unet_patch_size
from anomalib_ddpm_st.synthesis import BankConfig, DiffusionAnomalyGenerator

from .loss import DdpmStLoss
from .torch_model import DdpmStModel

REPEATS = 2
LATENCY_REPEATS = 5


@dataclass(frozen=True)
class Schedule:
    """What a training does, as far as its time depends on it.

    Attributes:
        training_steps (int): Steps of the detector. Defaults to ``6000``.
        batch_size (int): Images per step of the detector. Defaults to ``8``.
        diffusion (DiffusionConfig | None): Training of the DDPM. ``None`` if none is trained.
        bank (BankConfig | None): Sampling of the bank. ``None`` if there is none.
    """

    training_steps: int = 6000
    batch_size: int = 8
    diffusion: DiffusionConfig | None = field(default_factory=DiffusionConfig)
    bank: BankConfig | None = field(default_factory=BankConfig)


class CostMeter:
    """Estimates the duration of a training and of a prediction at any input size.

    One step of each stage is timed at 256 x 256 pixels; the time of larger images is in proportion to their pixels.
    Reading images, memory bank, validation and what the cache holds already are left out.

    Args:
        model (DdpmStModel): Detector; it is not changed.
        schedule (Schedule): Length of the stages. Defaults to that of :class:`DdpmSt`.
        device (torch.device | None): Device to compute on. ``None`` for that of the detector. Defaults to ``None``.
        context (Callable[[], AbstractContextManager]): Makes the context of each step, such as that of a precision.
            Defaults to none.
    """

    def __init__(
        self,
        model: DdpmStModel,
        schedule: Schedule | None = None,
        device: torch.device | None = None,
        context: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self._device = model.score_spread.device if device is None else device
        self._model = copy.deepcopy(getattr(model, "_orig_mod", model)).to(self._device)
        self._schedule = schedule or Schedule()
        self._context = context
        self._stages: tuple[float, float, float] | None = None

    def minutes(self, image_size: tuple[int, int]) -> float:
        """Duration of a training.

        Args:
            image_size (tuple[int, int]): Height and width of the input in pixels.

        Returns:
            float: Minutes.
        """
        if self._stages is None:
            self._stages = self._measure_stages()
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
        images = torch.zeros(1, 3, *image_size, device=self._device)
        self._model.eval()
        with torch.no_grad():
            return 1000 * self._time(lambda: self._model(images), LATENCY_REPEATS)

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

    def _measure_stages(self) -> tuple[float, float, float]:
        """Seconds for each pixel of an image of training the detector, training the DDPM and sampling the bank."""
        schedule, pixels = self._schedule, DEFAULT_IMAGE_SIZE[0] * DEFAULT_IMAGE_SIZE[1]
        detector = diffusion = bank = 0.0
        # Nothing that is drawn here may change the training.
        with torch.random.fork_rng():
            detector = schedule.training_steps * self._time(self._detector_step(schedule.batch_size))
            channels = (schedule.diffusion or DiffusionConfig()).block_out_channels
            if schedule.diffusion is not None:
                steps = schedule.diffusion.training_steps
                diffusion = steps * self._time(self._diffusion_step(schedule.diffusion.batch_size, channels))
            if schedule.bank is not None:
                with torch.no_grad():
                    seconds = self._time(self._diffusion_step(1, channels, training=False))
                bank = schedule.bank.size * schedule.bank.num_inference_steps * seconds
        return detector / pixels, diffusion / pixels, bank / pixels

    def _detector_step(self, batch_size: int) -> Callable[[], object]:
        """A step of training the detector but for the optimiser."""
        network, loss = self._model.train(), DdpmStLoss()
        generator = DiffusionAnomalyGenerator()
        images = torch.rand(batch_size, 3, *DEFAULT_IMAGE_SIZE, device=self._device)

        def step() -> None:
            augmented, masks = generator(images)
            loss(*network(augmented, images), masks).backward()
            network.zero_grad()

        return step

    def _diffusion_step(
        self,
        batch_size: int,
        channels: tuple[int, ...],
        training: bool = True,
    ) -> Callable[[], object]:
        """A step of training the DDPM but for the optimiser, or of sampling from it."""
        unet = build_unet(DEFAULT_IMAGE_SIZE, block_out_channels=channels).to(self._device)
        side = unet_patch_size(unet)
        shape = (batch_size, 3 * side**2, *(length // side for length in DEFAULT_IMAGE_SIZE))
        sample = torch.rand(shape, device=self._device)
        timesteps = torch.zeros(batch_size, dtype=torch.long, device=self._device)

        def step() -> None:
            prediction = denoise(unet, sample, timesteps)
            if training:
                prediction.square().mean().backward()
                unet.zero_grad()

        return step

    def _time(self, step: Callable[[], object], repeats: int = REPEATS) -> float:
        """Seconds of the fastest of some runs after the first."""
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            with self._context():
                step()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])
