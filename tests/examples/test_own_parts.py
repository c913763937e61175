# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The notebook: without outputs in the repository, and with every cell run in an empty folder without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_parts.ipynb"


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_outputs_are_cleared() -> None:
    code = [cell for cell in read_cells(NOTEBOOK) if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    """With two steps; the kernel starts in the folder of the notebook, so a copy is run.

    nbmake ends at an error, but calls the test passed: anomalib's command line lets rich show errors, and nbmake looks
    for those that Jupyter shows. So this test looks at what the cells have shown.
    """
    pytest.importorskip("nbmake", reason="needs nbmake and ipykernel")
    notebook = tmp_path / NOTEBOOK.name
    shutil.copy(NOTEBOOK, notebook)
    options = ["--nbmake", "--overwrite", "--nbmake-timeout=900", "--rootdir=.", "-p", "no:cacheprovider"]
    settings = {"STEPS": "2", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, notebook.name],
        cwd=tmp_path,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    cells = [cell for cell in read_cells(notebook) if cell["cell_type"] == "code"]
    shown = json.dumps([cell["outputs"] for cell in cells])
    assert "Traceback" not in shown, shown
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [any("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in cells]
    assert pictures == ["plt.show()" in "".join(cell["source"]) for cell in cells]
