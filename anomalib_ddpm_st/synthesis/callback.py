# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Diffusion-made defects for other anomalib models, in place of their own synthetic anomalies."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from anomalib.models import AnomalibModule, Supersimplenet
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torchvision.transforms.v2 import Normalize

from anomalib_ddpm_st.core.config import as_config
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.transforms import find_transform
from anomalib_ddpm_st.diffusion import DiffusionConfig

from .config import BankConfig, DefectConfig
from .generator import DiffusionAnomalyGenerator
from .preparation import prepare_generator


class NormalizedGenerator(nn.Module):
    """Generator for normalised images: it undoes the normalisation, makes the defects and normalises again.

    Args:
        generator (DiffusionAnomalyGenerator): Generator for images with values in [0, 1].
        normalize (Normalize | None): Normalisation of the images. ``None`` if there is none.
    """

    def __init__(self, generator: DiffusionAnomalyGenerator, normalize: Normalize | None = None) -> None:
        super().__init__()
        self.generator = generator
        self.mean: torch.Tensor
        self.std: torch.Tensor
        for name, default in (("mean", 0.0), ("std", 1.0)):
            value = torch.tensor(default if normalize is None else getattr(normalize, name))
            self.register_buffer(name, value.reshape(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make defects.

        Args:
            images (torch.Tensor): Normalised images of shape ``(3, H, W)`` or ``(B, 3, H, W)``.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Normalised images with defects, and their masks.
        """
        mean, std = self.mean.to(images), self.std.to(images)
        augmented, masks = self.generator(images * std + mean)
        return torch.where(masks.bool(), (augmented - mean) / std, images), masks


class UnchangedFeatures(nn.Module):
    """Replaces SuperSimpleNet's generator, which perturbs features: the defects are in the images already."""

    @staticmethod
    def forward(
        input_features: torch.Tensor | None,
        adapted_features: torch.Tensor,
        masks: torch.Tensor,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the inputs unchanged, in the order of anomalib's own generator."""
        return input_features, adapted_features, masks, labels


class SyntheticAnomalies(Callback):
    """Trains Draem, Supersimplenet and similar anomalib models with diffusion-made defects in place of their own.

    Before training, a DDPM of the normal training images is trained and its bank of textures sampled, or both are taken
    from the cache. Models with anomalib's ``PerlinAnomalyGenerator`` (Draem) get this generator instead.
    Supersimplenet, which perturbs features, gets images with defects and unchanged features. After training the model
    gets its own generator back.

    Args:
        defects (DefectConfig | dict | None): Defects in the training images. Defaults to ``None``, the defaults of
            :class:`DefectConfig`.
        bank (BankConfig | dict | None): Sampling of the bank of textures. Defaults to ``None``, the defaults of
            :class:`BankConfig`.
        diffusion (DiffusionConfig | dict | None): Training of the DDPM. Defaults to ``None``, the defaults of
            :class:`DiffusionConfig`.
        diffusion_path (str | None): Folder of a trained DDPM. ``None`` trains one. Defaults to ``None``.
        cache_dir (str | None): Folder for DDPMs and banks. ``None`` takes the user's cache folder.
            Defaults to ``None``.

    Raises:
        ValueError: If a setting is out of its range.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib.models import Draem
        >>> engine = Engine(callbacks=[SyntheticAnomalies()], max_epochs=10)
        >>> engine.train(Draem(), datamodule=MVTecAD(category="bottle"))  # doctest: +SKIP
    """

    def __init__(
        self,
        defects: DefectConfig | dict | None = None,
        bank: BankConfig | dict | None = None,
        diffusion: DiffusionConfig | dict | None = None,
        diffusion_path: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        # Settings are checked now, not when training starts.
        self.settings: Mapping[str, Any] = {
            "defects": as_config(DefectConfig, defects),
            "bank": as_config(BankConfig, bank),
            "diffusion": as_config(DiffusionConfig, diffusion),
            "diffusion_path": diffusion_path,
            "cache_dir": cache_dir,
        }
        self.generator: NormalizedGenerator | None = None
        self._in_batch = False
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the generator and replace that of the model.

        Args:
            trainer (Trainer): Trainer.
            pl_module (LightningModule): anomalib model that makes defects to train with.
            stage (str): Nothing is done unless ``"fit"``.

        Raises:
            TypeError: If the model makes no defects, or the Trainer has no anomalib datamodule.
        """
        if stage != "fit":
            return
        places, model = self._places(pl_module), cast("AnomalibModule", pl_module)
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, AnomalibDataModule):
            msg = "SyntheticAnomalies reads the normal images of an anomalib datamodule: pass one to the Engine."
            raise TypeError(msg)
        normalize = find_transform(getattr(model.pre_processor, "transform", None), Normalize)
        generator = prepare_generator(
            NormalImages.from_datamodule(datamodule, model.pre_processor, normalize),
            device=trainer.strategy.root_device,
            precision=str(trainer.precision),
            **self.settings,
        )
        self.generator = NormalizedGenerator(generator, normalize)
        self._in_batch = isinstance(pl_module, Supersimplenet)
        for parent, name in places:
            self._replaced.append((parent, name, getattr(parent, name)))
            setattr(parent, name, UnchangedFeatures() if self._in_batch else self.generator)

    @staticmethod
    def _places(model: LightningModule) -> list[tuple[nn.Module, str]]:
        """Modules of a model that hold a generator, with the name of the attribute."""
        if isinstance(model, Supersimplenet):
            return [(model.model, "anomaly_generator")]
        places = [
            (parent, name)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, PerlinAnomalyGenerator)
        ]
        if not places or not isinstance(model, AnomalibModule):
            msg = (
                f"{type(model).__name__} makes no defects to train with, so there is nothing to replace: take "
                "SyntheticAnomalies out of the callbacks, or choose a model such as Draem or Supersimplenet."
            )
            raise TypeError(msg)
        return places

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: ImageBatch,
        batch_idx: int,
    ) -> None:
        """Put defects into the images, masks and labels of a model that expects them in the batch."""
        del trainer, pl_module, batch_idx
        if not self._in_batch or self.generator is None:
            return
        image, mask = self.generator(batch.image)
        batch.update(image=image, gt_mask=mask[:, 0].bool(), gt_label=mask.flatten(1).any(dim=1))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the model's own generator: Lightning skips ``teardown`` after an error or Ctrl-C."""
        del exception
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the model's own generator."""
        del trainer, pl_module, stage
        while self._replaced:
            parent, name, original = self._replaced.pop()
            setattr(parent, name, original)
        self.generator, self._in_batch = None, False
