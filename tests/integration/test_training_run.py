# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""How a training ends and goes on, in anomalib's Engine and on our command line."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.core import optimization
from anomalib_ddpm_st.detector.training_run import newest
from anomalib_ddpm_st.synthesis import preparation

from .conftest import CATEGORY, SMALL_IMAGES, make_engine

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8
STEPS_PER_EPOCH = 3


class Losses(Callback):
    """Keeps the losses and counts validations; sends a signal to its own process after a step."""

    def __init__(self, step: int | None = None, number: int = signal.SIGTERM) -> None:
        self.step = step
        self.number = number
        self.losses: list[float] = []
        self.validations = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Keep the loss."""
        del pl_module, args
        self.losses.append(outputs["loss"].item())
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, *args: object) -> None:
        """Count."""
        del args
        self.validations += 1


@pytest.fixture
def plain(small: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a model without stages 1 and 2."""
    return {**small, "defects": {"source": "self_texture"}, "training_steps": STEPS}


Train = Callable[..., tuple[DdpmSt, Engine]]


@pytest.fixture
def train(tmp_path: Path, mvtec_root: Path, plain: dict[str, Any]) -> Train:
    """Train with a fixed seed; each call has an Engine and a folder of its own."""

    def call(
        losses: Losses | None = None,
        ckpt_path: str | None = None,
        workers: int = 0,
        model: dict[str, Any] | None = None,
        **trainer: Any,  # noqa: ANN401
    ) -> tuple[DdpmSt, Engine]:
        seed_everything(3, verbose=False)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        data = MVTecAD(
            root=mvtec_root,
            category=CATEGORY,
            train_batch_size=2,
            eval_batch_size=2,
            num_workers=workers,
            val_split_mode="same_as_test",
        )
        detector = DdpmSt(**{**plain, **(model or {})})
        engine = make_engine(folder, callbacks=[losses or Losses()], **trainer)
        if losses is None or losses.step is None:
            engine.fit(detector, datamodule=data, ckpt_path=ckpt_path)
        else:
            with pytest.raises(SystemExit) as stop:
                engine.fit(detector, datamodule=data, ckpt_path=ckpt_path)
            assert stop.value.code == 128 + losses.number
        return detector, engine

    return call


def equal(first: DdpmSt, second: DdpmSt) -> bool:
    """Whether all values of two models are equal, to the last bit."""
    states = first.state_dict(), second.state_dict()
    return all(
        torch.equal(states[0][name].nan_to_num(), states[1][name].nan_to_num())
        if states[0][name].is_floating_point()
        else torch.equal(states[0][name], states[1][name])
        for name in states[0]
    )


def saved(engine: Engine) -> dict[str, Any]:
    """Last checkpoint."""
    return torch.load(engine.best_model_path, map_location="cpu", weights_only=True)


def is_calibrated(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint has calibrated scores and thresholds."""
    state = checkpoint["state_dict"]
    thresholds = (state["post_processor._image_threshold"], state["post_processor._pixel_threshold"])
    return bool((state["model.score_spread"] < 1).all()) and not any(math.isnan(value) for value in thresholds)


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_training_equals_an_uninterrupted_one(train: Train, validates: bool, workers: int) -> None:
    """Bit for bit, wherever in an epoch it was interrupted."""
    limit = {} if validates else {"limit_val_batches": 0}
    whole = Losses()
    expected, _ = train(whole, workers=workers, **limit)
    assert len(whole.losses) == STEPS
    for step in range(1, STEPS) if workers == 0 else (2, STEPS_PER_EPOCH):
        first, second = Losses(step, (signal.SIGINT, signal.SIGTERM)[step % 2]), Losses()
        _, engine = train(first, workers=workers, **limit)
        assert saved(engine)["global_step"] == step
        resumed, _ = train(second, engine.best_model_path, workers=workers, **limit)
        assert first.losses + second.losses == whole.losses
        assert equal(resumed, expected)


@pytest.mark.parametrize(
    ("trainer", "step"),
    [
        ({}, STEPS),
        ({"max_steps": 4}, 4),
        ({"max_epochs": 2}, 2 * STEPS_PER_EPOCH),
        ({"max_time": {"seconds": 1}}, None),
        ({"val_check_interval": 500, "check_val_every_n_epoch": None}, STEPS),
        ({"check_val_every_n_epoch": 50}, STEPS),
    ],
)
def test_end_leaves_a_calibrated_checkpoint(
    train: Train,
    trainer: dict[str, Any],
    step: int | None,
    capsys: pytest.CaptureFixture,
) -> None:
    """Whatever ends training; the last line says where the checkpoint is, and how to train on."""
    steps = STEPS if step else 100_000
    _, engine = train(model={"training_steps": steps}, **trainer)
    checkpoint = saved(engine)
    reached = engine.trainer.global_step
    assert reached == step or (step is None and 0 < reached < steps)
    assert checkpoint["global_step"] == reached
    assert is_calibrated(checkpoint)
    lines = capsys.readouterr().out.strip().splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("Training ended")]
    text = "\n".join(lines[ends[-1] :])
    assert f"step {reached} of {steps}" in text
    assert engine.best_model_path in text
    assert ("--ckpt_path" in text) == (reached < steps)


def test_end_without_validation_leaves_a_calibrated_checkpoint(train: Train) -> None:
    """Without a validation set there are no thresholds to find."""
    _, engine = train(limit_val_batches=0)
    checkpoint = saved(engine)
    assert checkpoint["global_step"] == STEPS
    assert (checkpoint["state_dict"]["model.score_spread"] < 1).all()


@pytest.mark.parametrize("bound", [{}, {"max_steps": STEPS}, {"max_epochs": 2}])
def test_training_is_lengthened(train: Train, bound: dict[str, Any]) -> None:
    """The learning rate goes on as in a schedule of the new length."""
    _, engine = train(**bound)
    end = engine.trainer.global_step
    losses = Losses()
    _, longer = train(losses, engine.best_model_path, model={"training_steps": 2 * STEPS})
    assert longer.trainer.global_step == 2 * STEPS
    assert len(losses.losses) == 2 * STEPS - end
    scheduler = saved(engine)["lr_schedulers"][0], saved(longer)["lr_schedulers"][0]
    assert scheduler[0]["_last_lr"][0] < 1e-4
    assert scheduler[1]["total_steps"] == 2 * STEPS + 1
    assert scheduler[1]["_last_lr"][0] < 1e-4


def test_finished_training_is_not_resumed(train: Train) -> None:
    """There is nothing left to do."""
    _, engine = train()
    with pytest.raises(ValueError, match=r"has trained for 8 of 8 steps: raise training_steps"):
        train(ckpt_path=engine.best_model_path)


def test_validation_takes_a_bounded_share(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a step an epoch there is no validation at each of them, and always one at the end."""
    monkeypatch.setattr("anomalib_ddpm_st.detector.training_run.VALIDATION_SHARE", 5.0)
    losses = Losses()
    train(losses)
    # (4 test images + 48 of the calibration) / (5 * 2 images a step) = 5.2 steps.
    assert losses.validations == 2


@pytest.mark.parametrize("steps", [3, 40])
def test_few_images_train_the_whole_schedule(train: Train, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's default number of epochs, here 5, does not end it."""
    monkeypatch.setattr(optimization, "LIGHTNING_EPOCHS", 5)
    losses = Losses()
    _, engine = train(losses, model={"training_steps": steps}, max_epochs=5)
    assert engine.trainer.global_step == len(losses.losses) == steps


def test_engine_of_another_training_is_refused(train: Train, datamodule: MVTecAD, plain: dict[str, Any]) -> None:
    """Its steps would count as steps of this one."""
    _, engine = train()
    with pytest.raises(RuntimeError, match="make a new Engine for each training"):
        engine.fit(DdpmSt(**plain), datamodule=datamodule)


def test_problems_are_found_before_stage_one(
    tmp_path: Path,
    datamodule: MVTecAD,
    small: dict[str, Any],
    mvtec_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them at once: a half-written test image, a metric that nobody logs and a precision."""
    root = tmp_path / "data"
    shutil.copytree(mvtec_root, root)
    broken = next((root / CATEGORY / "test" / "defect").glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:2000])
    monkeypatch.setattr(preparation, "train_diffusion", lambda *_, **__: pytest.fail("stage 1 was started"))
    datamodule.root = root
    model = DdpmSt(**{**small, "cache_dir": str(tmp_path / "cache")})
    engine = make_engine(tmp_path, callbacks=[EarlyStopping("image_AUC")], precision="bf16-true")
    with pytest.raises(ValueError, match="Training cannot start") as problems:
        engine.fit(model, datamodule=datamodule)
    text = str(problems.value)
    assert broken.name in text
    assert "EarlyStopping monitors 'image_AUC'" in text
    assert "precision 'bf16-true'" in text
    assert len(text.splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_line_resumes(number: int, tmp_path: Path, mvtec_root: Path) -> None:
    """An interrupted ``train``, run again, resumes where it stopped, and after its end starts from the beginning."""
    config = {
        "seed_everything": 5,
        "model": {
            "class_path": "anomalib_ddpm_st.DdpmSt",
            "init_args": {
                "pre_trained": False,
                "training_steps": 60,
                "memory_size": 10,
                "defects": {"source": "self_texture"},
                "pre_processor": SMALL_IMAGES,
                "visualizer": False,
            },
        },
        "data": {
            "class_path": "anomalib.data.MVTecAD",
            "init_args": {
                "root": str(mvtec_root),
                "category": CATEGORY,
                "train_batch_size": 2,
                "eval_batch_size": 2,
                "num_workers": 2,
                "val_split_mode": "same_as_test",
            },
        },
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    arguments = [str(Path(sys.executable).parent / "anomalib-ddpm-st"), "fit", "-c", "config.yaml"]

    def run(interrupt: bool, root: str) -> tuple[int, str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        log = tmp_path / "log.txt"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [*arguments, "--default_root_dir", root],
                cwd=tmp_path,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while interrupt and process.poll() is None and not list((tmp_path / root).rglob("training.json")):
                time.sleep(0.05)
            if interrupt:
                time.sleep(0.5)
                # To the whole group, as a terminal does.
                (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            code = process.wait(timeout=300)
        return code, log.read_text(encoding="utf-8")

    code, text = run(interrupt=True, root="interrupted")
    assert code == 128 + number, text
    assert "Training ended at step" in text
    code, text = run(interrupt=False, root="interrupted")
    assert code == 0, text
    assert "Resuming the interrupted training from" in text
    assert "Training ended at step 60 of 60" in text
    code, text = run(interrupt=False, root="whole")
    assert code == 0, text
    paths = [newest((tmp_path / root).rglob("*.ckpt")) for root in ("interrupted", "whole")]
    resumed, whole = (torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in paths)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert "Resuming" not in run(interrupt=False, root="interrupted")[1]
