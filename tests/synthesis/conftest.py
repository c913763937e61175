# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures shared by the tests of synthesis."""

import pytest
import torch

from anomalib_ddpm_st.synthesis import TextureBank
from anomalib_ddpm_st.synthesis.texture_bank import thumbnails


@pytest.fixture
def bank() -> TextureBank:
    """Bank of eight random textures of three random normal images."""
    textures = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    return TextureBank(textures, torch.tensor([0, 1, 2, 0, 2, 1, 0, 1]), thumbnails(torch.rand(3, 3, 16, 16)))
