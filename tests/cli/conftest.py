# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Normal images, weights and a DDPM that the tests of the commands share; none of them is ever changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_ddpm_st.cli import DdpmStCLI
from anomalib_ddpm_st.cli.health import HEALTH_LAYERS
from anomalib_ddpm_st.detector.teacher import Teacher


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three normal images."""
    folder = tmp_path_factory.mktemp("data") / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(100, 140, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weight file of an untrained ResNet-18, so that nothing is downloaded."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(Teacher("resnet18", HEALTH_LAYERS).extractor.feature_extractor.state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def ddpm(tmp_path_factory: pytest.TempPathFactory, good: Path, weights: str) -> Path:
    """Folder of a small DDPM trained for two steps by the command line."""
    output = tmp_path_factory.mktemp("stage1") / "ddpm"
    options = {
        "--images": good,
        "--output": output,
        "--image_size": "[32, 32]",
        "--diffusion.training_steps": 2,
        "--diffusion.batch_size": 2,
        "--diffusion.block_out_channels": "[8, 8]",
        "--accelerator": "cpu",
        "--teacher_weights": weights,
    }
    DdpmStCLI(["diffusion", *(str(part) for option in options.items() for part in option)])
    return output
