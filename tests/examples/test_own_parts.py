# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The notebook: without outputs in the repository, and with every cell run in an empty folder without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_parts.ipynb"


def test_outputs_are_cleared() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    """With two steps; the kernel starts in the folder of the notebook, so a copy is run."""
    pytest.importorskip("nbmake", reason="needs nbmake and ipykernel")
    shutil.copy(NOTEBOOK, tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-kernel=python3", "--rootdir=.", NOTEBOOK.name]
    settings = {"STEPS": "2", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "own_parts_run" / "weights" / "openvino" / "model.xml").exists()
