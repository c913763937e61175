# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Command line, one module per command."""

from .main import DdpmStCLI, main

__all__ = ["DdpmStCLI", "main"]
