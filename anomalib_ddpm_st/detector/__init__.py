# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Stage 3: the asymmetric student-teacher detector."""

from .defect_size import DefectSizePreProcessor
from .lightning_model import DdpmSt
from .loss import DdpmStLoss
from .post_processing import ConformalPostProcessor
from .torch_model import DdpmStModel, build_model

__all__ = [
    "ConformalPostProcessor",
    "DdpmSt",
    "DdpmStLoss",
    "DdpmStModel",
    "DefectSizePreProcessor",
    "build_model",
]
