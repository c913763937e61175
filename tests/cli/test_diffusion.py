# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``diffusion``."""

from pathlib import Path

import pytest

from anomalib_ddpm_st.cli.diffusion import diffusion
from anomalib_ddpm_st.diffusion import load_pipeline


def test_writes_a_pipeline_and_samples(ddpm: Path) -> None:
    """With the settings of the command line."""
    assert (ddpm / "samples.png").exists()
    assert (ddpm / "health.json").exists()
    pipeline = load_pipeline(ddpm)
    assert tuple(pipeline.unet.config.block_out_channels) == (8, 8)
    assert pipeline(batch_size=1, num_inference_steps=1).images.shape == (1, 3, 32, 32)


def test_does_not_overwrite(ddpm: Path, good: Path) -> None:
    with pytest.raises(FileExistsError, match="already holds a trained DDPM"):
        diffusion(good, ddpm)
