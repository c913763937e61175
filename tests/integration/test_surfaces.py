# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Every surface of anomalib that takes a model by name finds DdpmSt, with nested settings."""

import csv
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from anomalib.models import get_model, list_models

from anomalib_ddpm_st import BankConfig, DdpmSt, DefectConfig, DiffusionConfig, prepare_generator
from anomalib_ddpm_st.cli import DdpmStCLI

from .conftest import ROOT, SIZE, SMALL_IMAGES, Command, Shell

CLASS_PATHS = {
    "class_path": "DdpmSt",
    "dotted_class_path": "anomalib_ddpm_st.DdpmSt",
    "anomalib_class_path": "anomalib.models.DdpmSt",
}


def make_model(surface: str, folder: Path, settings: dict[str, Any]) -> DdpmSt:
    """Make a model of plain settings through a surface."""
    if surface == "name":
        return get_model("ddpm_st", **settings)
    if surface in CLASS_PATHS:
        return get_model({"class_path": CLASS_PATHS[surface], "init_args": settings})
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump({"model": {"class_path": CLASS_PATHS["dotted_class_path"], "init_args": settings}}))
    return DdpmSt.from_config(path)


def test_list_models() -> None:
    assert "ddpm_st" in list_models()
    assert "DdpmSt" in list_models(case="pascal")


@pytest.mark.parametrize("surface", ["name", *CLASS_PATHS, "from_config"])
def test_python_surfaces(surface: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Nested settings become the same dataclasses everywhere."""
    model = make_model(surface, tmp_path, tiny)
    assert isinstance(model, DdpmSt)
    assert model.training_steps == tiny["training_steps"]
    assert model.diffusion == DiffusionConfig(training_steps=2)
    assert model.bank == BankConfig(size=4, num_inference_steps=2)
    assert model.defects == DefectConfig(opacity=(0.4, 0.9))
    assert isinstance(model.defects.opacity, tuple)
    assert model.hparams["defects"]["opacity"] == (0.4, 0.9)


@pytest.mark.parametrize("surface", ["name", "class_path", "from_config", "command_line"])
@pytest.mark.parametrize(
    ("group", "setting", "value", "message"),
    [
        ("defects", "opacty", 0.5, "DefectConfig has no setting 'opacty': choose from source, probability, opacity"),
        ("bank", "size", 0, "bank.size must be a whole number of at least 1, got 0."),
    ],
)
def test_wrong_settings_are_named(
    surface: str,
    group: str,
    setting: str,
    value: float,
    message: str,
    tmp_path: Path,
    command: Command,
) -> None:
    """By one sentence, when the model is made."""
    options = ["--model=anomalib_ddpm_st.DdpmSt", f"--model.{group}.{setting}={value}", "--data=anomalib.data.MVTecAD"]
    make = partial(command, "fit", *options)
    if surface != "command_line":
        make = partial(make_model, surface, tmp_path, {group: {setting: value}})
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make()
    if surface in {"name", "class_path"}:
        assert str(error.value).startswith(message), "parsers of configs put their own words around it"


def dotted(prefix: str, settings: dict[str, Any]) -> list[str]:
    """Dotted options of a command."""
    parts = []
    for name, value in settings.items():
        if isinstance(value, dict):
            parts += dotted(f"{prefix}.{name}", value)
        else:
            parts += [f"{prefix}.{name}", str(value)]
    return parts


@pytest.fixture
def model_arguments(tiny: dict[str, Any]) -> list[str]:
    return [
        *dotted("--model", tiny),
        f"--model.pre_processor={json.dumps(SMALL_IMAGES)}",
        "--model.visualizer=false",
        "--trainer.accelerator=cpu",
    ]


@pytest.fixture
def data_options(mvtec_root: Path) -> list[str]:
    return [f"--data.root={mvtec_root}", "--data.category=gravel", "--data.train_batch_size=2", "--data.num_workers=0"]


@pytest.fixture
def data_arguments(data_options: list[str]) -> list[str]:
    return ["--data", "anomalib.data.MVTecAD", *data_options]


@pytest.mark.slow
def test_stock_command_line(
    shell: Shell,
    command: Command,
    tmp_path: Path,
    mvtec_root: Path,
    model_arguments: list[str],
    data_arguments: list[str],
) -> None:
    """One life of a model with anomalib's own commands: train, saved config, test, validate, predict, export."""
    model = ["--model", "anomalib_ddpm_st.DdpmSt", *model_arguments]
    assert {"--model.bank.size", "--model.defects.opacity"} <= set(model)
    output = shell("anomalib", "train", *model, *data_arguments).stdout
    assert "image_AUROC" in output
    run = tmp_path / "results" / "DdpmSt" / "MVTecAD" / "gravel" / "v0"
    checkpoint = run / "weights" / "lightning" / "model.ckpt"
    assert checkpoint.exists()
    hyper_parameters = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert hyper_parameters["defects"]["opacity"] == (0.4, 0.9)
    assert hyper_parameters["diffusion"]["training_steps"] == 2

    saved = next(tmp_path.rglob("config.yaml"))
    config = yaml.safe_load(saved.read_text())["model"]
    assert config["class_path"] == "anomalib_ddpm_st.DdpmSt"
    assert config["init_args"]["bank"]["size"] == 4
    assert config["init_args"]["defects"]["opacity"] == [0.4, 0.9]
    with_checkpoint = [*model, "--ckpt_path", str(checkpoint)]
    image = next((mvtec_root / "gravel" / "test" / "defect").glob("*.png"))
    with ThreadPoolExecutor(1) as pool:  # the imports of a new process take one core
        predict = ["anomalib", "predict", *with_checkpoint, "--data", str(image)]
        predicted = pool.submit(shell, *predict, folder="predict")
        command("fit", "-c", str(saved), folder="fit")
        for name in ("test", "validate"):
            assert "image_AUROC" in command(name, *with_checkpoint, *data_arguments, folder=name)
        command("export", *with_checkpoint, "--export_type", "openvino", folder="export")
        assert predicted.result().returncode == 0
    assert len(list((tmp_path / "fit").rglob("model.ckpt"))) == 1
    assert list((tmp_path / "export").rglob("model.xml"))


@pytest.mark.parametrize("name", ["ddpm_st", "ddpm_st_quick"])
def test_config_files(
    name: str,
    command: Command,
    tmp_path: Path,
    model_arguments: list[str],
    data_arguments: list[str],
) -> None:
    config = str(ROOT / "configs" / f"{name}.yaml")
    sooner = ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    command("fit", "-c", config, *model_arguments, *sooner, *data_arguments)
    assert len(list(tmp_path.rglob("model.ckpt"))) == 1


def test_short_name(command: Command, tmp_path: Path, model_arguments: list[str], data_arguments: list[str]) -> None:
    arguments = ["--model", "DdpmSt", *model_arguments, "--trainer.max_steps=1", *data_arguments]
    command("fit", *arguments, cli=DdpmStCLI)
    assert len(list(tmp_path.rglob("model.ckpt"))) == 1


def test_early_stopping_finds_its_metric(
    command: Command,
    tmp_path: Path,
    model_arguments: list[str],
    data_options: list[str],
) -> None:
    config = str(ROOT / "configs" / "ddpm_st_early_stopping.yaml")
    command("fit", "-c", config, *model_arguments, *data_options)
    assert list(tmp_path.rglob("model.ckpt"))


def test_unknown_backbone_on_the_command_line(command: Command, data_arguments: list[str]) -> None:
    model = ["--model", "anomalib_ddpm_st.DdpmSt", "--model.backbone", "resnet81"]
    with pytest.raises(ValueError, match="timm has no backbone named 'resnet81'"):
        command("fit", *model, *data_arguments)


@pytest.mark.usefixtures("offline")
def test_one_bank_for_detector_and_synthesize(
    trained: tuple,
    tiny: dict[str, Any],
    command: Command,
    tmp_path: Path,
    mvtec_root: Path,
) -> None:
    """What training put into the cache serves ``synthesize`` and ``prepare_generator``; nothing is made twice."""
    _, model, _ = trained
    cache = Path(tiny["cache_dir"])
    before = sorted(cache.glob("*-*/"))
    assert {model.bank_dir, model.diffusion_dir} <= set(before)
    good = mvtec_root / "gravel" / "train" / "good"
    settings = [*dotted("--diffusion", tiny["diffusion"]), *dotted("--bank", tiny["bank"])]
    arguments = ["--images", str(good), "--output", "pairs", "--image_size", str(list(SIZE))]
    output = command("synthesize", *arguments, *settings, "--cache_dir", str(cache), cli=DdpmStCLI)
    assert "Wrote 6 pairs" in output
    assert json.loads((tmp_path / "pairs" / "settings.json").read_text())["bank.size"] == 4
    assert sorted(cache.glob("*-*/")) == before

    groups = {"diffusion": model.diffusion, "bank": model.bank}
    generator = prepare_generator(sorted(good.glob("*.png")), image_size=SIZE, cache_dir=cache, **groups)
    assert sorted(cache.glob("*-*/")) == before
    _, masks = generator(torch.rand(8, 3, *SIZE))
    assert masks.any()


@pytest.mark.slow
def test_benchmark(shell: Shell, tmp_path: Path, mvtec_root: Path, tiny: dict[str, Any]) -> None:
    """Images of the default size."""
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
