# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Industrial defect detection by diffusion-made defects and an asymmetric student-teacher network, for anomalib.

Importing the package registers the model with anomalib.

Example:
    >>> import anomalib_ddpm_st
    >>> from anomalib.models import list_models
    >>> "ddpm_st" in list_models()
    True
"""

from .detector import DdpmSt
from .diffusion import DefectPipeline, PerturbedDDPMScheduler
from .registration import register
from .synthesis import DiffusionAnomalyGenerator, TextureBank

__all__ = [
    "DdpmSt",
    "DefectPipeline",
    "DiffusionAnomalyGenerator",
    "PerturbedDDPMScheduler",
    "TextureBank",
    "register",
]

__version__ = "0.1.0"

register()
