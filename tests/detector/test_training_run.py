# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of how a training runs in Lightning's loop, with a tiny model in the place of the detector."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from anomalib.data import Folder
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler

from anomalib_ddpm_st.core.interruption import StopOnSignal
from anomalib_ddpm_st.core.training_loader import TrainingLoader
from anomalib_ddpm_st.detector import training_run
from anomalib_ddpm_st.detector.normal_reference import SCALE_IMAGES
from anomalib_ddpm_st.detector.training_run import (
    RECORD_FILE,
    VALIDATION_SHARE,
    TrainingRun,
    interrupted_checkpoint,
    newest,
)

from .conftest import make_datamodule

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STEPS = 8
STEPS_PER_EPOCH = 3


class Detector(LightningModule):
    """Learns the mean colour of images with noise; validation draws random numbers, too."""

    def __init__(self, training_steps: int = STEPS, fingerprint: str | None = None) -> None:
        super().__init__()
        self.training_steps = training_steps
        self.fingerprint = fingerprint
        self.reference = MagicMock()
        self.layer = nn.Linear(3, 1)
        self.losses: list[float] = []
        self.validations: list[int] = []
        self.torn_down = 0

    def configure_callbacks(self) -> list[Callback]:
        """The callback under test."""
        run = TrainingRun()
        run.attach(self.trainer)
        return [run]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ANN401
        """Keep the loss."""
        del batch_idx
        means = batch.image.mean(dim=(2, 3))
        loss = self.layer(means + torch.rand_like(means)).square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, *args: object) -> None:
        """Note the step."""
        del args
        torch.rand(5)
        if self.global_step not in self.validations:
            self.validations.append(self.global_step)

    def on_train_batch_end(self, *args: object) -> None:
        """End training when the schedule is complete, with a validation, as the detector does."""
        del args
        if self.global_step >= self.training_steps:
            self.trainer.should_stop = True
            self.trainer.check_val_every_n_epoch = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any optimiser."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def teardown(self, stage: str) -> None:
        """Count."""
        assert stage == "fit"
        self.torn_down += 1


class AtStep(Callback):
    """Calls a function after some step, or in the first validation."""

    def __init__(self, action: Callable[[], Any], step: int | None = None) -> None:
        self.action = action
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        """After the step."""
        del args
        if trainer.global_step == self.step:
            self.action()

    def on_validation_start(self, *args: object) -> None:
        """In a validation."""
        del args
        if self.step is None:
            self.action()


@pytest.fixture
def datamodule(tmp_path: Path) -> Folder:
    """Five normal images in batches of two, validated by four images."""
    return make_datamodule(tmp_path / "data", (4, 4))


Fit = Callable[..., Trainer]


@pytest.fixture
def fit(tmp_path: Path, datamodule: Folder) -> Fit:
    """Train a model with a fixed seed in a folder of its own, and expect an exception, if there is one."""

    def call(
        model: Detector | None = None,
        expected: type[BaseException] | None = None,
        trainer: Trainer | None = None,
        data: dict[str, Any] | None = None,
        ckpt_path: Path | None = None,
        **arguments: Any,  # noqa: ANN401
    ) -> Trainer:
        torch.manual_seed(1)
        if model is None:
            model = Detector()
        if trainer is None:
            folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
            folder.mkdir()
            settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, **arguments}
            trainer = Trainer(accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, **settings)
        data = {"datamodule": datamodule} if data is None else data
        if expected is None:
            trainer.fit(model, **data, ckpt_path=ckpt_path)
        else:
            with pytest.raises(expected):
                trainer.fit(model, **data, ckpt_path=ckpt_path)
        return trainer

    return call


def last_checkpoint(trainer: Trainer) -> Path:
    """File that was written last."""
    path = newest(Path(trainer.default_root_dir).rglob("*.ckpt"))
    assert path is not None
    return path


def saved_step(trainer: Trainer) -> int:
    """Step of the last checkpoint."""
    return torch.load(last_checkpoint(trainer), weights_only=True)["global_step"]


def send(number: int) -> Callable[[], None]:
    """Send a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def error() -> None:
    """Fail."""
    msg = "broken"
    raise RuntimeError(msg)


# ---------------------------------------------------------------------------------------------------------------------
# Start


def test_trainer_of_another_training_is_refused(fit: Fit) -> None:
    """Its steps would count as steps of this one; testing does not mind."""
    trainer = fit()
    assert trainer.global_step == STEPS
    with pytest.raises(RuntimeError, match=r"has trained for 8 steps.*make a new Engine for each training"):
        fit(trainer=trainer)
    trainer.state.fn = TrainerFn.TESTING
    before = trainer.val_check_interval, trainer.check_val_every_n_epoch
    TrainingRun().attach(trainer)
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == before


@pytest.mark.parametrize(
    ("arguments", "validations"),
    [
        ({"check_val_every_n_epoch": 2}, [6, 8]),
        ({"val_check_interval": 2}, [2, 5, 8]),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8]),
        ({}, [5, 8]),
    ],
)
def test_interval_of_the_user_is_kept(
    arguments: dict[str, Any], validations: list[int], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's default, each epoch, is replaced: with few images an epoch is a step or two."""
    monkeypatch.setattr(training_run, "VALIDATION_SHARE", (SCALE_IMAGES + 4) / (4.9 * 5 / 3))
    model = Detector()
    trainer = fit(model, **arguments)
    assert len(model.losses) == STEPS
    assert model.validations == validations
    given = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, **arguments}
    assert {name: getattr(trainer, name) for name in given} == given


def test_interval_in_minutes_is_kept(fit: Fit) -> None:
    """Lightning keeps it apart from those in steps."""
    model = Detector()
    fit(model, val_check_interval="00:00:30:00")
    assert len(model.losses) == STEPS


class Stream(IterableDataset):
    """Items without an end."""

    def __iter__(self) -> Any:  # noqa: ANN401
        """Nothing is read."""
        pytest.fail("the stream was read")


def stand_in(train: DataLoader, val: Any, batches: list[float]) -> Any:  # noqa: ANN401
    """What an interval is found from."""
    return SimpleNamespace(train_dataloader=train, val_dataloaders=val, num_val_batches=batches)


@pytest.mark.parametrize(
    ("train", "val", "batches", "images", "per_step"),
    [
        (DataLoader(range(60), 20), DataLoader(range(50), 10), [5], 50, 20),
        (DataLoader(range(50), 20), DataLoader(range(50), 10), [5], 50, 50 / 3),
        (DataLoader(range(60), 20), DataLoader(range(50), 10), [2], 20, 20),
        (DataLoader(range(60), 20), [DataLoader(range(50), 10), DataLoader(range(9), 3)], [5, 3], 59, 20),
        (DataLoader(range(60), 20), (DataLoader(range(50), 10),), [5], 50, 20),
        (DataLoader(range(60), 20), {"a": DataLoader(range(50), batch_sampler=[[0], [1]])}, [2], 2, 20),
        (DataLoader(range(60), 20), None, [], 0, 20),
        (DataLoader(Stream(), 20), DataLoader(Stream(), 10), [math.inf], 0, 20),
    ],
)
def test_interval(train: DataLoader, val: Any, batches: list[float], images: int, per_step: float) -> None:  # noqa: ANN401
    """Images of a validation and of the calibration, over the share of the images of a step that they may be."""
    found = TrainingRun._find_interval(stand_in(train, val, batches))
    assert found == math.ceil((images + SCALE_IMAGES) / (VALIDATION_SHARE * per_step))
    assert VALIDATION_SHARE <= 0.1


def test_interval_of_few_batches(fit: Fit) -> None:
    """A limit of the batches of an epoch does not change how many images a step has."""
    model, intervals = Detector(), []
    fit(model, limit_train_batches=1, callbacks=[AtStep(lambda: intervals.append(model.trainer.val_check_batch), 1)])
    assert intervals == [math.ceil((4 + SCALE_IMAGES) / (VALIDATION_SHARE * 5 / 3))]


@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize(("limits", "reached"), [({}, None), ({"max_epochs": 1}, 3), ({"max_steps": 4}, 4)])
def test_bounds(
    steps: int, limits: dict[str, int], reached: int | None, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's default number of epochs, here 2, does not end a schedule; those of the user do."""
    monkeypatch.setattr("anomalib_ddpm_st.core.optimization.LIGHTNING_EPOCHS", 2)
    model = Detector(steps)
    fit(model, **(limits or {"max_epochs": 2}))
    assert len(model.losses) == min(steps, reached or steps)


# ---------------------------------------------------------------------------------------------------------------------
# Everything is as it was afterwards


class Snapshot(Callback):
    """Keeps what a training changes."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    @staticmethod
    def take(trainer: Trainer, datamodule: Folder) -> dict[str, Any]:
        """Limits of the Trainer, handlers of signals, and what the datamodule has of its own."""
        names = ("val_check_interval", "check_val_every_n_epoch", "max_epochs", "max_steps", "limit_val_batches")
        return {
            **{name: getattr(trainer, name) for name in names},
            "signals": [signal.getsignal(number) for number in SIGNALS],
            "train_dataloader": vars(datamodule).get("train_dataloader"),
        }

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        """In training."""
        del args
        self.state = self.take(trainer, trainer.datamodule)


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (None, None),
        (AtStep(error, 2), RuntimeError),
        (AtStep(error), RuntimeError),
        (AtStep(send(signal.SIGINT), 2), SystemExit),
        (AtStep(lambda: [send(signal.SIGTERM)(), send(signal.SIGTERM)()], 2), SystemExit),
    ],
    ids=["end", "error", "error in validation", "signal", "two signals"],
)
@pytest.mark.parametrize("own", [False, True])
def test_everything_is_restored(
    callback: Callback | None,
    expected: type[BaseException] | None,
    own: bool,
    fit: Fit,
    tmp_path: Path,
) -> None:
    """Trainer, datamodule and signals, however training ends; the user may have replaced the data loader, too."""
    datamodule = make_datamodule(tmp_path / "data", (4, 4), val_split_mode="same_as_test" if callback else "none")
    if own:
        datamodule.train_dataloader = datamodule.train_dataloader
    snapshot, model = Snapshot(), Detector()
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        max_epochs=1000,
        num_sanity_val_steps=0,
        callbacks=[snapshot, *([callback] if callback else [])],
    )
    before = Snapshot.take(trainer, datamodule)
    fit(model, expected, trainer, {"datamodule": datamodule})
    changed = {name for name, value in snapshot.state.items() if value != before[name]}
    limits = {"val_check_interval", "check_val_every_n_epoch", "max_epochs", "max_steps"}
    assert limits | {"signals", "train_dataloader"} | (set() if callback else {"limit_val_batches"}) == changed
    assert Snapshot.take(trainer, datamodule) == before
    assert model.torn_down >= 1


def test_signals_are_given_back_after_an_error() -> None:
    """Without relying on Lightning, which puts back what it found when it started."""
    before = [signal.getsignal(number) for number in SIGNALS]
    run = TrainingRun()
    StopOnSignal.on_train_start(run, MagicMock(world_size=1), MagicMock())
    assert [signal.getsignal(number) for number in SIGNALS] != before
    run.on_exception(SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING)), MagicMock(), RuntimeError())
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_problem_before_training_restores_the_interval(fit: Fit) -> None:
    """Such as one that the check finds."""

    class Refused(Detector):
        def prepare_data(self) -> None:
            assert self.trainer.val_check_interval > 1
            error()

    trainer = fit(Refused(), RuntimeError)
    assert trainer.val_check_interval == pytest.approx(1.0)
    assert trainer.check_val_every_n_epoch == 1


# ---------------------------------------------------------------------------------------------------------------------
# Data


class Own(DataLoader):
    """Data loader of a user."""


class OwnSampler(Sampler):
    """Order of a user."""

    def __iter__(self) -> Any:  # noqa: ANN401
        """Two items."""
        return iter((0, 1))


class OwnRandomSampler(RandomSampler):
    """Random order of a user."""


@pytest.mark.parametrize(
    ("loader", "replaced"),
    [
        (DataLoader(range(5), 2, shuffle=True), True),
        (DataLoader(range(5), 2, sampler=RandomSampler(range(5))), True),
        (DataLoader(range(5), 2, shuffle=True, drop_last=True), False),
        (DataLoader(range(5), 2), False),
        (DataLoader(range(5), 2, sampler=OwnSampler()), False),
        (DataLoader(range(5), 2, sampler=OwnRandomSampler(range(5))), False),
        (DataLoader(range(5), 2, sampler=RandomSampler(range(5), replacement=True)), False),
        (DataLoader(range(5), 2, sampler=RandomSampler(range(5), num_samples=3)), False),
        (DataLoader(range(5), batch_sampler=[[0, 1]]), False),
        (DataLoader(range(5), None, shuffle=True), False),
        (Own(range(5), 2, shuffle=True), False),
        ([0, 1], False),
    ],
)
def test_loaders_of_the_user_stay(loader: Any, replaced: bool) -> None:  # noqa: ANN401
    """Only a plain random order is replaced by one that can resume."""
    result = TrainingRun()._resumable(lambda: loader)
    assert isinstance(result, TrainingLoader) == replaced
    assert replaced or result is loader


def test_reloaded_data_does_not_start_again_where_training_resumed() -> None:
    """Lightning asks for a loader every few epochs, if it is told to."""
    run = TrainingRun()
    run.load_state_dict({"random_state": {}, "loader": {"seed": 5, "drawn": 7}})
    loaders = [run._resumable(lambda: DataLoader(range(5), 2, shuffle=True)) for _ in range(2)]
    assert loaders[0].state_dict() == {"seed": 5, "drawn": 7}
    assert loaders[1].state_dict()["drawn"] == 0


def test_position_in_the_data_is_part_of_the_state() -> None:
    """Together with the random state of the last step."""
    run = TrainingRun()
    assert set(run.state_dict()) == {"random_state"}
    loader = run._resumable(lambda: DataLoader(range(5), 2, shuffle=True))
    next(iter(loader))
    run.on_train_batch_end(MagicMock(should_stop=True), MagicMock())
    before = torch.get_rng_state()
    torch.rand(3)
    state = run.state_dict()
    assert state["loader"] == loader.state_dict()
    assert state["loader"]["drawn"] == 1
    assert torch.equal(state["random_state"]["cpu"], before)


@pytest.mark.parametrize("kind", ["overfitting", "data loaders"])
def test_other_data_is_left_alone(kind: str, fit: Fit, datamodule: Folder) -> None:
    """Without a datamodule, or if Lightning replaces the loader itself."""
    datamodule.setup()
    model, seen = Detector(), []
    loaders = {"train_dataloaders": datamodule.train_dataloader(), "val_dataloaders": datamodule.val_dataloader()}
    fit(
        model,
        data=loaders if kind == "data loaders" else None,
        callbacks=[AtStep(lambda: seen.append(type(model.trainer.train_dataloader)), 1)],
        **({"overfit_batches": 1} if kind == "overfitting" else {}),
    )
    assert seen == [DataLoader]
    assert len(model.losses) == STEPS


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [1, 3, None])
def test_signal_ends_training_after_the_step(
    step: int | None, number: int, fit: Fit, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or after a validation, with a calibrated checkpoint and the status of a process that a signal ended."""
    monkeypatch.setattr(training_run, "VALIDATION_SHARE", (SCALE_IMAGES + 4) / (3.9 * 5 / 3))
    model = Detector(fingerprint="mine")
    trainer = fit(model, SystemExit, callbacks=[AtStep(send(number), step)])
    assert len(model.losses) == saved_step(trainer) == (step or 4)
    model.reference.calibrate_scores.assert_called_with(step or 4)
    assert interrupted_checkpoint(Path(trainer.default_root_dir), "mine") == last_checkpoint(trainer)
    assert model.torn_down >= 1
    captured = capfd.readouterr()
    assert "Stopping after this step, with a checkpoint. Once more stops at once" in captured.err
    assert f"Training ended at step {step or 4} of {STEPS}. Checkpoint with calibrated scores: " in captured.out
    assert captured.out.endswith(
        f"{last_checkpoint(trainer)}\nTo go on, run it again with this path as ckpt_path (on "
        "the command line --ckpt_path).\n"
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_exit_status_after_a_signal(number: int, fit: Fit) -> None:
    """It is 128 plus the number of the signal."""
    with pytest.raises(SystemExit) as stop:
        fit(callbacks=[AtStep(send(number), 2)])
    assert stop.value.code == 128 + number


def test_second_signal_ends_training_at_once(fit: Fit) -> None:
    """Without a checkpoint, as an interruption that Lightning knows."""
    model = Detector(fingerprint="mine")

    def twice() -> None:
        send(signal.SIGINT)()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)()
        raise KeyboardInterrupt

    trainer = fit(model, SystemExit, callbacks=[AtStep(twice, 2)])
    assert not list(Path(trainer.default_root_dir).rglob("*.ckpt"))
    assert interrupted_checkpoint(Path(trainer.default_root_dir), "mine") is None


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("step", range(1, STEPS))
def test_resumed_training_equals_an_uninterrupted_one(step: int, validates: bool, fit: Fit) -> None:
    """Bit for bit, wherever in an epoch it was interrupted, with validations that draw random numbers or without."""
    limit = {"val_check_interval": 2, "check_val_every_n_epoch": None} if validates else {"limit_val_batches": 0}
    whole, first, second = Detector(), Detector(), Detector()
    second.load_state_dict(whole.state_dict())
    first.load_state_dict(whole.state_dict())
    fit(whole, **limit)
    trainer = fit(first, SystemExit, callbacks=[AtStep(send(signal.SIGTERM), step)], **limit)
    fit(second, ckpt_path=last_checkpoint(trainer), **limit)
    assert first.losses + second.losses == whole.losses
    assert torch.equal(second.layer.weight, whole.layer.weight)


def test_validation_leaves_no_trace_in_training(fit: Fit) -> None:
    """Whatever random numbers it draws."""
    models = [Detector(), Detector()]
    models[1].load_state_dict(models[0].state_dict())
    fit(models[0], val_check_interval=2, check_val_every_n_epoch=None)
    fit(models[1], limit_val_batches=0)
    assert models[0].losses == models[1].losses
    assert len(models[0].validations) > 2


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_complete_checkpoint_is_refused(fit: Fit) -> None:
    """There is nothing left to train; testing needs no more."""
    path = last_checkpoint(fit())
    with pytest.raises(ValueError, match=r"has trained for 8 of 8 steps: raise training_steps to train on"):
        fit(ckpt_path=path)
    longer = Detector(STEPS + 3)
    fit(longer, ckpt_path=path)
    assert len(longer.losses) == 3
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING))
    TrainingRun().on_load_checkpoint(trainer, longer, {"global_step": 99})


@pytest.mark.parametrize(
    ("callbacks", "name"),
    [([], "last"), ([ModelCheckpoint(filename="mine")], "mine"), ([ModelCheckpoint(monitor="loss")], "last")],
    ids=["default", "own", "monitor"],
)
def test_end_is_saved(callbacks: list[Callback], name: str, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the callbacks for checkpoints if they save whatever comes last, with scores calibrated before."""
    monkeypatch.setattr(training_run.TrainingRun, "_find_interval", lambda *_: 1000)
    model = Detector()
    calibrated = []
    model.reference.calibrate_scores = calibrated.append
    trainer = fit(model, limit_val_batches=0, callbacks=callbacks)
    assert saved_step(trainer) == STEPS
    assert calibrated == [STEPS]
    if name != "last" or callbacks:
        assert last_checkpoint(trainer).stem == name


def test_training_without_validation_is_saved_at_the_interval(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it would be validated, once for each step."""
    monkeypatch.setattr(training_run.TrainingRun, "_find_interval", lambda *_: 3)
    saved = []

    class Watch(Callback):
        def on_save_checkpoint(self, trainer: Trainer, *args: object) -> None:
            del args
            saved.append(trainer.global_step)

    fit(limit_val_batches=0, callbacks=[Watch()])
    assert saved == [3, 6, 8]
    saved.clear()
    fit(limit_val_batches=0, callbacks=[Watch()], val_check_interval=1.0, check_val_every_n_epoch=2)
    assert saved == [8]


def test_training_with_validation_is_saved_after_it(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thresholds are part of the checkpoint."""
    monkeypatch.setattr(training_run.TrainingRun, "_find_interval", lambda *_: 3)
    model, saved = Detector(), []

    class Watch(Callback):
        def on_save_checkpoint(self, trainer: Trainer, *args: object) -> None:
            del args
            saved.append((trainer.global_step, model.validations[-1]))

    fit(model, callbacks=[Watch()])
    assert saved == [(3, 3), (6, 6), (8, 8)]


@pytest.mark.parametrize("case", ["no callback", "trial", "no step"])
def test_nothing_is_saved(case: str) -> None:
    """Without callbacks for checkpoints, in a trial run, or before the first step; scores are calibrated anyway."""
    callback = MagicMock(monitor=None)
    trainer = MagicMock(
        checkpoint_callbacks=[] if case == "no callback" else [callback],
        fast_dev_run=case == "trial",
        global_step=0 if case == "no step" else 5,
    )
    model = MagicMock()
    TrainingRun().on_train_end(trainer, model)
    model.reference.calibrate_scores.assert_called_once_with(trainer.global_step)
    trainer.save_checkpoint.assert_not_called()
    callback.on_validation_end.assert_not_called()


def test_monitoring_callbacks_are_left_to_lightning() -> None:
    """What they monitor is of an earlier step."""
    callbacks = [MagicMock(monitor=None), MagicMock(monitor="image_AUROC")]
    trainer = MagicMock(checkpoint_callbacks=callbacks, fast_dev_run=False, global_step=5, default_root_dir=".")
    TrainingRun().on_train_end(trainer, MagicMock())
    callbacks[0].on_validation_end.assert_called_once()
    callbacks[1].on_validation_end.assert_not_called()


@pytest.mark.parametrize(("limits", "text"), [({}, ""), ({"max_steps": 4}, "and a higher bound of steps, epochs or")])
def test_last_line(limits: dict[str, int], text: str, fit: Fit, capsys: pytest.CaptureFixture) -> None:
    """It says where the checkpoint is, and how to go on if a bound ended training."""
    trainer = fit(**limits)
    line = f"Training ended at step {limits.get('max_steps', STEPS)} of {STEPS}. Checkpoint with calibrated scores: "
    output = capsys.readouterr().out
    assert f"{line}{last_checkpoint(trainer)}\n" in output
    assert text in output
    assert ("--ckpt_path" in output) == bool(text)


def test_last_line_without_a_checkpoint(fit: Fit, capsys: pytest.CaptureFixture) -> None:
    """Nothing to go on from."""
    fit(enable_checkpointing=False, max_steps=3)
    output = capsys.readouterr().out
    assert f"Training ended at step 3 of {STEPS}. No checkpoint was saved.\n" in output
    assert "ckpt_path" not in output


# ---------------------------------------------------------------------------------------------------------------------
# Records of runs


def test_newest_file(tmp_path: Path) -> None:
    """By the time of the last change."""
    paths = [tmp_path / name for name in "abc"]
    for path, age in zip(paths, (3, 1, 2), strict=True):
        path.touch()
        os.utime(path, ns=(0, 10**18 - age))
    assert newest(paths) == paths[1]
    assert newest([]) is None


def record(root: Path, name: str, age: int, fingerprint: str = "mine", finished: bool = False, checkpoint: bool = True):
    """Run with a checkpoint, and an older one."""
    folder = root / name
    (folder / "weights").mkdir(parents=True)
    path = folder / RECORD_FILE
    path.write_text(json.dumps({"fingerprint": fingerprint, "finished": finished}), encoding="utf-8")
    os.utime(path, ns=(0, 10**18 - 10 * age))
    for index in range(2 * checkpoint):
        file = folder / "weights" / f"{index}.ckpt"
        file.touch()
        os.utime(file, ns=(0, 10**18 - index))
    return folder / "weights" / "0.ckpt"


def test_newest_run_is_resumed(tmp_path: Path) -> None:
    """With the same settings, from its newest checkpoint."""
    record(tmp_path, "v0", 3)
    expected = record(tmp_path, "parts/v1", 2)
    record(tmp_path, "v2", 1, "other")
    assert interrupted_checkpoint(tmp_path, "mine") == expected


@pytest.mark.parametrize("newer", [{"finished": True}, {"checkpoint": False}])
def test_nothing_is_resumed(newer: dict[str, bool], tmp_path: Path) -> None:
    """If the newest run finished or left no checkpoint, older ones count no more; nor is there any at first."""
    assert interrupted_checkpoint(tmp_path / "nowhere", "mine") is None
    record(tmp_path, "v0", 2)
    assert interrupted_checkpoint(tmp_path, "mine") is not None
    record(tmp_path, "v1", 1, **newer)
    assert interrupted_checkpoint(tmp_path, "mine") is None
    assert interrupted_checkpoint(tmp_path, "another") is None


@pytest.mark.parametrize("content", [b"", b'{"fingerprint": "mi', b"[1, 2]", b"{}", bytes([0xFF, 0xFE, 0x00])])
def test_files_of_other_programs_are_skipped(content: bytes, tmp_path: Path) -> None:
    """Also when they have the name of our record, or a record was only half written."""
    expected = record(tmp_path, "v0", 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RECORD_FILE).write_bytes(content)
    assert interrupted_checkpoint(tmp_path, "mine") == expected


def test_record_of_a_run(fit: Fit) -> None:
    """Unfinished while it runs or after an error, finished at its end; none without a fingerprint."""

    def read(trainer: Trainer) -> dict[str, Any]:
        return json.loads((Path(trainer.default_root_dir) / RECORD_FILE).read_text(encoding="utf-8"))

    model, seen = Detector(fingerprint="mine"), []
    trainer = fit(model, callbacks=[AtStep(lambda: seen.append(read(model.trainer)), 1)])
    assert seen == [{"fingerprint": "mine", "finished": False}]
    assert read(trainer) == {"fingerprint": "mine", "finished": True}
    assert not read(fit(Detector(fingerprint="mine"), RuntimeError, callbacks=[AtStep(error, 2)]))["finished"]
    assert not list(Path(fit().default_root_dir).rglob(RECORD_FILE))
