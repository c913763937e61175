# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the comparison of Draem with its own defects and with these."""

import sys
from pathlib import Path

import pytest
import recipes
from anomalib.models import Draem
from common import METRICS, read_table
from lightning.pytorch import Trainer

from anomalib_ddpm_st.synthesis.callback import NormalizedGenerator


@pytest.mark.slow
def test_one_row_for_each_source(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both trainings have the same length, each with its defects; a second call only runs the missing one."""
    makers: list[bool] = []
    step = Draem.training_step

    def training_step(model: Draem, *arguments: object, **more: object) -> object:
        makers.append(isinstance(model.augmenter, NormalizedGenerator))
        return step(model, *arguments, **more)

    monkeypatch.setattr(Draem, "training_step", training_step)
    # Checkpoints of a gigabyte, which nothing reads.
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda *_: None)
    output = tmp_path / "results" / "recipes.csv"
    options = {"data-root": data_root, "output": output, "max-steps": 2, "batch-size": 2, "image-size": 32}
    options["pictures"] = tmp_path / "pictures"
    arguments = ["benchmarks/recipes.py", *(f"--{key}={value}" for key, value in options.items()), "--sources", "own"]
    for more in ([], ["self_texture"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        recipes.main()
    assert makers == [False, False, True, True]
    rows = read_table(output)
    assert rows[["source", "category", "steps"]].to_numpy().tolist() == [
        ["own", "bottle", 2],
        ["self_texture", "bottle", 2],
    ]
    assert rows[list(METRICS)].stack().between(0, 100).all()
    for folder, kind in ((output.parent, "scores"), (tmp_path / "pictures", "maps")):
        names = {path.name for path in folder.glob("*.png")}
        assert names == {f"recipes_{source}_bottle_1_{kind}.png" for source in ("own", "self_texture")}
