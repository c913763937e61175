# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The examples for the production line, with an exported model and nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
