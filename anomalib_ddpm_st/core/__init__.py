# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What all stages share: images, geometry, random draws, settings, cache and progress."""
