# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Stage 1: a DDPM that learns normal images, and its perturbed sampling."""

from .config import DiffusionConfig
from .lightning_model import DiffusionModule
from .pipeline import DefectPipeline, DefectPipelineOutput, load_pipeline
from .scheduler import PerturbedDDPMScheduler
from .training import time_diffusion, train_diffusion
from .unet import build_unet

__all__ = [
    "DefectPipeline",
    "DefectPipelineOutput",
    "DiffusionConfig",
    "DiffusionModule",
    "PerturbedDDPMScheduler",
    "build_unet",
    "load_pipeline",
    "time_diffusion",
    "train_diffusion",
]
