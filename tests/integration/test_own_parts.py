# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""A folder of good images and nothing else, by the real command line: plan, labels, export, and what is printed."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from anomalib.data import PredictDataset
from PIL import Image

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.cli import DdpmStCLI
from anomalib_ddpm_st.cli.demo_data import write_data
from anomalib_ddpm_st.detector.calibration_file import CalibrationFile

from .conftest import ROOT, SIZE, Command, Shell, make_engine

pytestmark = pytest.mark.slow

CALLBACK = """
import logging, warnings
from lightning.pytorch import Callback

class Warns(Callback):
    def on_train_start(self, trainer, pl_module):
        warnings.warn("a warning that nobody knows")
        logging.getLogger("anomalib.unknown").info("a line that nobody knows")
"""
NOISE = (
    "FLOPs",
    "litlogger",
    "TPU available",
    "FutureWarning",
    "LeafSpec",
    "module(s) in eval mode",
    "worker processes",
    "accelerate",
    "seed set to",
    "Overriding num_sanity_val_steps",
    "No normal test images found",
)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of twelve good images in ``images/good``, and of new ones in ``new``."""
    write_data(tmp_path / "tiles", "gravel", seed=0)
    train, test = (sorted((tmp_path / "tiles" / part / "good").glob("*.png")) for part in ("train", "test"))
    for folder, paths in (("images/good", train[:12]), ("new", test[:4])):
        (tmp_path / folder).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, tmp_path / folder / path.name)
    pixels = np.asarray(Image.open(train[20]).convert("RGB")).copy()
    pixels[40:80, 40:80] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "new" / "painted.png")
    (tmp_path / "warns.py").write_text(CALLBACK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def train_arguments(*more: str) -> list[str]:
    """Tiny training by the config for own parts."""
    options = {
        "--data.root": "images",
        "--data.train_batch_size": 4,
        "--data.num_workers": 0,
        "--model.pre_trained": "false",
        "--model.diffusion.training_steps": 2,
        "--model.bank.size": 4,
        "--model.bank.num_inference_steps": 2,
        "--model.training_steps": 10,
        "--model.memory_size": 64,
        "--model.cache_dir": "cache",
        "--model.pre_processor": "anomalib.pre_processing.PreProcessor",
        "--model.pre_processor.transform": "torchvision.transforms.v2.Resize",
        "--model.pre_processor.transform.size": list(SIZE),
        # As in the exported model.
        "--model.pre_processor.transform.antialias": "false",
        "--trainer.accelerator": "cpu",
        "--trainer.callbacks": "warns.Warns",
    }
    listed = [str(part) for option in options.items() for part in option]
    return ["anomalib-ddpm-st", "train", "-c", str(ROOT / "configs" / "own_parts.yaml"), *listed, *more]


def both(result: subprocess.CompletedProcess) -> str:
    """All that a command printed."""
    return result.stdout + result.stderr


def test_good_images_alone(parts: Path, shell: Shell, command: Command) -> None:
    result = shell(*train_arguments())
    plan, _, rest = result.stdout.partition("Results")
    assert "9 good for training, 2 good and 0 defective for validation, 1 good and 0 defective for test" in plan
    assert re.search(r"Stage 1 +DDPM of the good images, 2 steps: (less than|about)", plan)
    assert re.search(r"Stage 3 +detector, 10 steps: (less than|about)", plan)
    assert len(plan.splitlines()) <= 8
    assert f"{parts}/results/DdpmSt/parts/v0" in rest.splitlines()[0]
    # The plan comes before the first stage, which must have run: a fresh cache holds nothing.
    assert "Stage 1 of 3" in result.stderr
    assert [noise for noise in NOISE if noise in both(result)] == []
    assert both(result).count("a warning that nobody knows") == 1 + both(result).count("warnings.warn(")
    assert both(result).count("a line that nobody knows") == 1
    assert both(result).count("A false-alarm rate of 1 % needs 99 good images") == 1
    assert "image_FPR" in result.stdout
    assert "AUROC" not in result.stdout

    printed = result.stdout.splitlines()[-1].strip()
    assert printed.startswith("anomalib-ddpm-st export --model DdpmSt --ckpt_path ")
    arguments = shlex.split(printed)
    command(*arguments[1:], "--default_root_dir", "exported", cli=DdpmStCLI)
    (exported,) = (parts / "exported").rglob("*.xml")
    calibration = CalibrationFile.load(exported)
    assert len(calibration.image_scores) == len(calibration.pixel_maxima) == 2, "the good images of the validation set"
    moved = parts / "moved" / "model.xml"
    command("threshold", "--model", str(exported), "--false_alarm_rate", "0.4", "--output", str(moved), cli=DdpmStCLI)
    assert CalibrationFile.load(moved).image_threshold < calibration.image_threshold
    compiled = ov.Core().compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    checkpoint = arguments[arguments.index("--ckpt_path") + 1]
    model = DdpmSt.load_from_checkpoint(checkpoint)
    dataset = PredictDataset(parts / "new")
    for batch in make_engine(parts / "predicted", enable_progress_bar=False).predict(model, dataset=dataset) or []:
        for name, label, score in zip(batch.image_path, batch.pred_label, batch.pred_score, strict=True):
            assert bool(label) == (Path(name).stem == "painted"), name
            pixels = np.asarray(Image.open(name).convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
            outputs = compiled(pixels)
            assert bool(outputs["pred_label"].item()) == bool(label), name
            assert outputs["pred_score"].item() == pytest.approx(score.item(), abs=1e-3), name


def test_verbose_shows_everything(parts: Path, shell: Shell) -> None:
    """A folder without a validation set, and no name."""
    more = ["--data.val_split_mode", "none", "--model.training_steps", "1", "--model.defects.source", "self_texture"]
    command, _, _, _, *options = train_arguments(*more, "--verbose")
    result = shell(command, "fit", "--model", "DdpmSt", "--data", "Folder", "--data.normal_dir", "good", *options)
    text = " ".join(both(result).split())
    assert [
        noise for noise in ("FLOPs", "litlogger", "FutureWarning", "LeafSpec", "eval mode") if noise not in text
    ] == []
    assert (parts / "results" / "DdpmSt" / "images" / "v0").is_dir(), "named like the root folder"
    assert "none for validation" in text
    assert "there are none: the threshold is that of" in text
