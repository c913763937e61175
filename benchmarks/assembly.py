# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Library: a data set of assemblies, to measure whether missing, wrong and misplaced parts are found.

Each image shows a bottle, a magnetic tile and a screw, always at the same places within a few pixels. In defective ones
a part is missing, two have changed places, one is another part, or the screw lies the wrong way round; the annotation
is the whole place. Parts come from the normal images of the three categories, those of test images from their test
images.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize
from torchvision.utils import save_image

from anomalib_ddpm_st import CanonicalPose

NAME = "assembly"
SIZE = 256
# Category, size of the part and its top left corner, in pixels.
SLOTS = (
    ("bottle", (112, 112), (8, 8)),
    ("magnetic_tile", (112, 112), (8, 136)),
    ("screw", (100, 232), (142, 12)),
)
LYING = "screw"
MAX_IMAGES = 256
SHIFT = 3
BACKGROUND = 70.0
BACKGROUND_RANGE = 4.0
NOISE = 1.5
COUNTS = {"train": 160, "good": 40, "missing": 15, "swapped": 15, "wrong": 15, "turned": 15}


def read_parts(data_root: Path, part: str) -> list[torch.Tensor]:
    """Normal parts of each category, at the size that assemblies show.

    Args:
        data_root (Path): Folder of the categories in the layout of MVTec AD.
        part (str): ``"train"`` or ``"test"``.

    Returns:
        list[torch.Tensor]: Images of shape ``(N, 3, H, W)`` with values in [0, 255] for each of ``SLOTS``.
    """
    pools = []
    for category, size, _ in SLOTS:
        paths = sorted((data_root / category / part / "good").iterdir())[:MAX_IMAGES]
        images = [decode_image(str(path), ImageReadMode.RGB) for path in paths]
        parts = torch.stack([resize(image, [SIZE, SIZE], antialias=True) for image in images])
        if category == LYING:
            parts = CanonicalPose().turn(parts)
            # The screw lies in the middle of a turned image.
            parts = parts[..., SIZE // 4 : -SIZE // 4, :]
        pools.append(resize(parts.float(), list(size), antialias=True))
    return pools


def assemble(
    pools: Sequence[torch.Tensor],
    kind: str,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one image.

    Args:
        pools (Sequence[torch.Tensor]): Parts of :func:`read_parts`.
        kind (str): ``"good"`` or a kind of defect.
        generator (torch.Generator): Source of every random draw.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Image of shape ``(3, 256, 256)`` with values in [0, 1], and mask of shape
        ``(256, 256)`` with values 0 and 1.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    level = BACKGROUND + BACKGROUND_RANGE * (2 * float(torch.rand(1, generator=generator)) - 1)
    image = level + NOISE * torch.randn(3, SIZE, SIZE, generator=generator)
    mask = torch.zeros(SIZE, SIZE)
    shown = [0, 1, 2]
    changed = {"good": [], "missing": [draw(0, 2)], "swapped": [0, 1], "wrong": [draw(0, 1)], "turned": [2]}[kind]
    for slot in changed if kind in {"swapped", "wrong"} else ():
        shown[slot] = 1 - slot
    for slot, (_, (height, width), (top, left)) in enumerate(SLOTS):
        pool = pools[shown[slot]]
        part = pool[draw(0, len(pool) - 1)]
        first, second = top + draw(-SHIFT, SHIFT), left + draw(-SHIFT, SHIFT)
        place = slice(first, first + height), slice(second, second + width)
        if slot in changed:
            mask[place] = 1
        if slot in changed and kind == "missing":
            continue
        image[:, place[0], place[1]] = part.flip(1, 2) if slot in changed and kind == "turned" else part
    return (image / 255).clamp(0, 1), mask


def write_assemblies(data_root: Path, folder: Path, seed: int = 0) -> None:
    """Write the data set in the layout of MVTec AD, unless it exists.

    Args:
        data_root (Path): Folder of the categories.
        folder (Path): Folder to write the category ``assembly`` to.
        seed (int): Seed of every random draw. Defaults to ``0``.
    """
    if (folder / NAME).exists():
        return
    partial = folder / f"{NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    pools = {part: read_parts(data_root, part) for part in ("train", "test")}
    for name, count in COUNTS.items():
        is_training = name == "train"
        kind = "good" if is_training else name
        images = partial / ("train" if is_training else "test") / kind
        masks = partial / "ground_truth" / kind
        images.mkdir(parents=True)
        for index in range(count):
            image, mask = assemble(pools["train" if is_training else "test"], kind, generator)
            save_image(image, images / f"{index:03d}.png")
            if kind != "good":
                masks.mkdir(parents=True, exist_ok=True)
                save_image(mask, masks / f"{index:03d}_mask.png")
    partial.rename(folder / NAME)
