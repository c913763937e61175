# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Does an exported model match the trained one?

Example:
    python benchmarks/parity.py --categories bottle

A model is trained for a few steps, with thresholds and ranges of scores from a validation set, and exported with
dynamic and static input, for three image sizes of the model, with FP32 and FP16 weights. Three test images of the
category, resized to 900 x 900 and to 256 x 256 pixels, and the large ones in grey, go one at a time and all at once
through

- openvino: the OpenVINO file, run by OpenVINO itself,
- inferencer: the same, through anomalib's ``OpenVINOInferencer``,
- onnx: the ONNX file, run by OpenVINO (FP32 only).

Each of these is a cell of the table. It holds the largest differences over pixels and images to ``Engine.predict`` and
to the model called as a function, as it is exported. Labels and masks are compared if the score is further than 0.001
from the threshold. A static model takes the size of the images; the resize to the size of the model is in the graph.
OpenVINO computes in FP32, also on processors with bfloat16.
"""

import contextlib
import itertools
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from anomalib.data import ImageBatch, MVTecAD, PredictDataset
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, OpenVINOInferencer
from anomalib.engine import Engine
from common import ROOT, make_parser, save_record
from lightning.pytorch import seed_everything
from PIL import Image

from anomalib_ddpm_st import DdpmSt

SIZES = ((256, 256), (320, 320), (192, 320))
BATCHES = (1, 3)
PRECISIONS = ("FP32", "FP16")
LARGE = 900
SMALL = 256
THRESHOLD = 0.5
MARGIN = 1e-3
# A single one that outlives all models, as in latency.py.
CORE = ov.Core()
CONFIG = {"INFERENCE_PRECISION_HINT": "f32"}

Prediction = dict[str, np.ndarray]
FIELDS = ("anomaly_map", "pred_score", "pred_label", "pred_mask")


def write_inputs(paths: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Write three kinds of input files.

    Args:
        paths (Sequence[Path]): Images.
        folder (Path): Folder to write to.

    Returns:
        dict[str, list[Path]]: Files of each kind.
    """
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "large": lambda image: image.resize((LARGE, LARGE)),
        "small": lambda image: image.resize((SMALL, SMALL)),
        "grey": lambda image: image.resize((LARGE, LARGE)).convert("L"),
    }
    files: dict[str, list[Path]] = {}
    for kind, change in changes.items():
        (folder / kind).mkdir()
        files[kind] = [folder / kind / f"{index}.png" for index in range(len(paths))]
        for path, target in zip(paths, files[kind], strict=True):
            with Image.open(path) as image:
                change(image.convert("RGB")).save(target)
    return files


def train(data_root: Path, category: str, training_steps: int, teacher_weights: str | None, work_dir: Path) -> DdpmSt:
    """Train for a few steps and validate.

    Args:
        data_root (Path): Folder of the categories.
        category (str): Name of the category.
        training_steps (int): Steps of the detector.
        teacher_weights (str | None): Local weights, or ``None`` to download them.
        work_dir (Path): Folder of this run.

    Returns:
        DdpmSt: Model with thresholds and ranges of scores.
    """
    model = DdpmSt(
        defects={"source": "self_texture"},
        teacher_weights=teacher_weights,
        training_steps=training_steps,
        visualizer=False,
        evaluator=False,
    )
    datamodule = MVTecAD(root=data_root, category=category, train_batch_size=8, eval_batch_size=8, num_workers=0)
    engine = Engine(default_root_dir=work_dir, logger=False, devices=1, accelerator="cpu", max_steps=training_steps)
    engine.fit(model, datamodule=datamodule)
    engine.validate(model, datamodule=datamodule)
    return model


def resized(model: DdpmSt, size: tuple[int, int]) -> DdpmSt:
    """Model with the same weights for images of another size."""
    other = DdpmSt(
        pre_trained=False,
        pre_processor=DdpmSt.configure_pre_processor(size),
        visualizer=False,
        evaluator=False,
    )
    other.load_state_dict(model.state_dict())
    return other.eval()


def as_arrays(batch: Any) -> Prediction:  # noqa: ANN401
    """Fields of a prediction as arrays of the same shapes for every runtime."""
    arrays = {name: np.asarray(getattr(batch, name)) for name in FIELDS}
    maps = arrays["anomaly_map"]
    shape = (-1, 1, *maps.shape[-2:])
    return {name: value.reshape(shape if value.ndim > 2 else -1) for name, value in arrays.items()}


def predict_by_lightning(model: DdpmSt, paths: Sequence[Path], work_dir: Path) -> Prediction:
    """Predictions of ``Engine.predict``, in the order of the files."""
    engine = Engine(default_root_dir=work_dir, logger=False, devices=1, accelerator="cpu", enable_progress_bar=False)
    loader = torch.utils.data.DataLoader(
        PredictDataset(paths[0].parent),
        batch_size=len(paths),
        collate_fn=ImageBatch.collate,
    )
    batches = engine.predict(model, dataloaders=loader, return_predictions=True) or []
    model.eval()
    return as_arrays(batches[0])


def predict_as_exported(model: DdpmSt, images: np.ndarray) -> Prediction:
    """Predictions of the model called as a function."""
    with torch.no_grad():
        return as_arrays(model(torch.from_numpy(images)))


def compare(actual: Prediction, expected: Prediction) -> dict[str, float | bool]:
    """Largest differences of two predictions, and whether labels and masks agree away from the threshold."""
    clear = {name: np.abs(expected[name] - THRESHOLD) > MARGIN for name in ("pred_score", "anomaly_map")}
    differs = {name: actual[name].astype(bool) != expected[name].astype(bool) for name in ("pred_label", "pred_mask")}
    return {
        "map": float(np.abs(actual["anomaly_map"] - expected["anomaly_map"]).max()),
        "score": float(np.abs(actual["pred_score"] - expected["pred_score"]).max()),
        "labels_equal": not (differs["pred_label"] & clear["pred_score"]).any(),
        "masks_equal": not (differs["pred_mask"] & clear["anomaly_map"]).any(),
    }


@contextlib.contextmanager
def inside(folder: Path) -> Generator[None, None, None]:
    """Work in a folder: anomalib's inferencer leaves a cache in the current one."""
    previous = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(previous)


def runners(path: Path, onnx_path: Path | None) -> dict[str, Callable[[np.ndarray], Prediction]]:
    """Functions that run an exported model on images of shape ``(B, 3, H, W)``."""

    def raw(file: Path) -> Callable[[np.ndarray], Prediction]:
        compiled = CORE.compile_model(file, "CPU", CONFIG)

        def call(images: np.ndarray) -> Prediction:
            result = compiled([images])
            return as_arrays(type("Result", (), {name: result[name] for name in FIELDS}))

        return call

    inferencer = OpenVINOInferencer(path, device="CPU", config=CONFIG)
    functions = {"openvino": raw(path), "inferencer": lambda images: as_arrays(inferencer.predict(images))}
    return functions if onnx_path is None else {**functions, "onnx": raw(onnx_path)}


def run_size(model: DdpmSt, inputs: dict[str, list[Path]], work_dir: Path) -> list[dict[str, Any]]:
    """Cells of one image size of the model.

    Args:
        model (DdpmSt): Trained model.
        inputs (dict[str, list[Path]]): Files of each kind, of one size within a kind.
        work_dir (Path): Folder for exported models.

    Returns:
        list[dict[str, Any]]: Rows.
    """
    images = {
        kind: np.stack([np.asarray(read_image(path, as_tensor=True)) for path in paths])
        for kind, paths in inputs.items()
    }
    expected = {
        kind: (predict_by_lightning(model, paths, work_dir), predict_as_exported(model, images[kind]))
        for kind, paths in inputs.items()
    }
    sizes: list[tuple[int, int] | None] = [None, *sorted({tuple(values.shape[-2:]) for values in images.values()})]
    rows = []
    for input_size, precision in itertools.product(sizes, PRECISIONS):
        rows += run_export(model, input_size, precision, images, expected, work_dir / "export")
    return rows


def run_export(
    model: DdpmSt,
    input_size: tuple[int, int] | None,
    precision: str,
    images: dict[str, np.ndarray],
    expected: dict[str, tuple[Prediction, Prediction]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Cells of one exported model.

    Args:
        model (DdpmSt): Trained model.
        input_size (tuple[int, int] | None): Height and width of its input, ``None`` for dynamic input.
        precision (str): One of ``PRECISIONS``.
        images (dict[str, np.ndarray]): Images of each kind, of shape ``(B, 3, H, W)``.
        expected (dict[str, tuple[Prediction, Prediction]]): Predictions by Lightning, and by the model as a function.
        folder (Path): Folder to export to.

    Returns:
        list[dict[str, Any]]: Rows.
    """
    shutil.rmtree(folder, ignore_errors=True)
    compression = CompressionType.FP16 if precision == "FP16" else None
    path = model.to_openvino(folder, input_size=input_size, compression_type=compression)
    onnx_path = model.to_onnx(folder, input_size=input_size) if precision == "FP32" else None
    kinds = [kind for kind in images if input_size in {None, tuple(images[kind].shape[-2:])}]
    rows = []
    for (runtime, call), kind, batch in itertools.product(runners(path, onnx_path).items(), kinds, BATCHES):
        parts = [call(images[kind][start : start + batch]) for start in range(0, len(images[kind]), batch)]
        actual = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
        to_lightning, to_export = (compare(actual, reference) for reference in expected[kind])
        rows.append(
            {
                "input_size": "dynamic" if input_size is None else "static",
                "model_size": "x".join(map(str, model.input_size or ())),
                "batch": batch,
                "precision": precision,
                "images": f"{kind} {images[kind].shape[-2]}x{images[kind].shape[-1]}",
                "runtime": runtime,
                "map_to_lightning": to_lightning["map"],
                "map_to_export": to_export["map"],
                "score_to_lightning": to_lightning["score"],
                "score_to_export": to_export["score"],
                "labels_equal": to_lightning["labels_equal"] and to_export["labels_equal"],
                "masks_equal": to_lightning["masks_equal"] and to_export["masks_equal"],
            },
        )
    return rows


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Largest difference of maps in each precision, and whether all labels and masks are equal."""
    return {
        **{
            f"largest_map_difference_{precision}": max(
                max(row["map_to_lightning"], row["map_to_export"]) for row in rows if row["precision"] == precision
            )
            for precision in PRECISIONS
        },
        "labels_equal": all(row["labels_equal"] for row in rows),
        "masks_equal": all(row["masks_equal"] for row in rows),
        "cells": len(rows),
    }


def main() -> None:
    """Run all cells and write the table."""
    parser = make_parser(__doc__, ["bottle"], "benchmarks/results/parity.json")
    parser.add_argument("--training-steps", type=int, default=60)
    options = parser.parse_args()
    for name in ("anomalib", "lightning.pytorch", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seed_everything(options.seeds[0], verbose=False)
    category_dir = (options.data_root / options.categories[0]).resolve()
    # One good image and two with defects.
    tests = category_dir / "test"
    defects = sorted(path for path in tests.rglob("*.png") if path.parent.name != "good")
    chosen = [min((tests / "good").iterdir()), defects[0], defects[-1]]
    output = ROOT / options.output
    weights = options.teacher_weights and str(Path(options.teacher_weights).resolve())
    with tempfile.TemporaryDirectory() as name, inside(Path(name)):
        work_dir = Path(name)
        inputs = write_inputs(chosen, work_dir)
        model = train(category_dir.parent, category_dir.name, options.training_steps, weights, work_dir)
        rows = []
        for size in SIZES:
            rows += run_size(resized(model, size), inputs, work_dir)
            print(f"{size}: {summarize(rows)}", flush=True)  # noqa: T201
    record = {**summarize(rows), "data": f"MVTec AD {category_dir.name}", "training_steps": options.training_steps}
    save_record(output, {**record, "seed": options.seeds[0], "openvino": ov.__version__, "rows": rows})


if __name__ == "__main__":
    main()
