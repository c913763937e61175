# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Trainings whose input size follows from the smallest defect."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.deploy import ExportType, OpenVINOInferencer
from PIL import Image

from anomalib_ddpm_st import DdpmSt, DefectSizePreProcessor
from anomalib_ddpm_st.cli import DdpmStCLI

from .conftest import Command, make_engine

NATIVE = (160, 240)
DEFECT = 20
SIZE = (128, 192)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four normal and two defective images that are not square."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    for part, count in (("good", 4), ("bad", 2)):
        (folder / part).mkdir()
        for index in range(count):
            pixels = rng.integers(90, 160, (*NATIVE, 3), dtype=np.uint8)
            if part == "bad":
                pixels[40:60, 100:120] = 255
            Image.fromarray(pixels).save(folder / part / f"{index}.png")
    return folder


def test_training_checkpoint_and_export(root: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    """All stages, a checkpoint and an exported model have the chosen size, which is not square."""
    datamodule = Folder("wide", root=root, normal_dir="good", abnormal_dir="bad", train_batch_size=2, num_workers=0)
    model = DdpmSt(**tiny, pose="off", pre_processor=DefectSizePreProcessor(DEFECT), visualizer=False)
    engine = make_engine(tmp_path)
    seen = []
    model.model.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    engine.fit(model, datamodule=datamodule)
    # Copies of the model, with this hook, are timed at 256 x 256 pixels.
    assert set(seen) - {(256, 256)} == {SIZE}
    assert model.generator is None
    loaded = DdpmSt.load_from_checkpoint(engine.best_model_path).eval()
    image = np.asarray(Image.open(root / "bad" / "0.png"))
    with torch.no_grad():
        expected = loaded(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255)
    assert expected.anomaly_map.shape[-2:] == SIZE
    exported = engine.export(loaded, ExportType.OPENVINO, export_root=tmp_path)
    inferencer = OpenVINOInferencer(exported, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(
        inferencer.predict(image).anomaly_map.squeeze(), expected.anomaly_map.squeeze(), atol=1e-4
    )


def test_command_line(
    root: Path,
    tiny: dict[str, Any],
    command: Command,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A short name and an option are enough; the saved config tests the checkpoint at the same size."""
    options = [f"--model.{name}={value}" for name, value in tiny.items() if name != "cache_dir"]
    with caplog.at_level("INFO", logger="anomalib_ddpm_st"):
        command(
            "fit",
            "--model=DdpmSt",
            *options,
            f"--model.cache_dir={tiny['cache_dir']}",
            "--model.pose=off",
            "--model.visualizer=false",
            "--model.pre_processor=DefectSizePreProcessor",
            f"--model.pre_processor.smallest_defect={DEFECT}",
            "--data=Folder",
            "--data.name=wide",
            f"--data.root={root}",
            "--data.normal_dir=good",
            "--data.abnormal_dir=bad",
            "--data.train_batch_size=2",
            "--data.num_workers=0",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            cli=DdpmStCLI,
        )
    lines = [record.getMessage() for record in caplog.records if "Input size" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("Input size 128 x 192 pixels: a defect of 20 pixels covers 16 pixels of the input.")
    (checkpoint,) = (tmp_path / "results").rglob("*.ckpt")
    assert DdpmSt.load_from_checkpoint(checkpoint).pre_processor.transform.transforms[0].size == list(SIZE)
