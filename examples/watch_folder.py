# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Inspect the images in a folder, and those that a camera adds to it, with an exported model.

Needs numpy, OpenVINO and Pillow, but neither torch nor anomalib.

Example:
    python watch_folder.py model.xml camera --size 1024 1280 --maps maps
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov
from PIL import Image

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}
# FP32, as in training: some processors would compute in bfloat16.
CONFIG = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
# Seconds without a change after which a file that cannot be read is no longer one that is still being written.
PATIENCE = 10
# Colours of the heat map by its value: transparent up to 0.25, most opaque from the threshold (0.5) on.
COLOURS = {0.0: (0, 0, 255), 0.25: (0, 255, 255), 0.5: (255, 255, 0), 1.0: (255, 0, 0)}
OPACITY = 0.5


def read(path: Path) -> np.ndarray:
    """Read an image as RGB bytes of shape ``(H, W, 3)``. Fails while the file is still being written."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def overlay(pixels: np.ndarray, anomaly_map: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Lay the anomaly map over an image, and outline the predicted mask in white."""
    size = pixels.shape[1::-1]
    heat = np.asarray(Image.fromarray(anomaly_map.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    channels = zip(*COLOURS.values(), strict=True)
    colours = np.stack([np.interp(heat, list(COLOURS), channel) for channel in channels], axis=-1)
    opacity = OPACITY * (4 * heat - 1).clip(0, 1)[..., None]
    picture = (1 - opacity) * pixels + opacity * colours
    inside = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    padded = np.pad(inside, 1)
    height, width = inside.shape
    # A pixel belongs to the outline if it is outside, and one of its eight neighbours is inside.
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    picture[np.logical_or.reduce(near) & ~inside] = 255
    return Image.fromarray(picture.round().astype(np.uint8))


class Inspector:
    """Several images at a time, on all cores.

    Args:
        model (Path): Exported model, ``.xml`` or ``.onnx``.
        size (list[int] | None): Height and width of all images. ``None`` for images of any size.
        maps (Path | None): Folder for pictures of the anomaly maps.
    """

    def __init__(self, model: Path, size: list[int] | None = None, maps: Path | None = None) -> None:
        network = ov.Core().read_model(model)
        if size is not None:
            # A fixed shape is a quarter faster than a dynamic one.
            network.reshape([1, 3, *size])
        self.shape = network.input(0).partial_shape
        self.maps = maps
        self.done: set[Path] = set()
        # Files that could not be read, with the time of their last change.
        self.given_up: dict[Path, float] = {}
        self.queue = ov.AsyncInferQueue(ov.compile_model(network, "CPU", CONFIG))
        self.queue.set_callback(self._report)

    def inspect_new(self, folder: Path, patience: float) -> None:
        """Inspect the images of a folder that are not done yet. Results are printed as soon as they are there.

        Args:
            folder (Path): Folder.
            patience (float): Seconds without a change after which a file counts as whole.
        """
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
            if path not in self.done:
                self._inspect(path, patience)
        self.queue.wait_all()

    def _inspect(self, path: Path, patience: float) -> None:
        """Start the inspection of an image, unless its file is still being written."""
        changed = 0.0
        try:
            changed = path.stat().st_mtime
            if self.given_up.get(path) == changed:
                return
            pixels = read(path)
        except FileNotFoundError:
            return
        except (OSError, SyntaxError, ValueError) as error:
            if time.time() - changed >= patience:
                complain(path, error)
                self.given_up[path] = changed
            return
        self.done.add(path)
        images = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255
        if self.shape.compatible(ov.PartialShape(images.shape)):
            self.queue.start_async([images], (path, pixels))
        else:
            complain(path, f"{images.shape} does not fit the input of the model, {self.shape}")

    def _report(self, request: ov.InferRequest, job: tuple[Path, np.ndarray]) -> None:
        """Print the result of an image, and save its picture."""
        path, pixels = job
        label, score = (request.get_tensor(name).data.item() for name in ("pred_label", "pred_score"))
        print(path.name, "defective" if label else "good", f"{score:.3f}", flush=True)
        if self.maps is not None:
            anomaly_map, mask = (request.get_tensor(name).data.squeeze() for name in ("anomaly_map", "pred_mask"))
            overlay(pixels, anomaly_map, mask).save(self.maps / f"{path.stem}.png")


def complain(path: Path, problem: object) -> None:
    """Say that an image is not inspected."""
    print(f"{path.name} is not inspected: {problem}", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read and check the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Inspect the images in a folder with an exported model.")
    parser.add_argument("model", type=Path, help="exported model, model.xml")
    parser.add_argument("folder", type=Path, help="folder that a camera writes to")
    parser.add_argument("--once", action="store_true", help="inspect the images that are there, and stop")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size of all images; faster than any size"
    )
    parser.add_argument("--maps", type=Path, help="folder for pictures: anomaly map and outline over the image")
    options = parser.parse_args()
    if not options.model.is_file():
        parser.error(f"the model {options.model} does not exist")
    if not options.folder.is_dir():
        parser.error(f"the folder {options.folder} does not exist")
    if options.maps is not None:
        if options.maps.resolve() == options.folder.resolve():
            parser.error("--maps must be another folder, or its pictures would be inspected, too")
        options.maps.mkdir(parents=True, exist_ok=True)
    return options


def main() -> None:
    """Inspect each image once."""
    options = parse_arguments()
    inspector = Inspector(options.model, options.size, options.maps)
    if options.once:
        inspector.inspect_new(options.folder, patience=0)
        if not inspector.done and not inspector.given_up:
            sys.exit(f"There are no images in {options.folder}.")
        return
    while True:
        inspector.inspect_new(options.folder, PATIENCE)
        time.sleep(0.01)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
