# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny real data: tiles of a photograph in the layout of MVTec AD."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from anomalib.cli.cli import AnomalibCLI
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType
from anomalib.engine import Engine

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.cli.demo_data import write_data

ROOT = Path(__file__).parents[2]
CATEGORY = "gravel"
SIZE = (64, 64)
# What a config says to make images small.
SMALL_IMAGES = {
    "class_path": "anomalib.pre_processing.PreProcessor",
    "init_args": {"transform": {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": list(SIZE)}}},
}
Shell = Callable[..., subprocess.CompletedProcess]
Command = Callable[..., str]
TINY: dict[str, Any] = {
    "pre_trained": False,
    "diffusion": {"training_steps": 2},
    "bank": {"size": 4, "num_inference_steps": 2},
    "defects": {"opacity": [0.4, 0.9]},
    "training_steps": 2,
    "memory_size": 10,
}


@pytest.fixture(scope="session")
def mvtec_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of one category with six normal, two good and two defective images."""
    source = tmp_path_factory.mktemp("tiles")
    write_data(source, CATEGORY, seed=0)
    root = tmp_path_factory.mktemp("mvtec")
    moves = [
        ("train/good", "train/good", "", 6),
        ("test/good", "test/good", "", 2),
        ("test/defect", "test/defect", "", 2),
        ("mask/defect", "ground_truth/defect", "_mask", 2),
    ]
    for folder, target, suffix, count in moves:
        (root / CATEGORY / target).mkdir(parents=True)
        for path in sorted((source / folder).glob("*.png"))[:count]:
            shutil.copy(path, root / CATEGORY / target / f"{path.stem}{suffix}.png")
    return root


@pytest.fixture
def datamodule(mvtec_root: Path) -> MVTecAD:
    """Datamodule of the tiny category."""
    return MVTecAD(root=mvtec_root, category=CATEGORY, train_batch_size=2, eval_batch_size=2, num_workers=0)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Cache that the tests share, so that the DDPM is trained once."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny(cache_dir: str) -> dict[str, Any]:
    """Init arguments of a model that trains in seconds, plain data."""
    return {**TINY, "cache_dir": cache_dir}


@pytest.fixture(scope="session")
def small(tiny: dict[str, Any]) -> dict[str, Any]:
    """The same for images of 64 x 64 pixels, without pictures of the results."""
    return {**tiny, "pre_processor": DdpmSt.configure_pre_processor(SIZE), "visualizer": False}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this process from downloading weights, and from finding downloaded ones."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    """Run a command of anomalib in this process, which saves ten seconds of imports, and return its output."""

    def call(*arguments: str, folder: str = "", cli: type[AnomalibCLI] = AnomalibCLI) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        capsys.readouterr()
        cli(arguments)
        return capsys.readouterr().out

    return call


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a command in an empty folder or one of its folders, offline, and show its output if it fails."""

    def call(*arguments: str, check: bool = True, folder: str = "") -> subprocess.CompletedProcess:
        (tmp_path / folder).mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        }
        scripts = Path(sys.executable).parent
        environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
        result = subprocess.run(
            arguments,
            cwd=tmp_path / folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if check and result.returncode:
            pytest.fail(f"{' '.join(arguments)} exited with {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result

    return call


def make_engine(tmp_path: Path, **arguments: Any) -> Engine:  # noqa: ANN401
    """Engine on the CPU that leaves everything in a folder."""
    return Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, **arguments)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    mvtec_root: Path,
    small: dict[str, Any],
) -> tuple[Engine, DdpmSt, list]:
    """A model trained for two steps, its engine and its test metrics."""
    datamodule = MVTecAD(root=mvtec_root, category=CATEGORY, train_batch_size=2, eval_batch_size=2, num_workers=0)
    model = DdpmSt(**small)
    engine = make_engine(tmp_path_factory.mktemp("engine"))
    metrics = engine.train(model, datamodule=datamodule)
    return engine, model, metrics


@pytest.fixture(scope="session")
def exported(trained: tuple, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int] | None], Path]:
    """OpenVINO model in FP32 for an input size, exported once."""
    engine, model, _ = trained

    @cache
    def export(input_size: tuple[int, int] | None = None) -> Path:
        root = tmp_path_factory.mktemp("openvino")
        return engine.export(model, ExportType.OPENVINO, export_root=root, input_size=input_size)

    return export
