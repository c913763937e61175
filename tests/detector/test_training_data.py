# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of how a training finds its data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.transforms.v2 import Resize

from anomalib_ddpm_st.core.datasets import ImageFiles
from anomalib_ddpm_st.detector.components import make_pre_processor
from anomalib_ddpm_st.detector.training_data import TrainingData, list_loaders

from .conftest import make_datamodule, write_images


class Watcher(LightningModule):
    """Model that finds its data when training starts, and does not train."""

    def __init__(self, pre_processor: Any = None) -> None:  # noqa: ANN401
        super().__init__()
        self.pre_processor = pre_processor
        self.data: TrainingData | None = None

    def on_train_start(self) -> None:
        """Find the data."""
        self.data = TrainingData.from_trainer(self.trainer, self.pre_processor)
        assert self.trainer.training

    def training_step(self, *args: object) -> None:
        """Nothing to learn."""

    def validation_step(self, *args: object) -> None:
        """Nothing to validate."""

    def configure_optimizers(self) -> None:
        """Nothing to optimise."""


Find = Callable[..., TrainingData]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """Start a training and return the data that it finds."""

    def call(pre_processor: Any = None, trainer: dict[str, Any] | None = None, **data: Any) -> TrainingData:  # noqa: ANN401
        model = Watcher(pre_processor)
        arguments = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **(trainer or {})}
        Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, num_sanity_val_steps=0, **arguments).fit(
            model, **data
        )
        assert model.data is not None
        return model.data

    return call


def loader(dataset: Any, **arguments: Any) -> DataLoader:  # noqa: ANN401
    """Data loader of an anomalib dataset, with its function that makes batches."""
    return DataLoader(dataset, 3, collate_fn=getattr(dataset, "collate_fn", list), **arguments)


@pytest.mark.parametrize("from_trainer", [False, True])
def test_datamodule(from_trainer: bool, find: Find, tmp_path: Path) -> None:
    """Normal training images as the detector sees them, batch size, validation and test set."""
    datamodule = make_datamodule(tmp_path / "data", (40, 40), train_batch_size=4, augmentations=Resize((16, 20)))
    pre_processor = make_pre_processor((8, 10))
    if from_trainer:
        data = find(pre_processor, datamodule=datamodule)
    else:
        datamodule.setup()
        data = TrainingData.from_datamodule(datamodule, pre_processor)
    assert data.images.paths == sorted(str(path) for path in (tmp_path / "data" / "normal").iterdir())
    assert data.images[0].shape == (3, 8, 10)
    # The datamodule applies the Resize of the pre-processor of a model that it is attached to.
    assert data.images.item_sizes == {(8, 10) if from_trainer else (16, 20)}
    assert data.batch_size == 4
    assert data.validation == [datamodule.val_data]
    assert data.test == [datamodule.test_data]


def test_datamodule_without_validation(tmp_path: Path) -> None:
    """An empty set is none."""
    datamodule = make_datamodule(tmp_path, val_split_mode="none")
    datamodule.setup()
    data = TrainingData.from_datamodule(datamodule, None)
    assert data.validation == []
    assert data.test == [datamodule.test_data]


@pytest.mark.parametrize("interval", [1, 5])
@pytest.mark.parametrize("kind", ["one", "list", "tuple", "dictionary", "none"])
def test_data_loaders(kind: str, interval: int, find: Find, tmp_path: Path) -> None:
    """Those of validation are found however they are given, and even if the first validation is some epochs away.

    Their augmentations are those of test images.
    """
    datamodule = make_datamodule(
        tmp_path / "data",
        (40, 40),
        train_augmentations=Resize((4, 4)),
        val_augmentations=Resize((16, 20)),
        test_augmentations=Resize((16, 20)),
    )
    datamodule.setup()
    part = loader(datamodule.val_data)
    given = {"one": part, "list": [part, part], "tuple": (part,), "dictionary": {"a": part, "b": part}, "none": None}
    data = find(
        make_pre_processor((8, 10)),
        {"check_val_every_n_epoch": interval},
        train_dataloaders=loader(datamodule.train_data, shuffle=True),
        val_dataloaders=given[kind],
    )
    assert len(data.images) == 5
    assert data.images[0].shape == (3, 8, 10)
    assert data.images.item_sizes == {(4, 4) if kind == "none" else (16, 20)}
    assert data.batch_size == 3
    count = {"list": 2, "dictionary": 2, "none": 0}.get(kind, 1)
    assert [id(dataset) for dataset in data.validation] == [id(datamodule.val_data)] * count
    assert data.test == []


def test_no_validation_is_asked_for(find: Find, tmp_path: Path) -> None:
    """Then its data is none of this training."""
    images = ImageFiles(write_images(tmp_path / "images", 2))
    data = find(None, {"limit_val_batches": 0}, train_dataloaders=loader(images), val_dataloaders=loader(images))
    assert data.validation == []


@pytest.mark.parametrize(("arguments", "size"), [({"batch_size": 2}, 2), ({"batch_size": 2, "drop_last": True}, None)])
def test_size_of_batches(arguments: dict[str, Any], size: int | None, find: Find, tmp_path: Path) -> None:
    """The last one may be smaller unless it is left out."""
    images = ImageFiles(write_images(tmp_path / "images", 3))
    assert find(train_dataloaders=DataLoader(images, collate_fn=list, **arguments)).batch_size == size


def test_other_datasets_are_named(find: Find) -> None:
    """They do not list their images."""
    with pytest.raises(TypeError, match="TensorDataset"):
        find(train_dataloaders=DataLoader(TensorDataset(torch.rand(4, 2))))


def test_loaders_are_listed() -> None:
    """In their order; ``None`` and other iterables are none, and a stream is not asked for its length."""

    class Stream(IterableDataset):
        def __iter__(self) -> None:
            pytest.fail("the stream was read")

    one, other = DataLoader(Stream()), DataLoader([1, 2])
    assert list_loaders(one) == [one]
    assert list_loaders([one, {"a": other}]) == list_loaders((one, other)) == [one, other]
    assert list_loaders(None) == list_loaders([]) == list_loaders([[1, 2]]) == []
