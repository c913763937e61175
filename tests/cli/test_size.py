# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st size``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser
from PIL import Image

from anomalib_ddpm_st.cli import DdpmStCLI
from anomalib_ddpm_st.cli import size as module
from anomalib_ddpm_st.detector.cost import CostMeter


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One minute and one millisecond for 1000 pixels."""
    for name in ("minutes", "milliseconds"):
        monkeypatch.setattr(CostMeter, name, lambda _, size: size[0] * size[1] / 1000)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two images of 600 x 900 pixels."""
    folder = tmp_path_factory.mktemp("wide")
    for index in range(2):
        Image.fromarray(np.full((600, 900, 3), 50 * index, np.uint8)).save(folder / f"{index}.png")
    return folder


def recommend(capsys: pytest.CaptureFixture, **arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
    """What the command prints: the line, and the config."""
    module.size(**arguments)
    return read_output(capsys)


def read_output(capsys: pytest.CaptureFixture) -> tuple[str, dict[str, Any]]:
    """Line and config in what was printed."""
    output = capsys.readouterr().out
    config = output.split("For the config of the model:\n")[1].split("For diffusion")[0]
    return output.splitlines()[0], yaml.safe_load(config)


def resized(config: dict[str, Any]) -> list[int]:
    """Size in a config."""
    return config["model"]["init_args"]["pre_processor"]["init_args"]["transform"]["init_args"]["size"]


def test_recommendation(wide: Path, capsys: pytest.CaptureFixture) -> None:
    """In pixels of the original images, or in mm; the config makes a model with the size."""
    DdpmStCLI(["size", f"--images={wide}", "--smallest_defect=40"])
    line, config = read_output(capsys)
    assert line.startswith("Input size 256 x 384 pixels: a defect of 40 pixels covers 17.1 pixels of the input.")
    assert "training takes about 1 h 40 min and an image 98.3 ms" in line
    assert recommend(capsys, images=wide, smallest_defect=2.0, pixel_size=0.05) == (line, config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=AnomalibModule)
    arguments = {"pre_trained": False, **config["model"]["init_args"]}
    parsed = parser.parse_object({"model": {"class_path": "anomalib_ddpm_st.DdpmSt", "init_args": arguments}})
    transform = parser.instantiate_classes(parsed)["model"].pre_processor.transform
    assert list(transform.size) == [256, 384]
    assert transform.antialias is False


@pytest.mark.parametrize("bound", [{"max_minutes": 60.0}, {"max_milliseconds": 60.0}, {"max_cost": 0.9155}])
def test_budget(wide: Path, capsys: pytest.CaptureFixture, bound: dict[str, float]) -> None:
    """60,000 pixels."""
    line, config = recommend(capsys, images=wide, smallest_defect=10.0, **bound)
    assert resized(config) == [192, 288]
    assert "because of the budget" in line


def test_datamodule(wide: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    folder = {"name": "wide", "root": str(wide.parent), "normal_dir": wide.name, **splits}
    path.write_text(yaml.safe_dump({"class_path": "Folder", "init_args": folder}))
    _, config = recommend(capsys, data=path, smallest_defect=40.0)
    assert resized(config) == [256, 384]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"smallest_defect": -1.0}, "smallest_defect must be a finite number above 0, got -1.0"),
        ({"pixel_size": 0.0}, "pixel_size must be a finite number above 0"),
        ({"max_cost": 0.0}, "max_cost must be a finite number above 0"),
        ({"max_minutes": 0.0}, "max_minutes must be a finite number above 0"),
        ({"max_milliseconds": -2.0}, "max_milliseconds must be a finite number above 0"),
        ({"max_minutes": 1.0}, "The budget allows for 1000 pixels of an image"),
        ({"smallest_defect": 901.0}, "larger than the images"),
        ({"images": None}, "Give either a folder of normal images"),
    ],
)
def test_what_cannot_be(wide: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        module.size(**{"smallest_defect": 40.0, "images": wide, **arguments})
    assert "\n" not in str(error.value)


def test_unreadable_image(tmp_path: Path) -> None:
    (tmp_path / "only.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"only.png cannot be read .*: repair it or remove it\.$"):
        module.size(10.0, images=tmp_path)
