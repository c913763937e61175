# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The folder watcher, with a model that calls bright images defective; ``tests/integration`` has a trained one."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "watch_folder.py"
DARK, BRIGHT = 40, 220


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model with the outputs of an exported DdpmSt: the map is the brightness, the score its mean."""
    images = ops.parameter([1, 3, -1, -1], np.float32, name="images")
    anomaly_map = ops.reduce_mean(images, ops.constant([1]), keep_dims=True)
    score = ops.reduce_mean(anomaly_map, ops.constant([1, 2, 3]))
    half = ops.constant(np.float32(0.5))
    outputs = {
        "anomaly_map": anomaly_map,
        "pred_mask": ops.greater(anomaly_map, half),
        "pred_score": score,
        "pred_label": ops.greater(score, half),
    }
    for name, node in outputs.items():
        node.output(0).tensor.set_names({name})
    path = tmp_path_factory.mktemp("model") / "model.xml"
    ov.save_model(ov.Model(list(outputs.values()), [images]), path, compress_to_fp16=False)
    return path


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    """Folder with a dark and a bright image of different sizes and formats, and a file that is no image."""
    folder = tmp_path / "camera"
    folder.mkdir()
    Image.new("L", (40, 30), DARK).save(folder / "dark.png")
    Image.new("RGB", (20, 50), (BRIGHT,) * 3).save(folder / "bright.JPG", quality=100)
    (folder / "notes.txt").write_text("nothing")
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess:
    """Run the script."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_once(model: Path, camera: Path) -> None:
    result = run(model, camera, "--once")
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines == {"dark.png": f"good {DARK / 255:.3f}", "bright.JPG": f"defective {BRIGHT / 255:.3f}"}


def test_what_cannot_be_inspected_is_named_and_the_rest_goes_on(model: Path, camera: Path) -> None:
    whole = (camera / "dark.png").read_bytes()
    (camera / "half.png").write_bytes(whole[: len(whole) // 2])
    result = run(model, camera, "--once", "--size", 30, 40)
    assert result.stdout == f"dark.png good {DARK / 255:.3f}\n"
    problems = sorted(result.stderr.splitlines())
    assert [line.split(":")[0] for line in problems] == ["bright.JPG is not inspected", "half.png is not inspected"]
    assert "(1, 3, 50, 20)" in problems[0]
    assert "[1,3,30,40]" in problems[0]


def test_maps(model: Path, camera: Path, tmp_path: Path) -> None:
    """The picture has the size of the image; the outline encloses what the mask holds."""
    (camera / "bright.JPG").unlink()
    pixels = np.full((30, 40, 3), DARK, np.uint8)
    pixels[10:20, 10:30] = BRIGHT
    Image.fromarray(pixels).save(camera / "spot.png")
    result = run(model, camera, "--once", "--maps", tmp_path / "maps")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["dark.png", "spot.png"]
    spot = np.asarray(Image.open(tmp_path / "maps" / "spot.png")).astype(int)
    white = (spot == 255).all(axis=-1)
    ring = np.zeros((30, 40), bool)
    ring[9:21, 9:31] = True
    ring[10:20, 10:30] = False
    assert (white == ring).all()
    # Red within, and hardly changed where the map is low.
    red, green, blue = spot[15, 20]
    assert red > green > blue
    assert np.abs(spot[0, 0] - DARK).max() < 60
    assert not (np.asarray(Image.open(tmp_path / "maps" / "dark.png")) == 255).all(axis=-1).any()


def test_a_file_is_given_up_until_it_changes(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(SCRIPT))
    inspector = script["Inspector"](model)
    path = tmp_path / "late.png"
    path.write_bytes(b"half")
    inspector.inspect_new(tmp_path, 60)
    assert capfd.readouterr() == ("", ""), "still being written"
    inspector.inspect_new(tmp_path, 0)
    assert "late.png is not inspected" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(script["Inspector"].inspect_new.__globals__, "read", None)
        inspector.inspect_new(tmp_path, 0)
    assert capfd.readouterr() == ("", ""), "neither read nor named again"
    Image.new("L", (40, 30), DARK).save(path)
    for _ in range(2):
        inspector.inspect_new(tmp_path, 60)
    assert capfd.readouterr().out == f"late.png good {DARK / 255:.3f}\n", "once"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model.xml camera", "the model model.xml does not exist"),
        ("MODEL elsewhere --once", "the folder elsewhere does not exist"),
        ("MODEL CAMERA --maps CAMERA", "--maps must be another folder"),
        ("MODEL EMPTY --once", "There are no images in"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, model: Path, camera: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    paths = {"MODEL": model, "CAMERA": camera, "EMPTY": tmp_path / "empty"}
    result = run(*(paths.get(argument, argument) for argument in arguments.split()))
    assert result.returncode
    assert message in result.stderr
    assert "Traceback" not in result.stderr
