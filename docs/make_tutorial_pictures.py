# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of the tutorials, from a run of the demo and of the training on own parts, both on gravel (CC0).

Example:
    anomalib-ddpm-st demo
    python examples/watch_folder.py exported/weights/openvino/model.xml camera --once --maps maps
    python docs/make_tutorial_pictures.py --result results/DdpmSt/parts/latest/images/good/019.png
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

LIMIT = 150_000
# Rows of the sheets of the demo that are shown.
SHEETS = {"contact_sheet.png": (1, 3, 4, 6, 7), "anomaly_maps.png": (0, 1, 2, 5, 8)}
HISTOGRAM = "score_histogram.png"
SIDE = 256
MIN_HEIGHT = 50
GAP = 8


def save_small(image: Image.Image, path: Path) -> None:
    """Save a picture with as many colours and pixels as fit below 150 kB."""
    for scale, colours in ((1.0, 256), (0.9, 192), (0.8, 160), (0.7, 160), (0.6, 128), (0.5, 128)):
        size = round(scale * image.width), round(scale * image.height)
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        # Without the refinement, a few coloured pixels among many grey ones would turn grey.
        small.quantize(colours, kmeans=2, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() < LIMIT:
            break
    path.write_bytes(buffer.getvalue())


def keep_rows(sheet: Image.Image, rows: Sequence[int]) -> Image.Image:
    """The titles and some rows of a contact sheet, whose rows are divided by white."""
    pixels = np.asarray(sheet.convert("L"))
    filled = np.flatnonzero((pixels < 250).any(axis=1))
    ends = np.flatnonzero(np.diff(filled) > 1)
    bands = list(zip(filled[[0, *(ends + 1)]], filled[[*ends, -1]] + 1, strict=True))
    # Titles are lower than pictures.
    pictures = [band for band in bands if band[1] - band[0] > MIN_HEIGHT]
    gap = pictures[1][0] - pictures[0][1]
    parts = [sheet.crop((0, 0, sheet.width, pictures[0][0]))]
    parts += [sheet.crop((0, pictures[row][0], sheet.width, pictures[row][1])) for row in rows]
    result = Image.new("RGB", (sheet.width, sum(part.height + gap for part in parts)), "white")
    top = 0
    for index, part in enumerate(parts):
        result.paste(part, (0, top))
        top += part.height + (gap if index else 0)
    return result


def strip(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side on white."""
    sheet = Image.new("RGB", (len(images) * (SIDE + GAP) - GAP, SIDE), "white")
    for index, image in enumerate(images):
        sheet.paste(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (index * (SIDE + GAP), 0))
    return sheet


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo_results"), help="folder that the demo wrote")
    parser.add_argument("--result", type=Path, required=True, help="picture of a test image that the training wrote")
    parser.add_argument("--maps", type=Path, default=Path("maps"), help="folder that watch_folder.py wrote")
    parser.add_argument("--show", nargs="+", default=["000.png", "003.png", "004.png"], help="pictures of that folder")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, rows in SHEETS.items():
        save_small(keep_rows(Image.open(options.demo / name), rows), options.output / f"demo_{name}")
    save_small(Image.open(options.demo / HISTOGRAM), options.output / f"demo_{HISTOGRAM}")
    save_small(Image.open(options.result), options.output / "own_parts_result.png")
    save_small(strip([Image.open(options.maps / name) for name in options.show]), options.output / "own_parts_maps.png")


if __name__ == "__main__":
    main()
