# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of changed light."""

import sys
from pathlib import Path

import light
import pytest
import torch
from common import METRICS, read_table

from anomalib_ddpm_st.detector.augmentation import change_light


def test_same_light_for_all_models() -> None:
    """It depends on the seed and the order of the batches alone."""
    images = torch.rand(4, 3, 32, 32)
    first, second, other = light.ChangedLight(1), light.ChangedLight(1), light.ChangedLight(2)
    expected = [first(part) for part in images.split(2)]
    assert torch.equal(torch.cat(expected), torch.cat([second(part) for part in images.split(2)]))
    assert not torch.equal(expected[0], other(images[:2]))
    assert torch.equal(expected[0], change_light(images[:2], torch.Generator().manual_seed(1)))


@pytest.mark.usefixtures("small_images", "quiet")
def test_rows(data_root: Path, short_curve: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lights for each model; DdpmSt takes trained weights, and what is there is not measured again."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "bottle-1").symlink_to(short_curve[2])
    output = tmp_path / "light.csv"
    common = ["--categories", "bottle", f"--data-root={data_root}", f"--output={output}"]
    settings = '{"pre_trained": false, "n_features": 4, "backbone": "resnet18", "layers": ["layer1"]}'
    own = ["--models", "DdpmSt", f"--weights-dir={weights}", "--teacher-weights", "null"]
    for options in (own, own, ["--models", "Padim", "--model-arguments", settings, "--max-epochs", "1"]):
        monkeypatch.setattr(sys, "argv", ["benchmarks/light.py", *common, *options])
        light.main()
    table = read_table(output)
    assert table["model"].tolist() == ["DdpmSt", "DdpmSt", "Padim", "Padim"]
    assert table["light"].tolist() == ["original", "changed"] * 2
    assert table[[*METRICS, "false_alarms"]].map(lambda value: 0 <= value <= 100).all(axis=None)
    for _, rows in table.groupby("model"):
        assert rows[list(METRICS)].nunique().max() == 2
