# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Time, size and memory of exported models on a CPU.

Example:
    python benchmarks/latency.py --threads 2

Every model is exported by anomalib for one image of 256 x 256 pixels, with its own resize and post-processing in the
graph, and run by OpenVINO with the same image and number of threads. Weights are random: they do not affect the time.
Parts that grow with training have their size for MVTec AD bottle: the coreset of PatchCore holds 2,140 features, 1 % of
those of 209 images. INT8 is made by NNCF's post-training quantisation with noise, so its figures are of time alone;
DdpmSt keeps the operations in FP32 that its own export keeps in FP32.

Latency is the median of runs of one image at a time. Models and precisions are interleaved, so that a busy moment of
the machine affects all of them; the first runs of a turn do not count, since the cache still holds the previous model.
The spread is half the interquartile range. Throughput is that of four seconds of OpenVINO's asynchronous queue. Memory
is the peak resident set of a process that loads the model and runs it ten times. FP32 and FP16 (FP16 weights in the
file) are computed in FP32, also on processors with a shorter type.
"""

import logging
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import nncf
import numpy as np
import openvino as ov
import timm
import torch
from anomalib.deploy import CompressionType
from anomalib.models import (
    AnomalibModule,
    Draem,
    EfficientAd,
    Padim,
    Patchcore,
    Stfpm,
    Supersimplenet,
)
from common import append_row, flops, save_record
from jsonargparse import ArgumentParser

from anomalib_ddpm_st import CanonicalPose, DdpmSt
from anomalib_ddpm_st.core.canonical_pose import PoseFrame
from anomalib_ddpm_st.detector.openvino import quantize

SIZE = 256
PATCHCORE_FEATURES = 2140
CALIBRATION_IMAGES = 10
WARM_UP = 2
TURN = 5
THROUGHPUT_SECONDS = 4.0
# A single one that outlives all models, see anomalib_ddpm_st.core.signal_stack.
CORE = ov.Core()
PRECISIONS = ("FP32", "FP16", "INT8")

MEMORY_SCRIPT = """
import re, sys
from pathlib import Path
import numpy as np, openvino as ov
core = ov.Core()
model = core.read_model(sys.argv[1])
model.reshape([1, 3, int(sys.argv[3]), int(sys.argv[3])])
config = {"INFERENCE_NUM_THREADS": int(sys.argv[2]), "INFERENCE_PRECISION_HINT": "f32"}
compiled = core.compile_model(model, "CPU", config)
for _ in range(10):
    compiled(np.zeros((1, 3, int(sys.argv[3]), int(sys.argv[3])), np.float32))
# Not getrusage, which starts from the memory of the parent process.
print(re.search("VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


def _patchcore() -> Patchcore:
    model = Patchcore(backbone="resnet18", layers=["layer2", "layer3"], pre_trained=False)
    model.model.memory_bank = torch.rand(PATCHCORE_FEATURES, 384)
    return model


def _padim() -> Padim:
    model = Padim(backbone="resnet18", pre_trained=False)
    places = (SIZE // 4) ** 2
    features = len(model.model.idx)
    model.model.gaussian.mean = torch.rand(features, places)
    model.model.gaussian.inv_covariance = torch.eye(features).repeat(places, 1, 1)
    return model


def _ddpm_st(backbone: str = "resnet18") -> DdpmSt:
    model = DdpmSt(backbone, pre_trained=False)
    memory_bank = model.model.memory_bank
    if memory_bank is not None:
        memory_bank.scale.fill_(1.0)
        for level in memory_bank.levels:
            level.copy_(torch.nn.functional.normalize(torch.rand_like(level), dim=1))
    return model


def _ddpm_st_with_pose() -> DdpmSt:
    model = _ddpm_st()
    # The largest frame there is: that of most parts is smaller, and quicker.
    model.model.set_pose(CanonicalPose(PoseFrame()))
    return model


def _draem() -> Draem:
    # With an existing folder it downloads no textures.
    return Draem(dtd_dir=tempfile.gettempdir())


MODELS: dict[str, Callable[[], AnomalibModule]] = {
    "DdpmSt": _ddpm_st,
    "DdpmSt, pose": _ddpm_st_with_pose,
    "DdpmSt, ViT-S/14": partial(_ddpm_st, "vit_small_patch14_dinov2"),
    "DdpmSt, WideResNet-50-2": partial(_ddpm_st, "wide_resnet50_2"),
    "DdpmSt, EfficientNet-Lite0": partial(_ddpm_st, "tf_efficientnet_lite0"),
    "Stfpm": Stfpm,
    "Patchcore": _patchcore,
    "EfficientAd": EfficientAd,
    "Padim": _padim,
    "Supersimplenet": Supersimplenet,
    "Draem": _draem,
}


def build(name: str) -> AnomalibModule:
    """Model with random weights, in evaluation mode, that normalises scores like a trained one."""
    create_model = timm.create_model

    def create_random(*args: Any, **kwargs: Any) -> torch.nn.Module:  # noqa: ANN401
        return create_model(*args, **{**kwargs, "pretrained": False})

    with mock.patch("timm.create_model", create_random):
        model = MODELS[name]().eval()
    # Without validation a post-processor has no thresholds and no range of scores. Lists of scores stay empty.
    values = {"min": 0.0, "max": 1.0}
    for key, value in model.post_processor.state_dict().items():
        value.fill_(values.get(key.rpartition("_")[2], 0.5))
    return model


def count_macs(model: AnomalibModule) -> int:
    """Multiply-accumulate operations of convolutions and matrix products for one image."""
    return flops(lambda: model.model(torch.rand(1, 3, SIZE, SIZE))) // 2


def export(model: AnomalibModule, folder: Path) -> dict[str, Path]:
    """Export a model in all precisions.

    Args:
        model (AnomalibModule): Model.
        folder (Path): Folder to write to.

    Returns:
        dict[str, Path]: File of each precision; no INT8 if NNCF cannot quantise the model.
    """
    # With a dynamic batch size anomalib would export batches of two for PatchCore.
    onnx_arguments = {"opset_version": 18, "dynamic_shapes": None}
    arguments: dict[str, Any] = {"input_size": (SIZE, SIZE), "onnx_kwargs": onnx_arguments}
    paths = {
        "FP32": model.to_openvino(folder / "FP32", **arguments),
        "FP16": model.to_openvino(folder / "FP16", compression_type=CompressionType.FP16, **arguments),
    }
    noise = torch.randint(256, (CALIBRATION_IMAGES, 3, SIZE, SIZE), dtype=torch.uint8)
    exported = CORE.read_model(paths["FP32"])
    try:
        if isinstance(model, DdpmSt):
            quantized = quantize(exported, noise)
        else:
            quantized = nncf.quantize(exported, nncf.Dataset([image.numpy() for image in (noise / 255).split(1)]))
    except (RuntimeError, nncf.InternalError) as error:
        print(f"No INT8 of {type(model).__name__}: {error}", flush=True)  # noqa: T201
        return paths
    paths["INT8"] = folder / "INT8" / "model.xml"
    ov.save_model(quantized, paths["INT8"], compress_to_fp16=False)
    return paths


def compile_model(path: Path, threads: int, hint: str) -> ov.CompiledModel:
    """Compile a model for one image."""
    model = CORE.read_model(path)
    model.reshape([1, 3, SIZE, SIZE])
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": hint}
    return CORE.compile_model(model, "CPU", config)


def measure_latency(compiled: dict[tuple[str, str], ov.CompiledModel], runs: int) -> dict[tuple[str, str], np.ndarray]:
    """Milliseconds of interleaved runs of one image.

    Args:
        compiled (dict[tuple[str, str], ov.CompiledModel]): Models by name and precision.
        runs (int): Number of counted runs of each model.

    Returns:
        dict[tuple[str, str], np.ndarray]: Milliseconds of each run.
    """
    image = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
    requests = {key: model.create_infer_request() for key, model in compiled.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in compiled}
    for _ in range(math.ceil(runs / TURN)):
        for key, request in requests.items():
            for run in range(WARM_UP + TURN):
                start = time.perf_counter()
                request.infer([image])
                if run >= WARM_UP:
                    times[key].append(1000 * (time.perf_counter() - start))
    return {key: np.array(values) for key, values in times.items()}


def measure_throughput(path: Path, threads: int) -> float:
    """Images per second of OpenVINO's asynchronous queue."""
    queue = ov.AsyncInferQueue(compile_model(path, threads, "THROUGHPUT"))
    image = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
    finished: list[int] = []
    queue.set_callback(lambda _, index: finished.append(index))
    for _ in range(WARM_UP):
        queue.start_async([image], 0)
    queue.wait_all()
    finished.clear()
    start = time.perf_counter()
    while time.perf_counter() - start < THROUGHPUT_SECONDS:
        queue.start_async([image], 0)
    queue.wait_all()
    return len(finished) / (time.perf_counter() - start)


def measure_memory(path: Path, threads: int) -> float:
    """Peak resident memory of a process that runs a model, in MB."""
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(path), str(threads), str(SIZE)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1]) * 1024 / 1e6


def main() -> None:
    """Measure all models in one run and write the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/latency.csv"))
    options = parser.parse_args()
    for name in ("anomalib", "nncf", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as work_dir:
        macs: dict[str, int] = {}
        paths: dict[tuple[str, str], Path] = {}
        for name in options.models:
            model = build(name)
            macs[name] = count_macs(model)
            for precision, path in export(model, Path(work_dir) / name).items():
                paths[name, precision] = path
            print(f"{name} exported", flush=True)  # noqa: T201
        compiled = {key: compile_model(path, options.threads, "LATENCY") for key, path in paths.items()}
        latency = measure_latency(compiled, options.runs)
        del compiled
        medians = {key: float(np.median(values)) for key, values in latency.items()}
        options.output.unlink(missing_ok=True)
        for (name, precision), path in paths.items():
            quartiles = np.percentile(latency[name, precision], [25, 75])
            size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
            stfpm = medians.get(("Stfpm", precision))
            row = {
                "model": name,
                "precision": precision,
                "latency_ms": round(medians[name, precision], 2),
                "throughput": round(measure_throughput(path, options.threads), 2),
                "macs": macs[name],
                "size_mb": round(size / 1e6, 2),
                "peak_rss_mb": round(measure_memory(path, options.threads), 1),
                "ratio_to_stfpm": round(medians[name, precision] / stfpm, 3) if stfpm else "",
                "latency_spread_ms": round(float(quartiles[1] - quartiles[0]) / 2, 2),
                "weights": "random",
            }
            append_row(options.output, row)
            print(row, flush=True)  # noqa: T201
    missing = [name for name in options.models if (name, "INT8") not in paths]
    settings = {
        "threads": options.threads,
        "runs": options.runs,
        "openvino": ov.__version__,
        "not_quantised_by_nncf": missing,
    }
    save_record(options.output.with_suffix(".json"), settings)


if __name__ == "__main__":
    main()
