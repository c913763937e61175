# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of synthetic defects."""

import json
import sys
from pathlib import Path

import pytest
import synthesis
import torch
from diffusers import UNet2DModel

from anomalib_ddpm_st import DefectPipeline, PerturbedDDPMScheduler
from anomalib_ddpm_st.diffusion import build_unet


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 pixels, and a small network in place of RealNet's."""
    monkeypatch.setattr(synthesis, "SIZE", (32, 32))
    monkeypatch.setattr(synthesis, "PAIRS", 2)
    block = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    monkeypatch.setattr(synthesis, "realnet_unet", lambda: UNet2DModel((32, 32), **block, **kinds))


def test_flops() -> None:
    """Two per multiply-accumulate operation of a product."""
    assert synthesis.flops(lambda: torch.rand(3, 5) @ torch.rand(5, 7)) == 2 * 3 * 5 * 7


def test_realnet_has_its_width() -> None:
    """About the half billion weights of the published network."""
    with torch.device("meta"):
        unet = synthesis.realnet_unet()
    count = sum(value.numel() for value in unet.parameters())
    assert 4e8 < count < 7e8
    kinds = [type(block).__name__ for block in unet.down_blocks]
    assert kinds == ["DownBlock2D"] * 3 + ["AttnDownBlock2D"] * 3


@pytest.mark.usefixtures("small")
def test_record(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure, with command, commit and machine."""
    pipeline = DefectPipeline(
        build_unet((32, 32), block_out_channels=(8, 8)), PerturbedDDPMScheduler(prediction_type="sample")
    )
    pipeline.save_pretrained(tmp_path / "ddpm")
    output = tmp_path / "synthesis.json"
    images = data_root / "bottle" / "train" / "good"
    arguments = ["--diffusion-path", str(tmp_path / "ddpm"), "--images", str(images), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/synthesis.py", *arguments, "--repeats", "1"])
    monkeypatch.setattr(synthesis, "time_pairs", lambda *_: 12.5)
    synthesis.main()
    record = json.loads(output.read_text())
    for name in ("flops_ratio", "time_ratio", "generator_share", "perlin_share", "seconds_100_pairs"):
        assert record[name] > 0
    assert 0 < record["generator_share"] < 1
    assert record["generator_share"] == pytest.approx(
        record["generator_seconds"] / (record["generator_seconds"] + record["rest_seconds"]), abs=0.01
    )
    assert {"command", "commit", "machine", "threads", "data"} <= set(record)
