# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What the parts of a training know of the model, and its data with or without a datamodule."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from anomalib.data import AnomalibDataModule
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset

from anomalib_ddpm_st.core.datasets import list_images
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig

from .normal_reference import NormalReference
from .torch_model import DdpmStModel


class DetectorModule(Protocol):
    """What checks and callback of a training use of :class:`DdpmSt`, see there."""

    trainer: Trainer
    model: DdpmStModel
    reference: NormalReference | None
    pre_processor: nn.Module | None
    evaluator: nn.Module | None
    loss: nn.Module
    diffusion: DiffusionConfig
    bank: BankConfig
    defects: DefectConfig
    pre_trained: bool
    diffusion_path: str | None
    cache_dir: str | None
    training_steps: int
    fingerprint: str | None


@dataclass(frozen=True)
class TrainingData:
    """Data that a training reads.

    Attributes:
        images (NormalImages | None): Normal training images. ``None`` if the training set does not list them.
        batch_size (int | None): Images per training batch, of which the last may have fewer. ``None`` if it is not
            known.
        validation (list[Dataset]): Validation sets.
        test (list[Dataset]): Test sets that are known.
    """

    images: NormalImages | None
    batch_size: int | None = None
    validation: list[Dataset] = field(default_factory=list)
    test: list[Dataset] = field(default_factory=list)

    @classmethod
    def from_datamodule(cls, datamodule: AnomalibDataModule, pre_processor: nn.Module | None) -> "TrainingData":
        """Data of a datamodule that is set up.

        Args:
            datamodule (AnomalibDataModule): Datamodule.
            pre_processor (nn.Module | None): Pre-processor of the model.

        Returns:
            TrainingData: Data.
        """
        images = NormalImages.from_datamodule(datamodule, pre_processor)
        found = [getattr(datamodule, name, None) for name in ("val_data", "test_data")]
        validation, test = ([] if dataset is None or not len(dataset) else [dataset] for dataset in found)
        return cls(images, datamodule.train_batch_size, validation, test)

    @classmethod
    def from_trainer(cls, trainer: Trainer, pre_processor: nn.Module | None) -> "TrainingData":
        """Data of the datamodule or the data loaders of a Trainer that has started to train.

        Args:
            trainer (Trainer): Trainer.
            pre_processor (nn.Module | None): Pre-processor of the model.

        Returns:
            TrainingData: Data.

        Raises:
            TypeError: If the training set does not list its images.
        """
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, AnomalibDataModule):
            return cls.from_datamodule(datamodule, pre_processor)
        loader = cast("DataLoader", trainer.train_dataloader)
        if trainer.enable_validation and trainer.val_dataloaders is None:
            # Lightning asks for them as late as in the first epoch that is validated.
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True
        validation = [part.dataset for part in list_loaders(trainer.val_dataloaders)]
        images = NormalImages.from_dataset(loader.dataset, pre_processor, next(iter(validation), None))
        full = getattr(loader, "drop_last", False)
        return cls(images, None if full else getattr(loader, "batch_size", None), validation)


def count_labels(datasets: Iterable[Dataset]) -> tuple[int, int]:
    """Count the images of datasets.

    Args:
        datasets (Iterable[Dataset]): Datasets; those that do not list their images are left out.

    Returns:
        tuple[int, int]: Number of good and of defective images.
    """
    labels: list[int] = []
    for dataset in datasets:
        with suppress(TypeError):
            labels += [label for _, _, _, label in list_images(dataset)]
    return labels.count(0), len(labels) - labels.count(0)


def list_loaders(loaders: Any) -> list[DataLoader]:  # noqa: ANN401
    """List the data loaders that a Trainer was given.

    Args:
        loaders (Any): One data loader or a collection of them, as Lightning takes it. ``None`` if there are none.

    Returns:
        list[DataLoader]: Data loaders.
    """
    return [part for part in CombinedLoader(loaders, "sequential").flattened if hasattr(part, "dataset")]
