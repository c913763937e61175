# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The examples for the production line, with an exported model and nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino.utils import get_cmake_path
from PIL import Image

from .conftest import ROOT

# What an exported model does without: an import of one of these would fail.
WITHOUT = """
import runpy, sys
for name in ("torch", "torchvision", "lightning", "timm", "anomalib", "anomalib_ddpm_st"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WATCH_FOLDER = ROOT / "examples" / "watch_folder.py"


@pytest.mark.slow
def test_watch_a_folder(
    tmp_path: Path,
    exported: Callable[[tuple[int, int] | None], Path],
    mvtec_root: Path,
) -> None:
    """Images that are there, that come later, and that are read while they are written, once each."""
    model_path = exported(None)
    images = sorted((mvtec_root / "gravel" / "test").rglob("*.png"))
    folder = tmp_path / "camera"
    folder.mkdir()
    for index in range(2):
        shutil.copy(images[0], folder / f"early{index}.png")
    whole = images[1].read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    command = [sys.executable, "-c", WITHOUT, str(WATCH_FOLDER), str(model_path), str(folder), "--size", "128", "128"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            (folder / "half.png").write_bytes(whole)
            shutil.copy(images[0], folder / "late.png")
            lines += [process.stdout.readline() for _ in range(2)]
        finally:
            process.kill()
    assert sorted(line.split()[0] for line in lines) == ["early0.png", "early1.png", "half.png", "late.png"]
    said = {line.split()[0]: line.split()[1:] for line in lines}
    assert said["early0.png"] == said["early1.png"] == said["late.png"]
    assert all(label in {"good", "defective"} and 0 <= float(score) <= 1 for label, score in said.values())


@pytest.fixture(scope="module")
def inspect_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, compiled against the headers that come with OpenVINO's wheel."""
    if shutil.which("cmake") is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs CMake and a C++ compiler")
    if not get_cmake_path():
        pytest.skip("this OpenVINO has no headers")
    build = tmp_path_factory.mktemp("build")
    for arguments in (
        ["-S", ROOT / "examples" / "cpp", "-B", build, f"-DOpenVINO_DIR={get_cmake_path()}"],
        ["--build", build],
    ):
        result = subprocess.run(["cmake", *arguments], capture_output=True, text=True, check=False)
        assert not result.returncode, result.stdout + result.stderr
    return build / "inspect"


@pytest.mark.slow
def test_inspect_from_cpp(
    tmp_path: Path,
    inspect_program: Path,
    exported: Callable[[tuple[int, int] | None], Path],
    mvtec_root: Path,
) -> None:
    """The same verdicts and scores as in Python, of images of two sizes."""
    model = exported(None)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    files, expected = [], []
    for index, path in enumerate(sorted((mvtec_root / "gravel" / "test").rglob("*.png"))):
        image = Image.open(path).convert("RGB").crop((0, 0, 128 - 20 * (index % 2), 128))
        files.append(tmp_path / f"{index}.ppm")
        image.save(files[-1])
        outputs = compiled(np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255)
        expected.append((outputs["pred_label"].item(), outputs["pred_score"].item()))
    assert len({score for _, score in expected}) == len(files)
    result = subprocess.run([inspect_program, model, *files], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, _, _ in lines] == list(map(str, files))
    for (_, verdict, score), (label, expected_score) in zip(lines, expected, strict=True):
        assert verdict == ("defective" if label else "good")
        assert float(score) == pytest.approx(expected_score, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P3 1 1 255 0 0 0", "image.ppm is not a binary PPM"),
        (b"P6 1 1 65535\n" + bytes(6), "image.ppm is not a binary PPM"),
        (b"P6 2 2 255\n" + bytes(11), "image.ppm is not complete"),
    ],
)
def test_cpp_names_what_is_wrong(
    content: bytes,
    message: str,
    tmp_path: Path,
    inspect_program: Path,
    exported: Callable[[tuple[int, int] | None], Path],
) -> None:
    path = tmp_path / "image.ppm"
    path.write_bytes(content)
    result = subprocess.run([inspect_program, exported(None), path], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stderr
