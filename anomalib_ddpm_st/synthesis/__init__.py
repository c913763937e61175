# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Stage 2: synthetic defects with their masks."""

from .bank import TextureBank, sample_bank
from .generator import AnomalyParameters, DiffusionAnomalyGenerator
from .preparation import prepare_generator

__all__ = ["AnomalyParameters", "DiffusionAnomalyGenerator", "TextureBank", "prepare_generator", "sample_bank"]
