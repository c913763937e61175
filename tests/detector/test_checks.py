# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what is checked before the first stage."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import pytest
import torch
from anomalib.data.datasets import FolderDataset
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.transforms.v2 import CenterCrop, ColorJitter, Compose, Resize

from anomalib_ddpm_st.core import images as core_images
from anomalib_ddpm_st.core.datasets import ImageFiles
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.detector import DdpmStModel, checks
from anomalib_ddpm_st.detector.checks import MAX_LISTED, check_before_training, check_files
from anomalib_ddpm_st.detector.components import make_evaluator
from anomalib_ddpm_st.detector.training_data import TrainingData
from anomalib_ddpm_st.diffusion import DefectPipeline
from anomalib_ddpm_st.synthesis import DefectConfig

from .conftest import cut, make_datamodule, write_images

STEPS = 3000
# With a validation set, of which no file is read.
VALIDATED = TrainingData(None, validation=[TensorDataset(torch.rand(2, 3))])


@pytest.fixture
def model(network: DdpmStModel, tmp_path: Path) -> SimpleNamespace:
    """What a check knows of a model: by default one that trains with shuffled tiles."""
    return SimpleNamespace(
        model=network,
        evaluator=make_evaluator(),
        pre_processor=None,
        defects=DefectConfig("self_texture"),
        pre_trained=False,
        diffusion_path=None,
        cache_dir=str(tmp_path / "cache"),
        training_steps=STEPS,
    )


@pytest.fixture
def needs_bank(model: SimpleNamespace) -> None:
    """Let the model need stages 1 and 2."""
    model.defects = DefectConfig()


Check = Callable[..., None]


@pytest.fixture
def check(model: SimpleNamespace, tmp_path: Path) -> Check:
    """Attach the model to a Trainer and check it."""

    def call(data: TrainingData | None = None, found: Any = (), **arguments: Any) -> None:  # noqa: ANN401
        settings = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path / "results", **arguments}
        model.trainer = Trainer(**settings)
        check_before_training(model, data, found)

    return call


def normal(tmp_path: Path, count: int = 3, size: int = 64, batch_size: int | None = 3) -> TrainingData:
    """Data of a training set alone."""
    paths = write_images(tmp_path / "images", count, (size, size))
    return TrainingData(NormalImages(ImageFiles(paths)), batch_size)


def evaluation(tmp_path: Path) -> TrainingData:
    """Data whose validation and test set are those of a datamodule."""
    datamodule = make_datamodule(tmp_path / "data")
    datamodule.setup()
    return TrainingData.from_datamodule(datamodule, None)


# ---------------------------------------------------------------------------------------------------------------------
# Trainer and metrics


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_nothing_is_wrong(check: Check, precision: str, tmp_path: Path) -> None:
    """Nothing is raised, and nothing left in the folders."""
    folder = tmp_path / "results" / "of" / "today"
    check(evaluation(tmp_path), precision=precision, min_steps=10, default_root_dir=folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_precision(check: Check, precision: str, tmp_path: Path) -> None:
    """Those that the Trainer accepts and the model does not learn with, whatever type the network has by then."""
    with pytest.raises(
        ValueError, match=rf"^DdpmSt does not train with precision '{precision}': choose from 32-true, bf16-mixed"
    ):
        check(normal(tmp_path), precision=precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_type_of_the_network(check: Check, dtype: torch.dtype, model: SimpleNamespace, tmp_path: Path) -> None:
    """Without a datamodule the Trainer has converted the network already, which says nothing of the images."""
    # A copy: converted back, the shared network would keep rounded statistics.
    model.model = copy.deepcopy(model.model).to(dtype)
    check(normal(tmp_path))


def test_steps(check: Check) -> None:
    """More of them than the schedule has."""
    check(min_steps=STEPS)
    with pytest.raises(ValueError, match=r"^min_steps \(3001\) is above training_steps \(3000\).*raise training_steps"):
        check(min_steps=STEPS + 1)


@pytest.mark.parametrize(
    "callback",
    [
        *(EarlyStopping(name) for name in ("image_AUROC", "pixel_AUROC", "train_loss", "train_loss_epoch")),
        EarlyStopping("nonsense", strict=False),
        *(ModelCheckpoint(monitor=name) for name in (None, "train_loss_step", "image_AUROC", "step", "epoch")),
    ],
    ids=lambda callback: f"{type(callback).__name__}-{callback.monitor}",
)
def test_metrics_that_can_be_monitored(check: Check, callback: Callback) -> None:
    """Whatever validation and training log."""
    check(VALIDATED, callbacks=[callback])
    check(None, callbacks=[callback])


@pytest.mark.parametrize("defects", [True, False])
def test_metrics_that_need_defects(check: Check, tmp_path: Path, defects: bool) -> None:
    """A validation set of good images logs none."""
    write_images(tmp_path / "normal", 3)
    write_images(tmp_path / "good", 2)
    write_images(tmp_path / "bad", 1)
    abnormal = {"abnormal_dir": "bad"} if defects else {}
    dataset = FolderDataset("parts", "normal", root=tmp_path, normal_test_dir="good", split="test", **abnormal)
    data = TrainingData(None, validation=[dataset])
    if defects:
        check(data, callbacks=[EarlyStopping("image_AUROC")])
        return
    with pytest.raises(ValueError, match=r"^EarlyStopping monitors 'image_AUROC', .*: choose from train_loss"):
        check(data, callbacks=[EarlyStopping("image_AUROC")])


@pytest.mark.parametrize("name", ["image_AUC", "val_loss", "epoch"])
def test_metrics_that_nobody_logs(check: Check, name: str) -> None:
    """Lightning would fail at the first validation, after all stages."""
    with pytest.raises(
        ValueError, match=rf"^EarlyStopping monitors '{name}', which .*: choose from image_AUROC, pixel"
    ):
        check(VALIDATED, callbacks=[EarlyStopping(name)])


def test_checkpoint_of_an_unknown_metric(check: Check) -> None:
    """Likewise, once for each callback."""
    callbacks = [ModelCheckpoint(monitor="image_AUC"), EarlyStopping("image_AUC")]
    with pytest.raises(ValueError, match=r"^ModelCheckpoint monitors 'image_AUC'.*choose from epoch"):
        check(VALIDATED, callbacks=callbacks[:1])
    with pytest.raises(ValueError, match=r"(?s)EarlyStopping monitors.*ModelCheckpoint monitors"):
        check(VALIDATED, callbacks=callbacks)


def test_callbacks_of_the_user(check: Check) -> None:
    """They may log any metric."""

    class Own(Callback):
        monitor = "nonsense"

    check(VALIDATED, callbacks=[Own(), EarlyStopping("mine")])


@pytest.mark.parametrize("case", ["no data", "no batches", "no evaluator"])
def test_metrics_without_validation(check: Check, case: str, model: SimpleNamespace) -> None:
    """Then only the loss is logged."""
    data = TrainingData(None) if case == "no data" else VALIDATED
    limit = {"limit_val_batches": 0} if case == "no batches" else {}
    if case == "no evaluator":
        model.evaluator = None
    check(data, callbacks=[EarlyStopping("train_loss")], **limit)
    with pytest.raises(ValueError, match=r"'image_AUROC'.*choose from train_loss, train_loss_epoch, train_loss_step"):
        check(data, callbacks=[EarlyStopping("image_AUROC")], **limit)


# ---------------------------------------------------------------------------------------------------------------------
# Folders and weights


@pytest.mark.usefixtures("needs_bank")
@pytest.mark.parametrize("name", ["default_root_dir", "cache_dir", "default cache"])
def test_folders(
    check: Check, name: str, model: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is in the way of results or cache."""
    check()
    blocked = tmp_path / "file" / "folder"
    blocked.parent.write_text("in the way")
    if name == "cache_dir":
        model.cache_dir = str(blocked)
    elif name == "default cache":
        model.cache_dir = None
        monkeypatch.setattr(checks, "default_cache_dir", lambda: blocked)
    option = "default_root_dir" if name == "default_root_dir" else "cache_dir"
    with pytest.raises(
        OSError, match=rf"^The folder {blocked} cannot be written \(.+\): choose another one with {option}"
    ):
        check(**({name: blocked} if name == "default_root_dir" else {}))


def test_read_only_folder(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists, and a file cannot be made in it."""
    monkeypatch.setattr(checks.tempfile, "TemporaryFile", MagicMock(side_effect=OSError("Read-only file system")))
    with pytest.raises(OSError, match=r"^The folder .*results cannot be written \(Read-only file system\)"):
        check()


def test_cache_is_not_needed(check: Check, model: SimpleNamespace, tmp_path: Path) -> None:
    """By shuffled tiles."""
    (tmp_path / "file").write_text("in the way")
    model.cache_dir = str(tmp_path / "file")
    model.diffusion_path = str(tmp_path / "nowhere")
    check()


@pytest.mark.parametrize(("pre_trained", "has_weights"), [(True, False), (True, True), (False, False)])
def test_weights(check: Check, pre_trained: bool, has_weights: bool, model: SimpleNamespace) -> None:
    """They are downloaded now, if they are wanted and missing; without a network that fails now."""
    teacher = MagicMock(has_weights=torch.tensor(has_weights))
    teacher.load_weights.side_effect = ConnectionError("no network")
    model.model, model.pre_trained = SimpleNamespace(teacher=teacher), pre_trained
    if not pre_trained or has_weights:
        check()
        teacher.load_weights.assert_not_called()
        return
    with pytest.raises(ConnectionError, match="no network"):
        check()
    with pytest.raises(ValueError, match=r"(?s)Training cannot start.*no network"):
        check(min_steps=STEPS + 1)
    teacher.load_weights.side_effect = None
    check()
    assert teacher.load_weights.call_args_list == [call()] * 3


@pytest.mark.usefixtures("needs_bank")
def test_diffusion_path(check: Check, model: SimpleNamespace, tmp_path: Path, pipeline: DefectPipeline) -> None:
    """A folder without a DDPM; loading one draws nothing."""
    model.diffusion_path = str(tmp_path / "ddpm")
    with pytest.raises(FileNotFoundError, match="There is no trained DDPM in"):
        check()
    with pytest.raises(ValueError, match=r"(?s)Training cannot start.*There is no trained DDPM in"):
        check(min_steps=STEPS + 1)
    pipeline.save_pretrained(tmp_path / "ddpm")
    state = torch.get_rng_state()
    check()
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------------------------------------------
# Images


@pytest.mark.parametrize("broken", ["normal/1.png", "good/0.png", "bad/1.png", "mask/0.png"])
def test_half_written_image(check: Check, broken: str, tmp_path: Path) -> None:
    """Among those of training, validation and test, and of masks, which are named by their image."""
    data = evaluation(tmp_path)
    cut(str(tmp_path / "data" / broken))
    name = broken.replace("mask", "bad")
    with pytest.raises(ValueError, match=rf"^The image \S+{re.escape(name)} cannot be read .*: repair it or remove it"):
        check(data)


@pytest.mark.parametrize("which", ["validation", "test"])
@pytest.mark.parametrize("kind", ["plain", "subset", "concatenated"])
def test_half_written_image_of_one_set(check: Check, which: str, kind: str, tmp_path: Path) -> None:
    """Of an anomalib dataset or parts of it; each file is named once, other datasets are left out."""
    datamodule = make_datamodule(tmp_path / "data")
    datamodule.setup()
    broken = datamodule.val_data.samples.image_path[0]
    cut(broken)
    dataset: Dataset = datamodule.val_data
    if kind == "subset":
        dataset = Subset(dataset, [1, 0])
    elif kind == "concatenated":
        dataset = ConcatDataset([dataset, dataset])
    data = TrainingData(None, **{which: [TensorDataset(torch.rand(2, 3)), dataset]})
    with pytest.raises(ValueError, match=rf"^The image {broken} cannot be read"):
        check(data)


def test_every_training_image_is_read(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are too many to be kept."""
    monkeypatch.setattr(core_images, "MAX_IMAGES", 2)
    data = normal(tmp_path, 5)
    cut(data.images.paths[1])
    with pytest.raises(ValueError, match=re.escape(data.images.paths[1])):
        check(data)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(check: Check, count: int, tmp_path: Path) -> None:
    """An empty folder, or an only image."""
    with pytest.raises(ValueError, match=rf"^Training needs at least 2 normal images, but found {count}"):
        check(normal(tmp_path, count))


@pytest.mark.parametrize(("size", "count", "batch_size"), [(32, 3, 1), (32, 3, 2), (16, 4, 3)])
def test_small_images(check: Check, size: int, count: int, batch_size: int, tmp_path: Path) -> None:
    """One image of a batch, or left over for the last batch, has no variance at the coarsest level of the backbone."""
    message = (
        rf"^Images of {size} x {size} pixels in a batch of 1 are too small for the backbone 'resnet18' \(.+\): use"
    )
    with pytest.raises(ValueError, match=message):
        check(normal(tmp_path, count, size, batch_size))


@pytest.mark.parametrize(
    ("size", "count", "batch_size"), [(64, 3, 1), (64, 3, 2), (32, 4, 2), (32, 3, 8), (32, 3, None)]
)
def test_large_enough_images(check: Check, size: int, count: int, batch_size: int | None, tmp_path: Path) -> None:
    """Or enough of them in each batch, as far as it is known."""
    check(normal(tmp_path, count, size, batch_size))


def test_check_leaves_the_model_alone(check: Check, model: SimpleNamespace, tmp_path: Path) -> None:
    """Its weights, statistics and modes, and the random state; also if test images are augmented at random."""
    datamodule = make_datamodule(tmp_path / "data", augmentations=ColorJitter(0.5))
    datamodule.setup()
    data = TrainingData.from_datamodule(datamodule, None)
    model.model.eval()
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    modes = [module.training for module in model.model.modules()]
    state = torch.get_rng_state()
    check(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in model.model.modules()]
    for name, value in model.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, equal_nan=True)
    assert isinstance(datamodule.val_data.augmentations, ColorJitter)


def test_compiled_network(check: Check, model: SimpleNamespace, tmp_path: Path) -> None:
    """One odd batch is not worth another compilation."""

    class Compiled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self._orig_mod = network
            self.teacher = network.teacher

        def forward(self, *_: torch.Tensor) -> None:
            pytest.fail("the compiled network was called")

    model.model = Compiled(model.model)
    check(normal(tmp_path))


@pytest.mark.parametrize(("count", "shown"), [(99, False), (100, True)])
def test_progress_of_many_files(count: int, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar over the files of all sets together, in training and test."""
    bars: list[tuple[str, int]] = []

    def progress(items: Any, description: str, total: int | None = None) -> Iterator:  # noqa: ANN401
        items = list(items)
        bars.append((description, total or len(items)))
        return iter(items)

    monkeypatch.setattr(checks, "progress", progress)
    monkeypatch.setattr(core_images, "progress", progress)
    paths = [str(tmp_path / f"{index}.png") for index in range(count)]
    for path in paths:
        Image.new("RGB", (2, 2)).save(path)
    assert check_files([ImageFiles(paths[:60]), ImageFiles(paths[40:])]) == []
    assert bars == ([("Checking test images", count)] if shown else [])
    bars.clear()
    assert not list(NormalImages(ImageFiles(paths)).unread())
    assert bars == ([("Checking training images", count)] if shown else [])


# ---------------------------------------------------------------------------------------------------------------------
# All of them


def test_several_problems(check: Check, tmp_path: Path) -> None:
    """One message lists them, first those that were known before."""
    data = evaluation(tmp_path)
    broken = [cut(str(tmp_path / "data" / path)) for path in ("normal/3.png", "good/1.png")]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="Training cannot start") as problems:
        check(
            data,
            [FileNotFoundError("known before")],
            precision="bf16-true",
            min_steps=9999,
            callbacks=[EarlyStopping("image_AUC")],
            default_root_dir=tmp_path / "file",
        )
    head, *lines = str(problems.value).splitlines()
    assert head == "Training cannot start:"
    parts = ["known before", "bf16-true", "min_steps", "image_AUC", "default_root_dir", *broken]
    assert len(lines) == len(parts)
    assert all(line.startswith("- ") and part in line for line, part in zip(lines, parts, strict=True))


@pytest.mark.parametrize(("count", "last"), [(MAX_LISTED, "- 19"), (MAX_LISTED + 3, "- and 3 more.")])
def test_many_problems(check: Check, count: int, last: str) -> None:
    """Twenty of them are enough to read."""
    with pytest.raises(ValueError, match="Training cannot start") as problems:
        check(None, [OSError(str(index)) for index in range(count)])
    lines = str(problems.value).splitlines()
    assert len(lines) == 1 + MAX_LISTED + (count > MAX_LISTED)
    assert MAX_LISTED == 20
    assert lines[-1] == last


def test_known_problem_alone(check: Check) -> None:
    """It is raised as it is."""
    problem = FileNotFoundError("images")
    with pytest.raises(FileNotFoundError) as raised:
        check(None, [problem])
    assert raised.value is problem


@pytest.mark.parametrize("crop", [True, False])
def test_crop_before_resize(check: Check, crop: bool, model: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    """A warning, since the exported model sees other images."""
    steps = [CenterCrop(64), Resize((64, 64))]
    pre_processor = PreProcessor(transform=Compose(steps if crop else steps[::-1]))
    model.pre_processor = pre_processor
    check()
    assert ("crops or pads before Resize" in caplog.text) == crop


@pytest.mark.parametrize("mixed", [True, False])
def test_images_of_several_sizes(check: Check, mixed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning, since anomalib stretches those of a batch to one size, even if a crop makes them equal."""
    paths = write_images(tmp_path / "one", 2, (80, 72)) + write_images(tmp_path / "two", 2, (80, 96 if mixed else 72))
    crop = PreProcessor(transform=CenterCrop(64))
    check(TrainingData(NormalImages(ImageFiles(paths), crop), 4))
    assert ("2 different sizes before the pre-processor" in caplog.text) == mixed
