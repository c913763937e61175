# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Validation set of drawn defects, to choose variants and defaults without test data.

Every fifth normal training image is held out. Each gives one normal image and two with a defect of one of eight kinds.
No generator of the package draws any of these kinds: no Perlin mask, no texture, no shuffled tile.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from anomalib_ddpm_st.synthesis.foreground import find_foreground
from anomalib_ddpm_st.synthesis.textures import is_grey

HOLD_OUT_EVERY = 5
DEFECTS_PER_IMAGE = 2
CHANGE_THRESHOLD = 6
MIN_CONTRAST = 15
ATTEMPTS = 20

Defect = Callable[[np.ndarray, tuple[int, int], np.random.Generator], tuple[np.ndarray, np.ndarray]]


def split(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split sorted training images: every fifth is held out, the others are for training.

    Args:
        paths (Sequence[str]): Normal training images.

    Returns:
        tuple[list[str], list[str]]: Images to train on, and held-out images.
    """
    ordered = sorted(paths)
    train = [path for index, path in enumerate(ordered) if index % HOLD_OUT_EVERY]
    return train, ordered[::HOLD_OUT_EVERY]


def _tone(rng: np.random.Generator) -> np.ndarray:
    """Change of brightness, grey or slightly coloured, light or dark, in units of 255."""
    return rng.choice([-1, 1]) * rng.uniform(25, 110) + rng.uniform(-25, 25, 3) * (rng.random() < 0.5)


def scratch(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Thin bent line, lighter or darker than what it crosses."""
    size = min(image.shape[:2])
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.1, 0.45) * size
    step = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    bend = rng.uniform(-0.05, 0.05, 2) * size
    points = np.array([np.array(at) - step, np.array(at) + bend, np.array(at) + step]).round().astype(np.int32)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.polylines(mask, [points], isClosed=False, color=255, thickness=max(1, round(rng.uniform(0.004, 0.015) * size)))
    return image + _tone(rng), mask


def crack(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dark jagged line: a random walk with momentum."""
    size = min(image.shape[:2])
    mask = np.zeros(image.shape[:2], np.uint8)
    here, angle = np.array(at, float), rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(6, 20))):
        angle += rng.normal(0, 0.5)
        there = here + np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.01, 0.04) * size
        width = max(1, round(rng.uniform(0.004, 0.012) * size))
        cv2.line(mask, here.round().astype(int).tolist(), there.round().astype(int).tolist(), 255, width)
        here = there
    return image * rng.uniform(0.2, 0.6), mask


def spot(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Small hole or inclusion of one tone."""
    size = min(image.shape[:2])
    mask = np.zeros(image.shape[:2], np.uint8)
    axes = (rng.uniform(0.012, 0.05, 2) * size).round().astype(int).clip(1)
    cv2.ellipse(mask, at, axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return image + _tone(rng), mask


def stain(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Irregular blot of another tone through which the surface shows."""
    size = min(image.shape[:2])
    mask = np.zeros(image.shape[:2], np.uint8)
    radius = rng.uniform(0.04, 0.14) * size
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    outline = radius * rng.uniform(0.5, 1.2, 12)
    points = np.stack([at[0] + outline * np.cos(turns), at[1] + outline * np.sin(turns)], 1).round().astype(np.int32)
    cv2.fillPoly(mask, [points], 255)
    shade = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(0, 255))
    weight = rng.uniform(0.2, 0.5)
    return image * (1 - weight) + shade * weight, mask


def dent(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Surface twisted around a point."""
    height, width = image.shape[:2]
    radius = rng.uniform(0.06, 0.15) * min(height, width)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    right, down = columns - at[0], rows - at[1]
    strength = np.clip(1 - np.hypot(right, down) / radius, 0, 1)
    turn = rng.choice([-1, 1]) * rng.uniform(1.0, 2.5) * strength**2
    source = (
        at[0] + right * np.cos(turn) - down * np.sin(turn),
        at[1] + right * np.sin(turn) + down * np.cos(turn),
    )
    warped = cv2.remap(image.astype(np.float32), *(axis.astype(np.float32) for axis in source), cv2.INTER_LINEAR)
    return warped, (strength > 0).astype(np.uint8) * 255


def missing(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotated rectangle filled in from its surroundings: a missing piece."""
    size = min(image.shape[:2])
    mask = np.zeros(image.shape[:2], np.uint8)
    box = cv2.boxPoints((at, (rng.uniform(0.04, 0.16, 2) * size).tolist(), float(rng.uniform(0, 90))))
    cv2.fillPoly(mask, [box.round().astype(np.int32)], 255)
    return cv2.inpaint(image.astype(np.uint8), mask, 3, cv2.INPAINT_TELEA).astype(np.float64), mask


def shade(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large darker or brighter area without an edge: uneven shading."""
    height, width = image.shape[:2]
    size = min(height, width)
    angle = rng.uniform(0, np.pi)
    columns, rows = np.meshgrid(np.arange(width) - at[0], np.arange(height) - at[1])
    along = (columns * np.cos(angle) + rows * np.sin(angle)) / (rng.uniform(0.12, 0.35) * size)
    across = (rows * np.cos(angle) - columns * np.sin(angle)) / (rng.uniform(0.08, 0.2) * size)
    # A rotated rectangle whose slopes rise linearly over half its length and width.
    slopes = [np.clip(2 - 2 * np.abs(axis), 0, 1) for axis in (along, across)]
    change = rng.choice([-1, 1]) * rng.uniform(20, 70) * slopes[0] * slopes[1]
    return image + change[..., None], (np.abs(change) >= CHANGE_THRESHOLD).astype(np.uint8) * 255


def rough(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large area rougher or smoother than the rest: worn, frayed or smeared."""
    size = min(image.shape[:2])
    points = (np.array(at) + rng.normal(0, 0.12, (8, 2)) * size).round().astype(np.int32)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 255)
    smooth = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.006, 0.02)) * size)
    gain = rng.choice([rng.uniform(-1, -0.8), rng.uniform(1.5, 4)])
    return image + gain * (image - smooth), mask


KINDS: dict[str, Defect] = {
    "scratch": scratch,
    "crack": crack,
    "spot": spot,
    "stain": stain,
    "dent": dent,
    "missing": missing,
    "shade": shade,
    "rough": rough,
}


def draw(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw a defect on the object, or anywhere on a surface.

    Args:
        image (np.ndarray): Image, ``uint8`` of shape ``(H, W, 3)``.
        kind (str): One of ``KINDS``.
        rng (np.random.Generator): Source of every random draw.

    Returns:
        tuple[np.ndarray, np.ndarray] | None: Image and mask (0 and 255) of the pixels that really changed; ``None``
        if the defect is hardly visible.
    """
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    foreground = find_foreground(tensor).mask[0, 0].numpy()
    rows, columns = np.nonzero(foreground)
    index = int(rng.integers(len(rows)))
    changed, mask = KINDS[kind](image.astype(np.float64), (int(columns[index]), int(rows[index])), rng)
    if bool(is_grey(tensor)):
        # A grey camera sees no coloured defects.
        changed = changed.mean(axis=2, keepdims=True)
    mask[~foreground] = 0
    soft = cv2.GaussianBlur(mask, (0, 0), 0.7)[..., None] / 255
    result = (image * (1 - soft) + changed * soft).round().clip(0, 255).astype(np.uint8)
    change = np.abs(result.astype(int) - image).max(axis=2)
    differs = change > CHANGE_THRESHOLD
    mask = cv2.morphologyEx((differs & (soft[..., 0] > 0.3)).astype(np.uint8) * 255, cv2.MORPH_CLOSE, np.ones((3, 3)))
    enough = max(2e-4 * mask.size, 0.6 * (soft > 0.3).sum())
    is_visible = (mask > 0).sum() >= enough and change[mask > 0].mean() >= MIN_CONTRAST
    return (result, mask) if is_visible else None


def write_validation_set(held_out: Sequence[str], folder: Path, seed: int = 0, visibility: float = 1.0) -> None:
    """Write the validation set, unless it exists.

    Sets with the same seed have the same defects at any visibility.

    Args:
        held_out (Sequence[str]): Held-out normal images.
        folder (Path): Folder for ``good``, ``defect`` and ``mask``.
        seed (int): Seed of the defects. Defaults to ``0``.
        visibility (float): Weight of the defect in the image, in (0, 1]. Defaults to ``1.0``.

    Raises:
        ValueError: If an image cannot be read, or no defect is visible on it.
    """
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("good", "defect", "mask"):
        (partial / name).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = list(KINDS)
    count = 0
    for index, path in enumerate(held_out):
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            msg = f"The image {path} cannot be read."
            raise ValueError(msg)
        cv2.imwrite(str(partial / "good" / f"{index:03d}.png"), image)
        for _ in range(DEFECTS_PER_IMAGE):
            # If a kind is not visible, such as a dent of a plain surface, the next one takes its place.
            kinds = [names[(count + turn // ATTEMPTS) % len(names)] for turn in range(ATTEMPTS * len(names))]
            found = next(((kind, drawn) for kind in kinds if (drawn := draw(image, kind, rng)) is not None), None)
            if found is None:
                msg = f"No defect is visible on {path}: it is flat, or almost nothing of it is foreground."
                raise ValueError(msg)
            kind, (defective, mask) = found
            defective = cv2.addWeighted(defective, visibility, image, 1 - visibility, 0)
            cv2.imwrite(str(partial / "defect" / f"{count:03d}_{kind}.png"), defective)
            cv2.imwrite(str(partial / "mask" / f"{count:03d}_{kind}.png"), mask)
            count += 1
    partial.rename(folder)
