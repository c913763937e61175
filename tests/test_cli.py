# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The commands of this package."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from anomalib.data import Folder
from PIL import Image

from anomalib_ddpm_st import cli
from anomalib_ddpm_st.detector.torch_model import Teacher
from anomalib_ddpm_st.report import HEALTH_LAYERS
from anomalib_ddpm_st.synthesis.preparation import load_pipeline


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Folder of three normal images."""
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(100, 140, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weight file of a ResNet-18 without training, so that nobody asks the hub."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(Teacher("resnet18", HEALTH_LAYERS).extractor.feature_extractor.state_dict(), path)
    return str(path)


@pytest.fixture
def ddpm(tmp_path: Path, good: Path, weights: str) -> Path:
    """Folder of a DDPM trained for two steps by the command line."""
    output = tmp_path / "ddpm"
    arguments = ["--images", str(good), "--output", str(output), "--image_size", "[32, 32]"]
    more = ["--accelerator", "cpu", "--teacher_weights", weights]
    cli.DdpmStCLI(["diffusion", *arguments, "--training_steps", "2", "--batch_size", "2", *more])
    return output


def test_diffusion_writes_a_pipeline_and_samples(ddpm: Path) -> None:
    assert (ddpm / "samples.png").exists()
    assert load_pipeline(ddpm)(batch_size=1, num_inference_steps=1).images.shape == (1, 3, 32, 32)


def test_diffusion_does_not_overwrite(ddpm: Path, good: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a trained DDPM already"):
        cli.diffusion(good, ddpm)


def synthesize(folder: Path, name: str, good: Path, ddpm: Path, **settings: Any) -> Path:  # ruff: ignore[any-type]
    """Folder of two small pairs, unless said otherwise."""
    defaults = {"images": good, "count": 2, "diffusion_path": ddpm, "image_size": (32, 32), "bank_size": 3}
    more = {"strength": (0.5, 0.9), "cache_dir": folder / "cache"}
    cli.synthesize(folder / name, **{**defaults, **more, **settings})
    return folder / name


def test_synthesize_writes_what_folder_reads(tmp_path: Path, good: Path, ddpm: Path, weights: str) -> None:
    output = tmp_path / "pairs"
    arguments = {"--images": good, "--output": output, "--diffusion_path": ddpm, "--cache_dir": tmp_path / "cache"}
    settings = {"--per_image": 1, "--bank_size": 3, "--image_size": "[32, 32]", "--strength": "[0.5, 0.9]"}
    more = {"--teacher_weights": weights}
    pairs = [str(part) for item in {**arguments, **settings, **more}.items() for part in item]
    cli.DdpmStCLI(["synthesize", *pairs])
    assert (output / "contact_sheet.png").exists()
    assert json.loads((output / "health.json").read_text())["verdict"] == "unknown"
    names = [path.name for path in sorted((output / "image").glob("*"))]
    assert names == [path.name for path in sorted((output / "mask").glob("*"))]
    assert names == ["00000_00.png", "00001_00.png", "00002_00.png"]
    for name in names:
        values = np.unique(np.asarray(Image.open(output / "mask" / name)))
        assert values.tolist() == [0, 255]
    data = Folder(
        name="pairs",
        root=tmp_path,
        normal_dir="good",
        abnormal_dir="pairs/image",
        mask_dir="pairs/mask",
        num_workers=0,
        val_split_mode="same_as_test",
    )
    data.setup()
    masks = [item.gt_mask for item in data.test_data if bool(item.gt_label)]
    assert len(masks) == 3
    assert all(torch.as_tensor(mask).any() for mask in masks)


def test_same_seed_same_files(tmp_path: Path, good: Path, ddpm: Path, weights: str) -> None:
    def files(name: str, seed: int) -> list[bytes]:
        output = synthesize(tmp_path, name, good, ddpm, seed=seed, teacher_weights=weights)
        return [path.read_bytes() for path in sorted((output / "image").glob("*.png"))]

    first = files("first", 0)
    assert len(first) == 2
    assert first == files("second", 0)
    assert first != files("third", 1)


def test_images_of_a_datamodule(tmp_path: Path, good: Path, ddpm: Path, weights: str) -> None:
    """Its normal training images; a whole config with a model in it is as good."""
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    arguments = {"name": "x", "root": str(tmp_path), "normal_dir": good.name, **splits}
    module = {"class_path": "Folder", "init_args": arguments}
    path = tmp_path / "data.yaml"
    for config in (module, {"model": "DdpmSt", "data": module}):
        path.write_text(yaml.safe_dump(config))
        name = f"pairs{len(config)}{'data' in config}"
        output = synthesize(tmp_path, name, None, ddpm, data=path, count=None, teacher_weights=weights)  # type: ignore[arg-type]
        rows = list(csv.DictReader((output / "pairs.csv").open()))
        assert rows
        assert {Path(row["source"]).parent for row in rows} == {good}


@pytest.mark.parametrize("arguments", [{}, {"images": Path("a"), "data": Path("b")}])
def test_one_source_of_images(tmp_path: Path, arguments: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="either a folder of normal images"):
        cli.synthesize(tmp_path / "pairs", **arguments)


def test_without_weights_the_pairs_come_all_the_same(
    tmp_path: Path,
    good: Path,
    ddpm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The health is not measured, and that is said."""

    def fail(*_: Any, **__: Any) -> None:  # ruff: ignore[any-type]
        msg = "no network"
        raise ConnectionError(msg)

    monkeypatch.setattr(Teacher, "load_weights", fail)
    output = synthesize(tmp_path, "pairs", good, ddpm)
    assert "health of the DDPM is not measured: no network" in capsys.readouterr().out
    assert not (output / "health.json").exists()
    assert (output / "report.html").exists()


def test_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "only.png").write_bytes(b"no image")
    arguments = ["--images", str(tmp_path), "--output", str(tmp_path / "ddpm")]
    monkeypatch.setattr(sys, "argv", ["anomalib-ddpm-st", "diffusion", *arguments])
    with pytest.raises(SystemExit, match=r"only.png cannot be read"):
        cli.main()


def test_help_lists_own_and_anomalib_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.DdpmStCLI(["--help"])
    output = capsys.readouterr().out
    for command in ("diffusion", "synthesize", "demo", "train", "benchmark"):
        assert command in output
