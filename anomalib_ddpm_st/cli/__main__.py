# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``python -m anomalib_ddpm_st.cli``."""

from .main import main

if __name__ == "__main__":
    main()
