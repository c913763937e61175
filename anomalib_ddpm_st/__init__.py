# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Industrial defect detection with diffusion-made defects and an asymmetric student-teacher network, for anomalib.

Importing the package registers the model with anomalib.

Example:
    >>> import anomalib_ddpm_st
    >>> from anomalib.models import list_models
    >>> "ddpm_st" in list_models()
    True
"""

from .core import known_noise  # noqa: F401  # first, since it hides warnings of the imports below
from .core.canonical_pose import CanonicalPose
from .core.input_size import InputSize, choose_input_size
from .detector import ConformalPostProcessor, DdpmSt, DefectSizePreProcessor
from .diffusion import DefectPipeline, DiffusionConfig, PerturbedDDPMScheduler
from .registration import register, synthetic_split
from .synthesis import (
    BankConfig,
    DefectConfig,
    DiffusionAnomalyGenerator,
    SyntheticAnomalies,
    TextureBank,
    prepare_generator,
)

__all__ = [
    "BankConfig",
    "CanonicalPose",
    "ConformalPostProcessor",
    "DdpmSt",
    "DefectConfig",
    "DefectPipeline",
    "DefectSizePreProcessor",
    "DiffusionAnomalyGenerator",
    "DiffusionConfig",
    "InputSize",
    "PerturbedDDPMScheduler",
    "SyntheticAnomalies",
    "TextureBank",
    "choose_input_size",
    "prepare_generator",
    "register",
    "synthetic_split",
]

__version__ = "0.1.0"

register()
