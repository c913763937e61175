# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the Lightning module without an Engine."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.models import get_model
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Normalize, Resize

from anomalib_ddpm_st import BankConfig, DefectConfig, DiffusionConfig
from anomalib_ddpm_st.core.datasets import ImageFiles
from anomalib_ddpm_st.core.geometry import flip_rotate
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.detector import DdpmSt, lightning_model, preparation
from anomalib_ddpm_st.detector.augmentation import MAX_REFERENCES, SYMMETRIES, jitter_pair
from anomalib_ddpm_st.detector.checks import check_before_training
from anomalib_ddpm_st.detector.training_data import TrainingData
from anomalib_ddpm_st.detector.training_run import TrainingRun
from anomalib_ddpm_st.synthesis import DiffusionAnomalyGenerator, TextureBank
from anomalib_ddpm_st.synthesis.config import Source
from anomalib_ddpm_st.synthesis.preparation import PreparedBank

from .conftest import cut, make_datamodule, write_images

LAYERS = ["layer1", "layer2"]
SELF_TEXTURE = {"source": "self_texture"}


def make_model(**arguments: Any) -> DdpmSt:  # noqa: ANN401
    """Small model without pre-trained weights or DDPM."""
    settings: dict[str, Any] = {
        "layers": LAYERS,
        "pre_trained": False,
        "defects": SELF_TEXTURE,
        "memory_size": 10,
        "pre_processor": DdpmSt.configure_pre_processor((64, 64)),
        **arguments,
    }
    return DdpmSt(**settings)


@pytest.fixture(scope="module")
def shared_model() -> DdpmSt:
    """Model that most tests share."""
    return make_model(training_steps=50, learning_rate=1e-2)


@pytest.fixture
def model(shared_model: DdpmSt) -> Iterator[DdpmSt]:
    """The shared model without a Trainer, restored after the test."""
    state = {name: value.clone() for name, value in shared_model.state_dict().items()}
    shared_model._trainer = None
    shared_model.generator = None
    shared_model.reference = None
    shared_model.bank_dir = None
    yield shared_model
    shared_model.load_state_dict(state)


@pytest.fixture(autouse=True)
def checks(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Stands for the check before training, which has tests of its own and finds nothing here."""
    check = MagicMock(return_value=None)
    monkeypatch.setattr(preparation, "check_before_training", check)
    return check


def attach(model: DdpmSt, **trainer: Any) -> SimpleNamespace:  # noqa: ANN401
    """Give the model a stand-in for a Trainer on the CPU."""
    defaults = {
        "ckpt_path": None,
        "datamodule": None,
        "enable_validation": False,
        "val_dataloaders": None,
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
        "precision": "32-true",
    }
    model._trainer = SimpleNamespace(**{**defaults, **trainer})
    return model._trainer


def loader(dataset: Any) -> SimpleNamespace:  # noqa: ANN401
    """Stand-in for the data loader of a training set."""
    return SimpleNamespace(dataset=dataset, batch_size=2)


def with_symmetries(model: DdpmSt, *rows: tuple[int, int, int]) -> torch.Tensor:
    """Let the model train with flips and quarter turns."""
    symmetries = torch.tensor(rows, dtype=torch.bool)
    model.reference = SimpleNamespace(symmetries=symmetries)
    return symmetries


def write_parts(folder: Path, count: int) -> ImageFiles:
    """Dataset of noisy images of one part."""
    return ImageFiles(write_images(folder, count))


BANK = PreparedBank(Path("bank"), Path("ddpm"))
OTHER_DATASET = torch.utils.data.TensorDataset(torch.rand(2, 3, 8, 8))

# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_learning_type_and_trainer_arguments(model: DdpmSt) -> None:
    """One class; nothing that would override the user."""
    assert model.learning_type == LearningType.ONE_CLASS
    assert not {"max_epochs", "max_steps", "accelerator", "devices"} & set(model.trainer_arguments)


def test_number_of_arguments() -> None:
    """A constructor that fits on a page; no name contains "grid", which anomalib's benchmark would expand."""
    names = list(signature(DdpmSt.__init__).parameters)[1:]
    assert len(names) <= 19
    assert not any("grid" in name for name in names)


NESTED = {
    "diffusion": {"training_steps": 7, "block_out_channels": [8, 16]},
    "bank": {
        "size": 5,
        "delta": [0.4, 0.5],
        "start_timestep": [11, 12],
        "num_inference_steps": 3,
        "detail": [0.3, 0.9],
    },
    "defects": {
        "source": "self_texture",
        "probability": 0.25,
        "opacity": [0.2, 0.3],
        "p_soft": 0.1,
        "foreground": "off",
    },
}
CONFIGS = {
    "diffusion": DiffusionConfig(training_steps=7, block_out_channels=(8, 16)),
    "bank": BankConfig(size=5, delta=(0.4, 0.5), start_timestep=(11, 12), num_inference_steps=3, detail=(0.3, 0.9)),
    "defects": DefectConfig("self_texture", probability=0.25, opacity=(0.2, 0.3), p_soft=0.1, foreground="off"),
}


@pytest.mark.parametrize("surface", ["objects", "dictionaries", "get_model", "class_path"])
def test_nested_settings(surface: str) -> None:
    """The same dataclasses, whichever way they are given."""
    plain = {"layers": LAYERS, "pre_trained": False, "memory_size": 10}
    if surface in {"objects", "dictionaries"}:
        model = DdpmSt(**plain, **(CONFIGS if surface == "objects" else NESTED))
    elif surface == "get_model":
        model = get_model("ddpm_st", **plain, **NESTED)
    else:
        model = get_model({"class_path": "DdpmSt", "init_args": {**plain, **NESTED}})
    for name, config in CONFIGS.items():
        assert getattr(model, name) == config
        assert model.hparams[name] == asdict(config)


def test_default_settings(model: DdpmSt) -> None:
    """Nothing given takes the defaults of each dataclass."""
    assert model.diffusion == DiffusionConfig()
    assert model.bank == BankConfig()
    assert DdpmSt(pre_trained=False, layers=LAYERS, memory_size=10).defects == DefectConfig()


def test_hyper_parameters_are_plain_data() -> None:
    """A checkpoint with them loads with ``weights_only``."""

    def check(value: Any) -> None:  # noqa: ANN401
        if isinstance(value, dict):
            for item in value.values():
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert isinstance(value, str | int | float | bool | None)

    model = make_model(**CONFIGS, diffusion_path="somewhere")
    components = {"pre_processor", "post_processor", "evaluator", "visualizer"}
    check({name: value for name, value in model.hparams.items() if name not in components})
    assert model.hparams["defects"]["opacity"] == (0.2, 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"defects": {"source": "magic"}}, r"defects\.source must be one of diffusion, mixture, self_texture"),
        ({"defects": {"contrast": [0.5, 0.1]}}, r"defects\.contrast must be two finite numbers in ascending order"),
        ({"defects": {"p_local": 1.5}}, r"defects\.p_local must be a finite number between 0 and 1, got 1\.5"),
        ({"defects": {"p_filled": -0.1}}, r"defects\.p_filled"),
        ({"defects": {"p_soft": 1.1}}, r"defects\.p_soft"),
        ({"defects": {"probability": 1.5}}, r"defects\.probability"),
        ({"defects": {"opacity": [0.9, 0.1]}}, r"defects\.opacity"),
        ({"defects": {"foreground": "on"}}, r"defects\.foreground must be one of auto, off"),
        ({"defects": {"opacty": 1.0}}, "DefectConfig has no setting 'opacty'"),
        ({"bank": {"delta": [-0.1, 0.1]}}, r"bank\.delta"),
        ({"bank": {"detail": [0.5]}}, r"bank\.detail"),
        ({"bank": {"start_timestep": [0, 600]}}, r"bank\.start_timestep"),
        ({"bank": {"size": 0}}, r"bank\.size must be a whole number of at least 1, got 0"),
        ({"bank": {"num_inference_steps": 0}}, r"bank\.num_inference_steps"),
        ({"diffusion": {"training_steps": -1}}, r"diffusion\.training_steps"),
        ({"augmentation": "spin"}, "augmentation must be one of auto, flips_and_turns, flips, none, got 'spin'"),
        ({"training_steps": 0}, "training_steps must be a whole number"),
        ({"training_steps": "10"}, "training_steps must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0"),
        ({"memory_size": 0}, "memory_size must be a whole number"),
        ({"top_k": 0}, "top_k must be a whole number"),
    ],
)
def test_bad_settings_are_named_at_once(arguments: dict[str, Any], message: str) -> None:
    """When the model is made, not after an hour of stage 1, whether a stage is needed or not."""
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


def test_settings_reach_the_model() -> None:
    """Arguments arrive where they are used."""
    model = make_model(cache_dir="cache", augmentation="flips", top_k=9, memory_size=12, learning_rate=0.5)
    assert model.cache_dir == "cache"
    assert model.augmentation == "flips"
    assert model.model.top_k == 9
    assert model.model.memory_bank.size == 12
    assert model.learning_rate == pytest.approx(0.5)


def test_bad_weights_are_named_at_once(tmp_path: Path) -> None:
    """A wrong path or backbone fails when the model is made, not after an hour of stage 1."""
    with pytest.raises(FileNotFoundError, match="teacher_weights"):
        make_model(teacher_weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match="resnet81"):
        make_model(backbone="resnet81")


def test_default_components(model: DdpmSt) -> None:
    """Anomalib's post-processor, and evaluator and pre-processor of components.py."""
    assert isinstance(model.post_processor, PostProcessor)
    assert model.evaluator.val_metrics
    assert model.evaluator.test_metrics
    assert [type(step) for step in model.pre_processor.transform.transforms] == [Resize]


def test_pre_processors() -> None:
    """One that normalises is refused, others are accepted."""
    with pytest.raises(ValueError, match="Normalize"):
        make_model(pre_processor=PreProcessor(transform=Normalize([0.5] * 3, [0.5] * 3)))
    resize = PreProcessor(transform=Resize((64, 96), antialias=False))
    assert make_model(pre_processor=resize).pre_processor is resize
    assert make_model(pre_processor=False).pre_processor is None


# ---------------------------------------------------------------------------------------------------------------------
# Stages 1 and 2


@pytest.mark.parametrize(("source", "needs_bank"), [("diffusion", True), ("mixture", True), ("self_texture", False)])
def test_sources(source: Source, needs_bank: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sources that need a bank prepare one; the generator makes defects either way."""
    textures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    TextureBank(textures, torch.tensor([0, 0]), torch.zeros(1, 768)).save(tmp_path)
    asked: list[list[str]] = []

    def prepare(images: NormalImages, *_: Any, **__: Any) -> PreparedBank:  # noqa: ANN401
        asked.append(images.paths)
        return PreparedBank(tmp_path, tmp_path / "ddpm", {"diffusion": 1.0, "bank": 2.0})

    monkeypatch.setattr(preparation, "prepare_bank", prepare)
    model = make_model(defects={"source": source}, augmentation="none")
    dataset = write_parts(tmp_path / "images", 2)
    attach(model, train_dataloader=loader(dataset))
    model.on_train_start()
    assert asked == ([dataset.paths] if needs_bank else [])
    assert (model.generator.bank_textures is not None) == needs_bank
    if needs_bank:
        assert torch.equal(model.generator.bank_textures.bank.textures, textures)
        assert model.diffusion_dir == tmp_path / "ddpm"
        assert model.stage_seconds["bank"] == pytest.approx(2.0)
    assert model.generator.defects.probability == pytest.approx(0.75)
    _, masks = model.generator(torch.rand(16, 3, 32, 32))
    assert masks.any()
    model.teardown("fit")
    assert model.generator is None
    assert model.reference is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [("data loaders", "new"), ("another datamodule", "new"), ("another process", "new"), ("datamodule", "old")],
)
def test_bank_of_an_earlier_training(
    data: str,
    expected: str,
    checks: MagicMock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It belongs to other images, unless a datamodule had it prepared before; only then the data was checked, too."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        textures = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        TextureBank(textures, torch.tensor([0]), torch.zeros(1, 768)).save(tmp_path / name)
    monkeypatch.setattr(preparation, "prepare_bank", lambda *_, **__: PreparedBank(tmp_path / "new", tmp_path))
    model = make_model(defects=None, augmentation="none")
    model.bank_dir = tmp_path / "old"
    datamodule = make_datamodule(tmp_path / "data")
    datamodule.setup()
    attach(
        model,
        datamodule={"another datamodule": LightningDataModule(), "data loaders": None}.get(data, datamodule),
        train_dataloader=loader(datamodule.train_data),
    )
    if data == "datamodule":
        model._data = TrainingData.from_datamodule(datamodule, model.pre_processor)
    model.on_train_start()
    assert model.bank_dir == tmp_path / expected
    assert checks.called == (data in {"data loaders", "another datamodule"})


def test_no_diffusion_without_need(model: DdpmSt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any dataset trains with shuffled tiles."""
    monkeypatch.setattr(preparation, "prepare_bank", lambda *_, **__: pytest.fail("stage 1 was started"))
    attach(model, train_dataloader=loader(OTHER_DATASET))
    model.prepare_data()
    model.on_train_start()
    assert isinstance(model.generator, DiffusionAnomalyGenerator)
    assert model.generator.bank_textures is None


@pytest.mark.parametrize("source", ["diffusion", "mixture"])
def test_bank_is_prepared_before_training(
    source: Source, checks: MagicMock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The datamodule is set up for it and checked; training uses the same data, once."""
    model = make_model(defects={"source": source})
    asked: list[Any] = []
    monkeypatch.setattr(preparation, "prepare_bank", lambda images, *_, **__: [asked.append(images), BANK][1])
    generator = MagicMock()
    monkeypatch.setattr(lightning_model, "DiffusionAnomalyGenerator", generator)
    datamodule = make_datamodule(tmp_path)
    trainer = attach(model, datamodule=datamodule)
    model.prepare_data()
    (images,) = asked
    assert images.paths == sorted(str(path) for path in (tmp_path / "normal").iterdir())
    data = checks.call_args.args[1]
    checks.assert_called_once_with(model, data)
    assert data.images is images
    assert data.validation == [datamodule.val_data]
    assert datamodule._is_setup
    model.on_train_start()
    assert asked == [images]
    generator.assert_called_once_with(BANK.bank_dir, model.defects)
    assert model.generator.parts_lie_alike == model.reference.parts_lie_alike
    assert model.item_size == (64, 64)
    assert images.item_sizes == {(64, 64)}
    # Of the next training, whose data is another.
    trainer.datamodule, trainer.train_dataloader = None, loader(write_parts(tmp_path / "other", 2))
    model.on_train_start()
    assert len(asked) == 2


def test_missing_images_are_named(tmp_path: Path, checks: MagicMock) -> None:
    """Together with everything else that is wrong."""
    datamodule = make_datamodule(tmp_path, normal_dir="nowhere")
    model = make_model()
    attach(model, datamodule=datamodule)
    checks.side_effect = RuntimeError("several")
    with pytest.raises(RuntimeError, match="several"):
        model.prepare_data()
    ((_, data, problems),) = [call.args for call in checks.call_args_list]
    assert data is None
    (problem,) = problems
    assert isinstance(problem, FileNotFoundError)
    assert re.match(r"The images are missing .*nowhere.*: check the root and the folders", str(problem))


@pytest.mark.parametrize("kind", ["datamodule", "data loaders"])
def test_problems_are_found_before_stage_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-written test image, with a datamodule as well as with data loaders."""
    monkeypatch.setattr(preparation, "check_before_training", check_before_training)
    monkeypatch.setattr(preparation, "prepare_bank", lambda *_, **__: pytest.fail("stage 1 was started"))
    datamodule = make_datamodule(tmp_path / "data")
    datamodule.setup()
    name = cut(datamodule.val_data.samples.image_path[0])
    model = make_model(defects=None, cache_dir=str(tmp_path / "cache"))
    trainer = {"callbacks": [], "min_steps": None, "limit_val_batches": 1.0, "default_root_dir": tmp_path / "results"}
    if kind == "datamodule":
        attach(model, datamodule=datamodule, **trainer)
        start = model.prepare_data
    else:
        validation = DataLoader(datamodule.val_data)
        attach(model, train_dataloader=loader(datamodule.train_data), val_dataloaders=validation, **trainer)
        start = model.on_train_start
    with pytest.raises(ValueError, match=rf"^The image \S+{name} cannot be read"):
        start()


@pytest.mark.parametrize("kind", ["datamodule", "data loaders"])
def test_interrupted_stage_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It ends the process as an interruption does, and says how to go on; Lightning would say nothing."""
    model = make_model(defects=None)
    monkeypatch.setattr(preparation, "prepare_bank", MagicMock(side_effect=KeyboardInterrupt("run it again")))
    if kind == "datamodule":
        attach(model, datamodule=make_datamodule(tmp_path))
        start = model.prepare_data
    else:
        attach(model, train_dataloader=loader(write_parts(tmp_path, 2)))
        start = model.on_train_start
    with pytest.raises(SystemExit) as stop:
        start()
    assert stop.value.code == 130
    assert capsys.readouterr().out == "Interrupted. run it again\n"


@pytest.mark.parametrize("function", [TrainerFn.TESTING, TrainerFn.VALIDATING, TrainerFn.PREDICTING])
def test_nothing_is_prepared_for_testing(
    function: TrainerFn, checks: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only training makes defects, and needs to be checked."""
    model = make_model(defects=None)
    monkeypatch.setattr(model, "_prepare_bank", lambda *_: pytest.fail("stage 1 was started"))
    attach(model, state=SimpleNamespace(fn=function), datamodule=MagicMock(spec=AnomalibDataModule))
    model.prepare_data()
    checks.assert_not_called()


def test_other_datasets_are_refused() -> None:
    """A dataset without paths is named, with the remedy."""
    model = make_model(defects=None)
    attach(model, train_dataloader=loader(OTHER_DATASET))
    with pytest.raises(TypeError, match=r"TensorDataset.*Folder.*self_texture"):
        model.on_train_start()


def test_what_stages_one_and_two_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normal training images only, as the detector sees them, with the settings of the model."""
    seen: dict[str, Any] = {}

    def prepare(*arguments: Any, **further: Any) -> PreparedBank:  # noqa: ANN401
        seen.update(arguments=arguments, further=further)
        return PreparedBank(tmp_path / "bank", tmp_path / "ddpm")

    monkeypatch.setattr(preparation, "prepare_bank", prepare)
    model = make_model(defects=None, bank={"size": 3}, diffusion={"training_steps": 9}, cache_dir=str(tmp_path))
    datamodule = make_datamodule(tmp_path / "data")
    datamodule.setup(TrainerFn.FITTING)
    samples = datamodule.train_data.samples
    samples.loc[1, "label_index"] = 1
    device = torch.device("cpu")
    attach(model, datamodule=datamodule, precision="bf16-mixed")
    model.prepare_data()
    images, *settings = seen["arguments"]
    assert images.paths == [path for index, path in enumerate(samples.image_path) if index != 1]
    assert images.pre_processor is model.pre_processor
    assert settings == [BankConfig(3), DiffusionConfig(9), None, str(tmp_path), device, "bf16-mixed"]
    assert seen["further"] == {"min_images": 2}
    assert model.bank_dir == tmp_path / "bank"


# ---------------------------------------------------------------------------------------------------------------------
# Optimiser and schedule


def test_optimizer(model: DdpmSt) -> None:
    """Every weight of student and head is in it, once, and none of the teacher's."""
    attach(model, estimated_stepping_batches=1000)
    configured = model.configure_optimizers()
    (group,) = configured["optimizer"].param_groups
    assert group["max_lr"] == pytest.approx(1e-2)
    held = [id(parameter) for parameter in group["params"]]
    assert len(held) == len(set(held))
    learning = [*model.model.student.parameters(), *model.model.head.parameters()]
    assert set(held) == {id(value) for value in learning}
    assert configured["lr_scheduler"]["interval"] == "step"


@pytest.mark.parametrize(("batches", "steps"), [(1000, 50), (20, 20), (float("inf"), 50)])
def test_schedule_ends_where_training_ends(model: DdpmSt, batches: float, steps: int) -> None:
    """The learning rate is down by the last step, whichever of schedule and Trainer ends it."""
    attach(model, estimated_stepping_batches=batches)
    configured = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(1e-2, rel=0.05)
    assert rates[-1] < 0.05 * max(rates)
    assert rates[0] < 0.5 * max(rates)


@pytest.mark.parametrize(("batches", "last"), [(None, 50), (1000, 50), (20, 20), (float("inf"), 50)])
@pytest.mark.parametrize("left", [0, 1])
def test_schedule_ends_training(model: DdpmSt, batches: float | None, last: int, left: int) -> None:
    """Training stops when the schedule is complete, or as much of it as the Trainer allows, and not before.

    Then it validates, also if the validations are some epochs apart.
    """
    trainer = attach(
        model,
        global_step=last - left,
        should_stop=False,
        check_val_every_n_epoch=3,
        estimated_stepping_batches=batches,
        train_dataloader=loader(OTHER_DATASET),
    )
    model._last_step = model.training_steps
    if batches is not None:
        model.configure_optimizers()
    model.on_train_start()
    model.on_train_batch_end(None, None, 0)
    assert trainer.should_stop is (left == 0)
    assert trainer.check_val_every_n_epoch == (None if left == 0 else 3)


def test_last_validation_after_another_stop(model: DdpmSt) -> None:
    """Such as a signal or a timer."""
    trainer = attach(model, global_step=3, should_stop=True, check_val_every_n_epoch=3)
    model._last_step = 50
    model.on_train_batch_end(None, None, 0)
    assert trainer.should_stop
    assert trainer.check_val_every_n_epoch is None


@pytest.mark.parametrize(("given", "norm"), [(None, 1.0), (0.25, 0.25)])
def test_gradient_clipping(
    model: DdpmSt,
    given: float | None,
    norm: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The norm is clipped to one, or to the bound of the Trainer."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(model, "clip_gradients", lambda _, value, algorithm: calls.append((value, algorithm)))
    model.configure_gradient_clipping(None, given, None)
    model.configure_gradient_clipping(None, given, "value")
    assert calls == [(norm, "norm"), (norm, "value")]


# ---------------------------------------------------------------------------------------------------------------------
# Steps


class FixedDefects(nn.Module):
    """Stands for the generator and always returns the same images and masks."""

    def __init__(self, augmented: torch.Tensor, masks: torch.Tensor) -> None:
        super().__init__()
        self.defects = augmented, masks
        self.images: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the images and return the defects."""
        self.images = images
        return self.defects


def make_batch(count: int = 2) -> ImageBatch:
    """Batch of normal images."""
    return ImageBatch(image=torch.rand(count, 3, 64, 64), gt_label=torch.zeros(count, dtype=torch.bool))


@pytest.mark.parametrize("element", [(0, 0, 0), (1, 1, 0)])
def test_training_step(model: DdpmSt, element: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Defects go to the student, clean images to the teacher, masks to the loss, all changed alike."""
    batch = make_batch()
    augmented, masks = torch.rand(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) < 0.5).float()
    logged: dict[str, Any] = {}
    model.train()
    model.generator = FixedDefects(augmented, masks)
    elements = with_symmetries(model, element).expand(2, -1)
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: value}))
    state = torch.get_rng_state()
    with torch.no_grad():
        torch.randint(1, (2,))
        clean, defective, marked = jitter_pair(
            *(flip_rotate(part, elements) for part in (batch.image, augmented, masks))
        )
        expected = model.loss(*model.model(defective, clean), marked)
        torch.set_rng_state(state)
        loss = model.training_step(batch, 0)["loss"]
    torch.testing.assert_close(loss, expected)
    assert model.generator.images is batch.image
    assert logged["train_loss"] is loss


def test_training_step_draws_an_element_for_each_image(model: DdpmSt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is transformed by its own allowed element, together with its clean image and its mask."""
    images = torch.rand(200, 3, 4, 4)
    augmented, masks = images + 1, images[:, :1] + 2
    allowed = with_symmetries(model, *(SYMMETRIES[index] for index in (0, 3, 5)))
    seen: dict[str, torch.Tensor] = {}

    def forward(defects: torch.Tensor, clean: torch.Tensor) -> tuple[None, None, None]:
        seen.update(defects=defects, clean=clean)
        return None, None, None

    def loss(*arguments: Any) -> torch.Tensor:  # noqa: ANN401
        seen.update(masks=arguments[-1])
        return torch.zeros(())

    monkeypatch.setattr(lightning_model, "jitter_pair", lambda *parts: parts)
    monkeypatch.setattr(model.model, "forward", forward)
    monkeypatch.setattr(model.loss, "forward", loss)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    model.generator = FixedDefects(augmented, masks)
    batch = ImageBatch(image=images, gt_label=torch.zeros(200, dtype=torch.bool))
    model.training_step(batch, 0)
    torch.testing.assert_close(seen["defects"], seen["clean"] + 1)
    torch.testing.assert_close(seen["masks"], seen["clean"][:, :1] + 2)
    poses = torch.stack([flip_rotate(images, element.expand(200, -1)) for element in allowed])
    drawn = (poses == seen["clean"]).flatten(2).all(dim=2)
    assert (drawn.sum(dim=0) == 1).all()
    assert drawn.sum(dim=1).min() > 40


def test_training_step_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps on one batch lower the loss and leave the teacher alone."""
    model = make_model(defects={"source": "self_texture", "foreground": "off", "probability": 1.0})
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    optimizer = torch.optim.AdamW([value for value in model.model.parameters() if value.requires_grad], lr=1e-3)
    before = {name: value.clone() for name, value in model.model.teacher.state_dict().items()}
    batch = make_batch(4)
    model.generator = FixedDefects(*DiffusionAnomalyGenerator(None, model.defects)(batch.image))
    with_symmetries(model, SYMMETRIES[0])
    model.train()
    losses = []
    for _ in range(8):
        loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.model.teacher.state_dict().items())


def test_validation_step(model: DdpmSt) -> None:
    """Map and score are added to the batch."""
    batch = make_batch()
    model.eval()
    with torch.no_grad():
        result = model.validation_step(batch, 0)
        expected = model.model(batch.image)
    torch.testing.assert_close(result.anomaly_map, expected.anomaly_map.reshape(result.anomaly_map.shape))
    torch.testing.assert_close(result.pred_score, expected.pred_score)


# ---------------------------------------------------------------------------------------------------------------------
# Memory bank and scores


def test_memory_bank_is_filled_before_training(model: DdpmSt, tmp_path: Path) -> None:
    """With the normal images of the training set; a resumed training keeps its own, a new one replaces it."""
    memory_bank = model.model.memory_bank
    attach(model, train_dataloader=loader(OTHER_DATASET))
    model.on_train_start()
    assert not memory_bank.is_filled
    model.trainer.train_dataloader = loader(write_parts(tmp_path / "a", 3))
    model.on_train_start()
    assert memory_bank.is_filled
    assert model.stage_seconds["memory"] > 0
    first = {name: value.clone() for name, value in memory_bank.state_dict().items()}
    model.trainer.train_dataloader = loader(write_parts(tmp_path / "b", 3))
    model.trainer.ckpt_path = "last.ckpt"
    model.on_train_start()
    assert all(torch.equal(value, first[name]) for name, value in memory_bank.state_dict().items())
    model.trainer.ckpt_path = None
    model.on_train_start()
    assert not torch.equal(memory_bank.levels[0], first["level0"])


@pytest.mark.parametrize("start", ["training", "calibration", "calibration by a datamodule"])
def test_reference_images(start: str, model: DdpmSt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the normal images of the training set, as the detector sees them, with its augmentation."""
    seen: dict[str, Any] = {}
    pixels = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)

    def load(images: NormalImages, most: int) -> torch.Tensor:
        seen.update(paths=images.paths, pre_processor=images.pre_processor, most=most)
        return pixels

    monkeypatch.setattr(NormalImages, "load", load)
    monkeypatch.setattr(
        lightning_model, "NormalReference", lambda *given: [seen.update(reference=given), MagicMock()][1]
    )
    datamodule = make_datamodule(tmp_path)
    datamodule.setup()
    samples = datamodule.train_data.samples
    samples.loc[1, "label_index"] = 1
    if start == "training":
        attach(model, train_dataloader=loader(datamodule.train_data))
        model.on_train_start()
        model.reference.fill_memory_bank.assert_called_once_with(pixels)
    else:
        model.calibrate_scores(datamodule if start == "calibration by a datamodule" else datamodule.train_data)
    assert seen["paths"] == [path for index, path in enumerate(samples.image_path) if index != 1]
    assert seen["pre_processor"] is model.pre_processor
    assert seen["most"] == MAX_REFERENCES
    assert seen["reference"] == (model.model, pixels, "auto")


def test_scores_are_calibrated_when_training_ends(model: DdpmSt, tmp_path: Path) -> None:
    """By the callback that runs the schedule, before the model gives its reference away."""
    trainer = attach(model, train_dataloader=loader(write_parts(tmp_path, 3)), global_step=6, checkpoint_callbacks=[])
    model.on_train_start()
    model.model.train()
    assert (model.model.score_spread == 1).all()
    TrainingRun().on_train_end(trainer, model)
    assert (model.model.score_spread < 1).all()
    model.on_train_end()
    assert model.model.training
    assert not model.model.teacher.training
    assert model.stage_seconds["detector"] > 0
    assert model.reference is None


@pytest.mark.parametrize(("stage", "calibrated"), [(TrainerFn.FITTING, True), (TrainerFn.VALIDATING, False)])
def test_scores_are_calibrated_before_a_validation(
    model: DdpmSt,
    stage: TrainerFn,
    calibrated: bool,
    tmp_path: Path,
) -> None:
    """Of a training, not of a validation alone."""
    parts = loader(write_parts(tmp_path, 3))
    attach(model, train_dataloader=parts, global_step=6, state=SimpleNamespace(fn=stage))
    model.on_train_start()
    model.on_validation_start()
    assert (model.model.score_spread < 1).all() == calibrated


def test_scores_of_saved_weights_are_calibrated(model: DdpmSt, tmp_path: Path) -> None:
    """Without a Trainer, by a training set, with a new memory bank on request; a dataset without paths is refused."""
    dataset = write_parts(tmp_path, 3)
    model.calibrate_scores(dataset)
    calibrated = model.model.score_spread.clone()
    assert (calibrated < 1).all()
    assert not model.model.memory_bank.is_filled
    model.calibrate_scores(dataset, renew_memory=True)
    assert model.model.memory_bank.is_filled
    assert model.model.score_spread[2] != calibrated[2]
    with pytest.raises(TypeError, match="TensorDataset"):
        model.calibrate_scores(OTHER_DATASET)


@pytest.mark.parametrize("from_good_images", [True, False])
def test_threshold_follows_new_calibration(model: DdpmSt, tmp_path: Path, from_good_images: bool) -> None:
    """If it comes from good images; one that defects have set stays."""
    datamodule = make_datamodule(tmp_path)
    datamodule.setup()
    model.post_processor.from_good_images = from_good_images
    model.calibrate_scores(datamodule)
    assert model.post_processor.image_threshold.isnan() != from_good_images
    if from_good_images:
        assert 0 < model.post_processor.image_threshold < 1


def test_scores_of_other_datasets_are_not_calibrated(model: DdpmSt) -> None:
    """A dataset without paths has no images to calibrate by; the components count by their weights."""
    trainer = attach(model, train_dataloader=loader(OTHER_DATASET), global_step=6, checkpoint_callbacks=[])
    model.on_train_start()
    model.on_validation_start()
    TrainingRun().on_train_end(trainer, model)
    model.on_train_end()
    assert (model.model.score_spread == 1).all()


def test_setup_downloads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are downloaded when training starts, if they are wanted and not there yet."""
    asked: list[bool] = []
    model = make_model(pre_trained=True)

    def load(*_: Any) -> None:  # noqa: ANN401
        asked.append(True)
        model.model.teacher.has_weights.fill_(value=True)

    attach(model, max_steps=-1, max_epochs=5)
    monkeypatch.setattr(model.model.teacher, "load_weights", load)
    model.setup("test")
    assert not asked
    model.setup("fit")
    model.setup("fit")
    assert asked == [True]

    random = make_model(pre_trained=False)
    attach(random, max_steps=-1, max_epochs=5)
    monkeypatch.setattr(random.model.teacher, "load_weights", lambda *_: pytest.fail("weights were downloaded"))
    random.setup("fit")


@pytest.mark.parametrize("compiled", ["saved", "loaded"])
def test_checkpoints_of_compiled_models(compiled: str) -> None:
    """``torch.compile`` changes the names of the weights; they load either way."""
    saved, loaded = make_model(), make_model()
    changed = saved if compiled == "saved" else loaded
    changed.model = torch.compile(changed.model)
    checkpoint = {"state_dict": saved.state_dict()}
    assert any("_orig_mod" in name for name in changed.state_dict())
    loaded.on_load_checkpoint(checkpoint)
    loaded.load_state_dict(checkpoint["state_dict"])
    for one, other in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_checkpoint_of_another_length(model: DdpmSt) -> None:
    """The length of its schedule is left out, so that training goes on in that of the model."""
    checkpoint = {"state_dict": model.state_dict(), "lr_schedulers": [{"total_steps": 5, "last_epoch": 3}]}
    model.on_load_checkpoint(checkpoint)
    assert checkpoint["lr_schedulers"] == [{"last_epoch": 3}]


def test_callback_of_the_schedule(model: DdpmSt, tmp_path: Path) -> None:
    """Each training has its own, attached to its Trainer, after the callbacks of the components."""
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    model._trainer = trainer
    trainer.state.fn = TrainerFn.FITTING
    *components, run = model.configure_callbacks()
    assert {type(model.post_processor), type(model.evaluator)} <= {type(component) for component in components}
    assert isinstance(run, TrainingRun)
    assert trainer.val_check_interval > 1
    run.on_exception(trainer, model, RuntimeError())
    assert trainer.val_check_interval == pytest.approx(1.0)
    model._trainer = None
    assert model.configure_callbacks()[-1] is not run
