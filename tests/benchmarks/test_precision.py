# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the accuracy of exported models."""

import shutil
import sys
from pathlib import Path
from typing import Any

import precision
import pytest
import torch
from common import METRICS, make_mvtec, measure, read_table


@pytest.mark.slow
@pytest.mark.usefixtures("small_images", "traced_once")
def test_rows_of_each_precision(
    data_root: Path,
    short_curve: tuple[list[dict[str, Any]], list[torch.Tensor], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last weights, exported: FP32 measures like the model itself, and FP16 close to it."""
    weights, output = tmp_path / "weights", tmp_path / "precision.csv"
    command = ["precision.py", "--categories=bottle", f"--data-root={data_root}", f"--output={output}"]
    command.append(f"--pictures={tmp_path / 'pictures'}")
    monkeypatch.setattr(sys, "argv", [*command, f"--weights-dir={weights}"])
    with pytest.raises(FileNotFoundError, match=r"curve\.py"):
        precision.main()

    (weights / "bottle-1").mkdir(parents=True)
    shutil.copy(short_curve[-1] / "step2.pt", weights / "bottle-1" / "step10.pt")
    (weights / "bottle-1" / "step9.pt").write_text("not the last")
    precision.main()
    rows = dict(zip(read_table(output)["precision"], read_table(output)[list(METRICS)].to_numpy(), strict=True))
    assert list(rows) == ["FP32", "FP16", "INT8"]
    assert [path.name for path in tmp_path.glob("*.png")] == ["precision_bottle_1_scores.png"]
    assert [path.name for path in tmp_path.glob("pictures/*")] == ["precision_bottle_1_maps.png"]

    datamodule = make_mvtec(data_root, "bottle", eval_batch_size=1, num_workers=0)
    datamodule.setup()
    model = precision.load(weights / "bottle-1" / "step10.pt", datamodule, 1)
    assert (model.model.score_spread < 1).all()
    expected = measure(model, datamodule, verbose=False, accelerator="cpu", default_root_dir=tmp_path)
    assert rows["FP32"] == pytest.approx(list(expected.values()), abs=0.05)
    assert rows["FP16"] == pytest.approx(rows["FP32"], abs=1)

    before = output.read_text(encoding="utf-8")
    monkeypatch.setattr(precision, "load", lambda *_: pytest.fail("measured again"))
    precision.main()
    assert output.read_text(encoding="utf-8") == before
