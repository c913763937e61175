# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks are scripts, not a package: their folder goes on the path, as it does when one is run."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_ddpm_st import DdpmSt

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Category "bottle" in the layout of MVTecAD, with ten normal training images."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for folder, count in (("train/good", 10), ("test/good", 2), ("test/hole", 2), ("ground_truth/hole", 2)):
        target = root / "bottle" / folder
        target.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(60, 190, (64, 64, 3), dtype=np.uint8)
            if folder.startswith("ground_truth"):
                Image.fromarray(np.full((64, 64), 255, np.uint8)).save(target / f"{index:03d}_mask.png")
            else:
                Image.fromarray(pixels).save(target / f"{index:03d}.png")
    return root


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """DdpmSt works at 64 x 64 pixels by default, a sixteenth of what it would."""
    small = partial(DdpmSt.configure_pre_processor, (64, 64))
    monkeypatch.setattr(DdpmSt, "configure_pre_processor", staticmethod(small))
