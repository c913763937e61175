# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Accuracy of a trained DdpmSt on its test set in FP32, FP16 and INT8, through OpenVINO on the CPU.

Example:
    python benchmarks/precision.py --categories bottle screw --weights-dir WEIGHTS

``curve.py --weights-dir WEIGHTS`` keeps the weights; for each category and seed those of the last step are measured.
INT8 is made by ``DdpmSt.to_openvino`` and calibrated with the training set. Raw scores, no threshold. Existing rows are
skipped. ``seconds`` is the time of the test. Pictures show anomaly maps and scores in FP32.
"""

import itertools
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import torch
from accuracy import save_pictures
from anomalib.data import InferenceBatch, MVTecAD
from anomalib.deploy import CompressionType
from common import append_row, commit, has_row, make_mvtec, make_parser, measure, raw_evaluator
from curve import RENEW_MEMORY_HELP, load_snapshot

from anomalib_ddpm_st import DdpmSt

logger = logging.getLogger(__name__)

CORE = ov.Core()
PRECISIONS = {"FP32": None, "FP16": CompressionType.FP16, "INT8": CompressionType.INT8_PTQ}


def compile_detector(path: Path) -> Callable[[torch.Tensor], InferenceBatch]:
    """Compile an exported model into a function with the interface of the original.

    Args:
        path (Path): OpenVINO model.

    Returns:
        Callable[[torch.Tensor], InferenceBatch]: From images of shape ``(B, 3, H, W)`` with values in [0, 1] to scores
        of shape ``(B,)`` and anomaly maps of shape ``(B, 1, H, W)``.
    """
    compiled = CORE.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def predict(images: torch.Tensor) -> InferenceBatch:
        results = compiled([images.numpy()])
        score, anomaly_map = (torch.from_numpy(results[name].copy()) for name in ("pred_score", "anomaly_map"))
        return InferenceBatch(pred_score=score.flatten(), anomaly_map=anomaly_map)

    return predict


def load(weights: Path, datamodule: MVTecAD, seed: int, renew_memory: bool = False) -> DdpmSt:
    """Load weights kept by ``curve.py`` and calibrate their scores.

    Args:
        weights (Path): File of the weights.
        datamodule (MVTecAD): Data of the training, set up.
        seed (int): Seed of the calibration.
        renew_memory (bool): Refill the memory bank. Defaults to ``False``.

    Returns:
        DdpmSt: Model without a post-processor.
    """
    model = DdpmSt(pre_trained=False, evaluator=raw_evaluator(), post_processor=False, visualizer=False)
    load_snapshot(model, weights, datamodule, seed, renew_memory)
    return model.eval()


def main() -> None:
    """Measure the missing rows of the table."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/precision.csv")
    parser.add_argument("--weights-dir", type=Path, required=True, help="Folder of the weights kept by curve.py.")
    parser.add_argument("--renew-memory", type=bool, default=False, help=RENEW_MEMORY_HELP)
    options = parser.parse_args()
    for category, seed in itertools.product(options.categories, options.seeds):
        missing = [
            name for name in PRECISIONS if not has_row(options.output, category=category, seed=seed, precision=name)
        ]
        if not missing:
            continue
        folder = options.weights_dir / f"{category}-{seed}"
        kept = sorted(folder.glob("step*.pt"), key=lambda path: int(path.stem.removeprefix("step")))
        if not kept:
            msg = f"There are no weights in {folder}: train with curve.py --weights-dir {options.weights_dir} first."
            raise FileNotFoundError(msg)
        datamodule = make_mvtec(options.data_root, category, eval_batch_size=1, num_workers=0)
        datamodule.setup()
        model = load(kept[-1], datamodule, seed, options.renew_memory)
        prefix = options.output.with_name(f"{options.output.stem}_{category}_{seed}")
        save_pictures(model, datamodule, prefix, options.pictures)
        with tempfile.TemporaryDirectory() as work_dir:
            paths = {
                name: model.to_openvino(Path(work_dir) / name, compression_type=compression, datamodule=datamodule)
                for name, compression in PRECISIONS.items()
            }
            for name in missing:
                model.model.forward = compile_detector(paths[name])  # type: ignore[method-assign]
                start = time.perf_counter()
                metrics = measure(model, datamodule, verbose=False, default_root_dir=work_dir, accelerator="cpu")
                row = {"category": category, "seed": seed, "precision": name, "commit": commit()}
                append_row(options.output, {**row, "seconds": round(time.perf_counter() - start), **metrics})
                logger.warning("%s", {**row, **metrics})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
