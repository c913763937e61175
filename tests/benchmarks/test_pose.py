# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the benchmark of poses."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pose
import pytest
import torch
from PIL import Image, ImageDraw

from anomalib_ddpm_st.core.pose import estimate_pose


def draw(angle: float) -> Image.Image:
    """A bolt on a plain background."""
    bolt = Image.new("L", (96, 96), 0)
    canvas = ImageDraw.Draw(bolt)
    canvas.rectangle((18, 42, 70, 52), fill=255)
    canvas.rectangle((70, 34, 78, 60), fill=255)
    image = Image.new("L", (96, 96), 200)
    image.paste(60, mask=bolt.rotate(angle))
    return image.convert("RGB")


def test_record_and_picture(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bolts in any pose are turned, noise is not; a change of light changes little."""
    folder = tmp_path / "data" / "bolt" / "train" / "good"
    folder.mkdir(parents=True)
    for index in range(12):
        draw(31 * index).save(folder / f"{index}.png")
    (tmp_path / "data" / "bottle").symlink_to(data_root / "bottle")
    output = tmp_path / "pose.json"
    monkeypatch.setattr(pose.Teacher, "load_weights", lambda *_: None)
    options = ["--categories", "bottle", "bolt", f"--data-root={tmp_path / 'data'}", f"--output={output}"]
    options.append(f"--pictures={tmp_path / 'pictures'}")
    monkeypatch.setattr(sys, "argv", ["benchmarks/pose.py", *options])
    pose.main()
    figures = json.loads(output.read_text(encoding="utf-8"))["categories"]
    assert not figures["bottle"]["turned"]
    assert figures["bolt"]["turned"]
    assert figures["bolt"]["changed_light"]["degrees"][1] < 3
    assert figures["bolt"]["changed_light"]["pixels"][1] < 6
    assert [path.name for path in tmp_path.rglob("*.png") if path.parent != folder] == ["pose_bolt.png"]
    assert (tmp_path / "pictures" / "pose_bolt.png").exists()


def test_differences_of_poses() -> None:
    """In degrees and pixels of the image, at three quantiles."""
    images = torch.stack([torch.from_numpy(np.array(draw(angle))).permute(2, 0, 1) for angle in (10, 40)]).float() / 255
    poses = estimate_pose(images)
    turned = math.radians(20)
    rotation = torch.tensor([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
    other = poses._replace(direction=poses.direction @ rotation.T, centre=poses.centre + torch.tensor([0.3, 0.4]))
    differences = pose.compare(poses, other, 96)
    assert differences["degrees"] == pytest.approx([20] * 3, abs=0.1)
    assert differences["pixels"] == pytest.approx([24] * 3, abs=0.1)
