# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Stage 2: textures of a perturbed DDPM, and synthetic defects with their masks."""

from .callback import SyntheticAnomalies
from .config import BankConfig, DefectConfig
from .generator import AnomalyParameters, DiffusionAnomalyGenerator
from .preparation import prepare_bank, prepare_generator
from .sampling import sample_bank
from .texture_bank import TextureBank

__all__ = [
    "AnomalyParameters",
    "BankConfig",
    "DefectConfig",
    "DiffusionAnomalyGenerator",
    "SyntheticAnomalies",
    "TextureBank",
    "prepare_bank",
    "prepare_generator",
    "sample_bank",
]
