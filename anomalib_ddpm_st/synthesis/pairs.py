# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Files with pairs of image and mask, as anomalib's Folder datamodule reads them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.utils import save_image

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.progress import progress

from .generator import DiffusionAnomalyGenerator

IMAGE_FOLDER = "image"
MASK_FOLDER = "mask"
SETTINGS_FILE = "settings.json"
TABLE_FILE = "pairs.csv"


@dataclass(frozen=True)
class Pair:
    """One image with a defect.

    Attributes:
        name (str): Name of the files of image and mask.
        source (str): Normal image that it was made from.
        mask_area (float): Fraction of the image that the mask covers, in [0, 1].
        contrast (float): Mean change of these pixels, of the channel that changed most, in units of images in [0, 1].
    """

    name: str
    source: str
    mask_area: float
    contrast: float


def write_pairs(
    generator: DiffusionAnomalyGenerator,
    images: NormalImages,
    output: str | Path,
    per_image: int = 1,
    count: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """Write images with defects and their masks; an interrupted run resumes.

    Each pair has its own random numbers, from ``seed`` and its position, so the same seed gives the same files, in one
    run or in several. No half-written file is left under its final name.

    Args:
        generator (DiffusionAnomalyGenerator): Generator; its source of random draws is replaced.
        images (NormalImages): Normal images; pairs have their size.
        output (str | Path): Folder that gets ``image``, ``mask`` and ``pairs.csv``.
        per_image (int): Pairs of each normal image. Defaults to ``1``.
        count (int | None): Total number of pairs, overrides ``per_image``. Defaults to ``None``.
        seed (int): Seed. Defaults to ``0``.
        settings (Mapping[str, Any] | None): Settings of the generator; pairs made with others are not mixed with these.
            Defaults to ``None``.

    Returns:
        list[Pair]: All pairs of the folder.

    Raises:
        FileExistsError: If the folder holds pairs that were made with other settings.
        ValueError: If there are no images, or a number is not positive.
    """
    count = len(images) * per_image if count is None else count
    if not len(images) or count < 1:
        msg = (
            f"There are {len(images)} normal images to make {count} pairs from: check the folder, per_image and count."
        )
        raise ValueError(msg)
    output = Path(output)
    sources = images.paths
    _claim(output, {**(settings or {}), "seed": seed, "images": sources})
    pairs = []
    for index in progress(range(count), "Pairs of image and mask", total=count):
        turn, place = divmod(index, len(images))
        name = f"{place:05d}_{turn:02d}.png"
        normal = images[place]
        files = output / IMAGE_FOLDER / name, output / MASK_FOLDER / name
        if not all(path.exists() for path in files):
            generator.generator = torch.Generator().manual_seed(_seed(seed, place, turn))
            image, mask = generator.make_defects(normal)
            # The image comes last: if it is there, its mask is too.
            for path, pixels in zip(files[::-1], (mask, image.float() / 255), strict=True):
                _write(path, pixels)
        pairs.append(_measure(name, normal, files, sources[place]))
    pd.DataFrame([asdict(pair) for pair in pairs]).to_csv(output / TABLE_FILE, index=False, lineterminator="\n")
    return pairs


def read_pair(output: str | Path, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Read image and mask of a pair.

    Args:
        output (str | Path): Folder of the pairs.
        pair (Pair): Pair.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Image of shape ``(3, H, W)`` and mask of shape ``(1, H, W)`` with values in
        [0, 1].
    """
    image, mask = (
        decode_image(str(Path(output) / folder / pair.name), mode).float() / 255
        for folder, mode in ((IMAGE_FOLDER, ImageReadMode.RGB), (MASK_FOLDER, ImageReadMode.GRAY))
    )
    return image, mask


def _seed(*numbers: int) -> int:
    """Seed that is unrelated to those of the neighbours."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


def _claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Make the folders, or check that their content was made with the same settings."""
    path = output / SETTINGS_FILE
    text = json.dumps(dict(settings), indent=2, default=str)
    for folder in (IMAGE_FOLDER, MASK_FOLDER):
        (output / folder).mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any((output / IMAGE_FOLDER).iterdir()):
            msg = f"{output / IMAGE_FOLDER} holds other images: choose another folder."
            raise FileExistsError(msg)
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        msg = f"{output} holds pairs made with other settings (see {path}): choose another folder, or delete this one."
        raise FileExistsError(msg)


def _write(path: Path, pixels: torch.Tensor) -> None:
    """Write a PNG file, whole or not at all."""
    partial = path.with_suffix(".partial")
    save_image(pixels, partial, format="png")
    Path(partial).replace(path)


def _measure(name: str, normal: torch.Tensor, files: tuple[Path, Path], source: str) -> Pair:
    """Area and contrast of a pair, from its files."""
    pair = Pair(name, source, 0.0, 0.0)
    image, mask = read_pair(files[0].parents[1], pair)
    inside = mask[0] > 0.5
    change = (image - normal.float() / 255).abs().amax(dim=0)[inside]
    return Pair(name, source, inside.float().mean().item(), change.mean().item())
