# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Stage 1: a DDPM that learns what normal images look like, and its perturbed sampling."""

from .lightning_model import DiffusionModule, train_diffusion
from .pipeline import DefectPipeline, DefectPipelineOutput
from .scheduler import PerturbedDDPMScheduler
from .unet import build_unet

__all__ = [
    "DefectPipeline",
    "DefectPipelineOutput",
    "DiffusionModule",
    "PerturbedDDPMScheduler",
    "build_unet",
    "train_diffusion",
]
