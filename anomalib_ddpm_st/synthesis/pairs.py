# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Pairs of image and mask in files, as anomalib's Folder datamodule reads them."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.utils import save_image

from anomalib_ddpm_st.images import load_image
from anomalib_ddpm_st.progress import progress

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
        source (str): Normal image that it was made of.
        mask_area (float): Share of pixels in the mask.
        contrast (float): Mean change of these pixels, of the channel that changed most, in units of images in [0, 1].
    """

    name: str
    source: str
    mask_area: float
    contrast: float


def write_pairs(
    generator: DiffusionAnomalyGenerator,
    images: Sequence[str | Path],
    output: str | Path,
    per_image: int = 1,
    count: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """Write images with defects and their masks; go on where an earlier call was interrupted.

    Each pair has random numbers of its own, from ``seed`` and its place, so the same seed gives the same files, whether
    they are made at once or not. No half-written file is left under its final name.

    Args:
        generator (DiffusionAnomalyGenerator): Generator; its source of random draws is replaced.
        images (Sequence[str | Path]): Normal image files.
        output (str | Path): Folder that gets ``image``, ``mask`` and ``pairs.csv``.
        per_image (int): Pairs of each normal image. Defaults to ``1``.
        count (int | None): Number of pairs, of as many of each image as it takes; goes before ``per_image``.
            Defaults to ``None``.
        image_size (tuple[int, int] | None): Height and width of the pairs, ``None`` for that of each normal image.
            Defaults to ``None``.
        seed (int): Seed. Defaults to ``0``.
        settings (Mapping[str, Any] | None): What the generator was made with; pairs made with others are not mixed with
            these. Defaults to ``None``.

    Returns:
        list[Pair]: All pairs of the folder.

    Raises:
        FileExistsError: If the folder holds pairs that were made with other settings.
        ValueError: If there are no images, or a number is not positive.
    """
    count = len(images) * per_image if count is None else count
    if not images or count < 1:
        msg = f"There are {len(images)} normal images to make {count} pairs of: check the folder, per_image and count."
        raise ValueError(msg)
    output = Path(output)
    sources = [str(path) for path in images]
    _claim(output, {**(settings or {}), "image_size": image_size, "seed": seed, "images": sources})
    pairs = []
    for index in progress(range(count), "Pairs of image and mask", total=count):
        turn, place = divmod(index, len(images))
        name = f"{place:05d}_{turn:02d}.png"
        normal = load_image(images[place], image_size)
        files = output / IMAGE_FOLDER / name, output / MASK_FOLDER / name
        if not all(path.exists() for path in files):
            generator.generator = torch.Generator().manual_seed(_seed(seed, place, turn))
            image, mask = generator.make_defects(normal)
            # The image comes last: where it is, its mask is too.
            for path, pixels in zip(files[::-1], (mask, image.float() / 255), strict=True):
                _write(path, pixels)
        pairs.append(_measure(name, normal, files, sources[place]))
    with (output / TABLE_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(pairs[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(pair) for pair in pairs)
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
    """Seed that has nothing to do with that of a neighbour."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


def _claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Make the folders, or see that what lies there was made with the same settings."""
    path = output / SETTINGS_FILE
    text = json.dumps(dict(settings), indent=2, default=str)
    for folder in (IMAGE_FOLDER, MASK_FOLDER):
        (output / folder).mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any((output / IMAGE_FOLDER).iterdir()):
            msg = f"{output / IMAGE_FOLDER} holds other images: name another folder."
            raise FileExistsError(msg)
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        msg = f"{output} holds pairs made with other settings (see {path}): name another folder, or delete this one."
        raise FileExistsError(msg)


def _write(path: Path, pixels: torch.Tensor) -> None:
    """Write a PNG file as a whole."""
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
