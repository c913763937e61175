# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Library: validation set of drawn defects, to choose variants and defaults without test data.

Every fifth part is held out with all of its images. Each image gives one normal image and five with a defect of one of
eight families, which are as unlike each other as real defects are. :mod:`rule` says how variants are ranked by them. No
generator of the package draws any of these kinds: no Perlin mask, no texture, no shuffled tile, no upright rectangle or
ellipse with another place of the image.
"""

import itertools
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from anomalib_ddpm_st.synthesis.foreground import find_foreground
from anomalib_ddpm_st.synthesis.textures import is_grey

HOLD_OUT_EVERY = 5
# No divisor of the number of families, so that each is drawn on all images in turn.
DEFECTS_PER_IMAGE = 5
CHANGE_THRESHOLD = 6
MIN_CONTRAST = 15
ATTEMPTS = 20
# Photographs of magnetic_tile: exposure and running number. Those of one tile follow each other.
SERIES = re.compile(r"exp\d+_num_(\d+)")
MAX_GAP = 150
# Gaps of this size in an annotation are closed, as a fraction of the shorter side.
GAP = 0.02
# Smallest area of a defect, as a fraction of the image, and the part of what was drawn that must be visible.
MIN_AREA, MIN_VISIBLE = 2e-4, 0.6
# A change of nearly the whole object makes another one, or one that lies elsewhere, which may be normal.
MAX_COVERED = 0.85
# Of defects of a given size: the canvas that their extent is measured on, the size that they are drawn at, the largest
# window, all in pixels, and how much the size may differ.
PROBE_SIZE = 512
DETAIL = 48
MAX_WINDOW = 1600
SIZE_TOLERANCE = 0.25

Defect = Callable[[np.ndarray, tuple[int, int], np.random.Generator], tuple[np.ndarray, np.ndarray]]


def whole_parts(paths: Sequence[str]) -> list[list[str]]:
    """Group images that show the same part.

    Only magnetic_tile says so in its file names: the numbers of photographs of one tile, in several exposures, follow
    each other within 150. Any other image counts as a part of its own.

    Args:
        paths (Sequence[str]): Normal training images.

    Returns:
        list[list[str]]: Images of each part.
    """
    parts: list[list[str]] = []
    previous: int | None = None
    found = {path: SERIES.fullmatch(Path(path).stem) for path in paths}
    numbers = {path: None if match is None else int(match[1]) for path, match in found.items()}
    for path in sorted(paths, key=lambda path: (numbers[path] or 0, path)):
        number = numbers[path]
        if number is not None and previous is not None and number - previous <= MAX_GAP:
            parts[-1].append(path)
        else:
            parts.append([path])
        previous = number
    return parts


def split(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split training images: every fifth part is held out with all of its images, the others are for training.

    Args:
        paths (Sequence[str]): Normal training images.

    Returns:
        tuple[list[str], list[str]]: Images to train on, and held-out images, both sorted.
    """
    parts = whole_parts(paths)
    held_out = {path for part in parts[::HOLD_OUT_EVERY] for path in part}
    return sorted(set(paths) - held_out), sorted(held_out)


def _tone(rng: np.random.Generator) -> np.ndarray:
    """Change of brightness, grey or slightly coloured, light or dark, in units of 255."""
    return rng.choice([-1, 1]) * rng.uniform(25, 110) + rng.uniform(-25, 25, 3) * (rng.random() < 0.5)


def _blot(at: tuple[int, int], radius: float, rng: np.random.Generator) -> np.ndarray:
    """Corners of an irregular outline around a point, integers of shape ``(12, 2)``."""
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    outline = radius * rng.uniform(0.5, 1.2, 12)
    points = np.stack([at[0] + outline * np.cos(turns), at[1] + outline * np.sin(turns)], 1)
    return points.round().astype(np.int32)


def _large_area(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Mask of a large convex area around a point."""
    size = min(image.shape[:2])
    points = (np.array(at) + rng.normal(0, 0.12, (8, 2)) * size).round().astype(np.int32)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 255)
    return mask


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
    cv2.fillPoly(mask, [_blot(at, rng.uniform(0.04, 0.14) * size, rng)], 255)
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
    mask = _large_area(image, at, rng)
    smooth = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.006, 0.02)) * min(image.shape[:2]))
    gain = rng.choice([rng.uniform(-1, -0.8), rng.uniform(1.5, 4)])
    return image + gain * (image - smooth), mask


def ribbed(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large area with fine ribs, as a worn tool or a fabric leaves them."""
    height, width = image.shape[:2]
    mask = _large_area(image, at, rng)
    angle, period = rng.uniform(0, np.pi), max(rng.uniform(0.02, 0.05) * min(height, width), 3)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    waves = np.sin(2 * np.pi * (columns * np.cos(angle) + rows * np.sin(angle)) / period)
    return image + rng.uniform(30, 60) * waves[..., None], mask


def gone(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large piece broken off: the background, or on a surface the tone of its border, is seen instead."""
    size = min(image.shape[:2])
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [_blot(at, rng.uniform(0.08, 0.22) * size, rng)], 255)
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, 0], image[:, -1]])
    fine = np.abs(image - cv2.GaussianBlur(image, (0, 0), 2))
    grain = rng.normal(0, 1.5 * float(np.median(fine)), (*image.shape[:2], 1))
    return np.median(border, axis=0) + grain, mask


def wrong(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Piece replaced by one of another place, turned and larger or smaller: a wrong part."""
    size = min(image.shape[:2])
    mask = np.zeros(image.shape[:2], np.uint8)
    corners = cv2.boxPoints((at, (rng.uniform(0.1, 0.35, 2) * size).tolist(), float(rng.uniform(0, 90))))
    cv2.fillPoly(mask, [corners.round().astype(np.int32)], 255)
    zoom = rng.choice([rng.uniform(0.5, 0.7), rng.uniform(1.5, 2.2)])
    matrix = cv2.getRotationMatrix2D(at, float(rng.uniform(60, 300)), float(zoom))
    matrix[:, 2] += rng.uniform(-0.1, 0.1, 2) * size
    return _warp(image, matrix), mask


def moved(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Piece that has moved aside, with a hole filled in where it was."""
    size = min(image.shape[:2])
    radius, angle = rng.uniform(0.04, 0.11) * size, rng.uniform(0, 2 * np.pi)
    shift = (np.array([np.cos(angle), np.sin(angle)]) * radius * rng.uniform(0.6, 1.2)).round()
    hole, piece = np.zeros((2, *image.shape[:2]), np.uint8)
    outline = _blot(at, radius, rng)
    cv2.fillPoly(hole, [outline], 255)
    cv2.fillPoly(piece, [outline + shift.astype(np.int32)], 255)
    empty = cv2.inpaint(image.astype(np.uint8), hole, 3, cv2.INPAINT_TELEA).astype(np.float64)
    shifted = _warp(image, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]))
    return np.where(piece[..., None] > 0, shifted, empty), hole | piece


def slipped(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Everything on one side of a line has slipped along it, up to the whole lower half."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    shift = rng.choice([-1, 1]) * rng.uniform(0.03, 0.1) * min(height, width)
    columns, rows = np.meshgrid(np.arange(width) - at[0], np.arange(height) - at[1])
    beyond = rows * np.cos(angle) - columns * np.sin(angle) > 0
    matrix = np.array([[1, 0, shift * np.cos(angle)], [0, 1, shift * np.sin(angle)]])
    return np.where(beyond[..., None], _warp(image, matrix), image), beyond.astype(np.uint8) * 255


def tint(image: np.ndarray, at: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Another colour of the same lightness, which keeps the structure; on grey images darker or brighter."""
    size = min(image.shape[:2])
    mask = np.zeros(image.shape[:2], np.uint8)
    axes = (rng.uniform(0.06, 0.22, 2) * size).round().astype(int).clip(1)
    cv2.ellipse(mask, at, axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    angle, chroma = rng.uniform(0, 2 * np.pi), rng.uniform(20, 45)
    if _is_grey(image):
        # A power keeps black and white, and the structure between them.
        return 255 * (image / 255) ** rng.choice([rng.uniform(0.55, 0.75), rng.uniform(1.4, 2)]), mask
    lab = cv2.cvtColor((image / 255).astype(np.float32), cv2.COLOR_BGR2LAB)
    lab[..., 1:] += chroma * np.array([np.cos(angle), np.sin(angle)])
    return 255.0 * cv2.cvtColor(lab, cv2.COLOR_LAB2BGR).astype(np.float64), mask


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Move an image by a matrix of shape ``(2, 3)``; its border continues outside of it."""
    size = image.shape[1::-1]
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _is_grey(image: np.ndarray) -> bool:
    """Whether a camera without colours took an image with values in [0, 255]."""
    return bool(is_grey(_as_tensor(image)))


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    """Tensor of shape ``(1, 3, H, W)`` with values in [0, 1] of an image with values in [0, 255]."""
    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255


FAMILIES: dict[str, dict[str, Defect]] = {
    "line": {"scratch": scratch, "crack": crack},
    "blob": {"spot": spot, "stain": stain},
    "texture": {"rough": rough, "ribbed": ribbed},
    "missing": {"missing": missing, "gone": gone},
    "wrong part": {"wrong": wrong},
    "displacement": {"slipped": slipped, "moved": moved, "dent": dent},
    "colour": {"tint": tint},
    "shading": {"shade": shade},
}
KINDS: dict[str, Defect] = {kind: defect for kinds in FAMILIES.values() for kind, defect in kinds.items()}
FAMILY_OF: dict[str, str] = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
# Pieces differ only in places: a whole annotation has few gaps, and these may be hidden on a plain surface.
PIECES = frozenset({"wrong", "moved", "slipped"})
# They may end up next to the object.
DISPLACED = frozenset({"moved", "slipped"})


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
    foreground = find_foreground(_as_tensor(image))
    on_object = allowed = foreground.mask[0, 0].numpy()
    changed, mask = KINDS[kind](image.astype(np.float64), _place(allowed, rng), rng)
    if _is_grey(image):
        # A grey camera sees no coloured defects.
        changed = changed.mean(axis=2, keepdims=True)
    if (mask[on_object] > 0).mean() > MAX_COVERED:
        return None
    if kind in DISPLACED and not foreground.is_surface:
        after = find_foreground(_as_tensor(np.broadcast_to(changed, image.shape)))
        allowed = allowed if after.is_surface else allowed | after.mask[0, 0].numpy()
    mask[~allowed] = 0
    soft = cv2.GaussianBlur(mask, (0, 0), 0.7)[..., None] / 255
    result = (image * (1 - soft) + changed * soft).round().clip(0, 255).astype(np.uint8)
    change = np.abs(result.astype(int) - image).max(axis=2)
    differs = change > CHANGE_THRESHOLD
    gap = _disc(GAP * min(mask.shape)) if kind in PIECES else np.ones((3, 3), np.uint8)
    mask = cv2.morphologyEx((differs & (soft[..., 0] > 0.3)).astype(np.uint8) * 255, cv2.MORPH_CLOSE, gap)
    visible = 0 if kind in PIECES else MIN_VISIBLE * (soft > 0.3).sum()
    enough = max((10 if kind in PIECES else 1) * MIN_AREA * mask.size, visible)
    is_visible = (mask > 0).sum() >= enough and change[mask > 0].mean() >= MIN_CONTRAST
    return (result, mask) if is_visible else None


def _disc(diameter: float) -> np.ndarray:
    """Disc with a side of an odd number of pixels, at least 3, to close gaps in masks with."""
    side = max(3, 2 * round(diameter / 2) + 1)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _next_kinds(turn: int) -> list[str]:
    """Kinds in the order in which they are tried: those of the family whose turn it is, then the next family's."""
    names = list(FAMILIES)
    order = []
    for offset in range(len(names)):
        kinds = list(FAMILIES[names[(turn + offset) % len(names)]])
        first = turn // len(names) % len(kinds)
        order += kinds[first:] + kinds[:first]
    return order


def _place(foreground: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Column and row of a random pixel of the foreground."""
    rows, columns = np.nonzero(foreground)
    index = int(rng.integers(len(rows)))
    return int(columns[index]), int(rows[index])


def draw_sized(
    image: np.ndarray,
    kind: str,
    size: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw a defect of a given size on the object, or anywhere on a surface.

    It is drawn in an enlarged window and shrunk with it, so that even a defect of a few pixels has the shape of its
    kind, and one that is thinner than a pixel is as faint as a camera would see it.

    Args:
        image (np.ndarray): Image, ``uint8`` of shape ``(H, W, 3)``.
        kind (str): One of ``KINDS``.
        size (float): Longer side in pixels of the upright box around the defect.
        rng (np.random.Generator): Source of every random draw.

    Returns:
        tuple[np.ndarray, np.ndarray] | None: Image and mask (0 and 255) of the pixels that really changed; ``None``
        if the defect is hardly visible, or is not of that size because a part of it is.
    """
    foreground = find_foreground(_as_tensor(image)).mask[0, 0].numpy()
    column, row = _place(foreground, rng)
    state = rng.bit_generator.state
    canvas = np.full((PROBE_SIZE, PROBE_SIZE, 3), 128.0)
    extent = _longer_side(KINDS[kind](canvas, (PROBE_SIZE // 2, PROBE_SIZE // 2), rng)[1]) / PROBE_SIZE
    if not extent:
        return None
    radius = math.ceil(size / extent / 2)
    zoom = max(1, round(DETAIL / size))
    if 2 * radius * zoom > MAX_WINDOW:
        return None
    # Beyond the border the image is mirrored.
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    window = padded[row : row + 2 * radius, column : column + 2 * radius].astype(np.float64)
    shape = (2 * radius, 2 * radius)
    enlarged = cv2.resize(window, (shape[0] * zoom, shape[1] * zoom), interpolation=cv2.INTER_LINEAR)
    rng.bit_generator.state = state
    changed, mask = KINDS[kind](enlarged, (radius * zoom, radius * zoom), rng)
    if _is_grey(image):
        changed = changed.mean(axis=2, keepdims=True)
    difference = cv2.resize((changed - enlarged) * (mask[..., None] > 0), shape, interpolation=cv2.INTER_AREA)
    everywhere = np.zeros((*padded.shape[:2], 3))
    everywhere[row : row + 2 * radius, column : column + 2 * radius] = difference.reshape(*shape, 3)
    inside = everywhere[radius:-radius, radius:-radius] * foreground[..., None]
    result = (image + inside).round().clip(0, 255).astype(np.uint8)
    change = np.abs(result.astype(int) - image).max(axis=2)
    found = (change > CHANGE_THRESHOLD).astype(np.uint8) * 255
    is_sized = abs(_longer_side(found) - size) <= max(1, SIZE_TOLERANCE * size)
    return (result, found) if is_sized and change[found > 0].mean() >= MIN_CONTRAST else None


def _longer_side(mask: np.ndarray) -> int:
    """Longer side of the upright box around a mask, 0 if it is empty."""
    return max(cv2.boundingRect(mask)[2:])


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
    count = 0
    for index, path in enumerate(held_out):
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            msg = f"The image {path} cannot be read."
            raise ValueError(msg)
        cv2.imwrite(str(partial / "good" / f"{index:03d}.png"), image)
        for _ in range(DEFECTS_PER_IMAGE):
            # If a kind is not visible, such as a dent of a plain surface, the next one takes its place.
            kinds = itertools.chain.from_iterable([kind] * ATTEMPTS for kind in _next_kinds(count))
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
