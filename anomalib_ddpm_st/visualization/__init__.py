# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Plots and reports."""

from .plots import contact_sheet, histograms, save_contact_sheet, save_score_histogram
from .report import Section, render_report

__all__ = [
    "Section",
    "contact_sheet",
    "histograms",
    "render_report",
    "save_contact_sheet",
    "save_score_histogram",
]
