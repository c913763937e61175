# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Every surface of anomalib that takes a model by name finds DdpmSt."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from anomalib.models import get_model, list_models

import anomalib_ddpm_st

from .conftest import ROOT, SMALL_IMAGES, Shell


@pytest.mark.parametrize(
    "surface",
    ["name", "class_path", "dotted_class_path", "anomalib_class_path", "list_models", "from_config"],
)
def test_python_surfaces(surface: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    if surface == "list_models":
        assert "ddpm_st" in list_models()
        assert "DdpmSt" in list_models(case="pascal")
        return
    if surface == "from_config":
        path = tmp_path / "model.yaml"
        path.write_text(yaml.safe_dump({"model": {"class_path": "anomalib_ddpm_st.DdpmSt", "init_args": tiny}}))
        model = anomalib_ddpm_st.DdpmSt.from_config(path)
    elif surface == "name":
        model = get_model("ddpm_st", **tiny)
    else:
        path_of = {
            "class_path": "DdpmSt",
            "dotted_class_path": "anomalib_ddpm_st.DdpmSt",
            "anomalib_class_path": "anomalib.models.DdpmSt",
        }
        model = get_model({"class_path": path_of[surface], "init_args": tiny})
    assert isinstance(model, anomalib_ddpm_st.DdpmSt)
    assert model.bank == anomalib_ddpm_st.BankConfig(4, num_inference_steps=2)
    assert model.training_steps == tiny["training_steps"]


def dotted(prefix: str, settings: dict[str, Any]) -> list[str]:
    """Options for nested settings, with a dot for each level."""
    options = []
    for name, value in settings.items():
        key = f"{prefix}.{name}"
        options += dotted(key, value) if isinstance(value, dict) else [f"{key}={value}"]
    return options


@pytest.fixture
def model_arguments(tiny: dict[str, Any]) -> list[str]:
    return [
        *dotted("--model", tiny),
        f"--model.pre_processor={json.dumps(SMALL_IMAGES)}",
        "--model.visualizer=false",
        "--trainer.accelerator=cpu",
    ]


@pytest.fixture
def data_arguments(mvtec_root: Path) -> list[str]:
    settings = {"root": mvtec_root, "category": "gravel", "train_batch_size": 2, "num_workers": 0}
    return ["--data", "anomalib.data.MVTecAD", *(f"--data.{name}={value}" for name, value in settings.items())]


@pytest.mark.slow
def test_stock_command_line(
    shell: Shell,
    tmp_path: Path,
    mvtec_root: Path,
    model_arguments: list[str],
    data_arguments: list[str],
) -> None:
    """One life of a model with anomalib's own commands: train, saved config, test, validate, predict, export."""
    model = ["--model", "anomalib_ddpm_st.DdpmSt", *model_arguments, "--model.defects.opacity=[0.25, 0.75]"]
    output = shell("anomalib", "train", *model, *data_arguments).stdout
    assert "image_AUROC" in output
    run = tmp_path / "results" / "DdpmSt" / "MVTecAD" / "gravel" / "v0"
    checkpoint = run / "weights" / "lightning" / "model.ckpt"
    assert checkpoint.exists()

    saved = next(tmp_path.rglob("config.yaml"))
    settings = yaml.safe_load(saved.read_text())["model"]
    assert settings["class_path"] == "anomalib_ddpm_st.DdpmSt"
    assert settings["init_args"]["defects"]["opacity"] == [0.25, 0.75]
    assert settings["init_args"]["bank"]["size"] == 4
    hyper_parameters = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert hyper_parameters["defects"]["opacity"] == (0.25, 0.75)
    assert hyper_parameters["diffusion"]["training_steps"] == 2
    with_checkpoint = [*model, "--ckpt_path", str(checkpoint)]
    image = next((mvtec_root / "gravel" / "test" / "defect").glob("*.png"))
    commands = {
        "fit": ["-c", str(saved)],
        "test": [*with_checkpoint, *data_arguments],
        "validate": [*with_checkpoint, *data_arguments],
        "predict": [*with_checkpoint, "--data", str(image)],
        "export": [*with_checkpoint, "--export_type", "openvino"],
    }

    def run(name: str) -> str:
        return shell("anomalib", name, *commands[name], folder=name).stdout

    with ThreadPoolExecutor(2) as pool:  # most of a command is its imports, which take one core
        outputs = dict(zip(commands, pool.map(run, commands), strict=True))
    assert "image_AUROC" in outputs["test"]
    assert "image_AUROC" in outputs["validate"]
    assert list((tmp_path / "export").rglob("model.xml"))


@pytest.mark.slow
def test_config_file_and_short_name(
    shell: Shell,
    tmp_path: Path,
    model_arguments: list[str],
    data_arguments: list[str],
) -> None:
    config = str(ROOT / "configs" / "ddpm_st.yaml")
    sooner = ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    shell("anomalib", "fit", "-c", config, *model_arguments, *sooner, *data_arguments)
    short = ["--model", "DdpmSt", *model_arguments, "--trainer.max_steps=1"]
    shell("anomalib-ddpm-st", "fit", *short, *data_arguments)
    assert len(list(tmp_path.rglob("model.ckpt"))) == 2


@pytest.mark.slow
def test_early_stopping_finds_its_metric(
    shell: Shell,
    tmp_path: Path,
    mvtec_root: Path,
    model_arguments: list[str],
) -> None:
    config = str(ROOT / "configs" / "ddpm_st_early_stopping.yaml")
    data = [f"--data.root={mvtec_root}", "--data.category=gravel", "--data.train_batch_size=2", "--data.num_workers=0"]
    shell("anomalib", "fit", "-c", config, *model_arguments, *data)
    assert list(tmp_path.rglob("model.ckpt"))


def test_unknown_backbone_on_the_command_line(shell: Shell, data_arguments: list[str]) -> None:
    model = ["--model", "anomalib_ddpm_st.DdpmSt", "--model.backbone", "resnet81"]
    result = shell("anomalib", "fit", *model, *data_arguments, check=False)
    assert result.returncode != 0
    assert "timm has no backbone named 'resnet81'" in result.stdout + result.stderr


@pytest.mark.slow
def test_benchmark(shell: Shell, tmp_path: Path, mvtec_root: Path, tiny: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "configs" / "benchmark_bottle.yaml").read_text())
    config["benchmark"]["data"]["init_args"].update(root=str(mvtec_root), category="gravel", num_workers=0)
    for model in config["benchmark"]["model"]["grid"]:
        model["init_args"].update(tiny if model["class_path"] == "DdpmSt" else {"pre_trained": False})
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump(config))
    shell("anomalib-ddpm-st", "benchmark", "-c", str(path))
    with next(tmp_path.rglob("results.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model.class_path"] for row in rows] == ["DdpmSt", "Patchcore", "Padim"]
    assert all(0 <= float(row["image_AUROC"]) <= 1 for row in rows)
    assert 0 <= float(rows[0]["pixel_AUPRO"]) <= 1
