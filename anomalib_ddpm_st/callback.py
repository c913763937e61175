# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Defects of a DDPM for other models of anomalib, in place of those that they make themselves."""

from typing import Any, Literal, cast

import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from anomalib.models import AnomalibModule, Supersimplenet
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torchvision.transforms.v2 import Normalize

from .images import find_transform
from .synthesis import DiffusionAnomalyGenerator
from .synthesis.generator import Synthesis
from .synthesis.preparation import normal_paths, prepare_generator


class NormalizedGenerator(nn.Module):
    """Generator for images that were normalised: its defects are made before, and come back normalised.

    Args:
        generator (DiffusionAnomalyGenerator): Generator for images with values in [0, 1].
        normalize (Normalize | None): What was done to the images. ``None`` for nothing.
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
        # Rounding alone may leave [0, 1].
        augmented, masks = self.generator((images * std + mean).clamp(0, 1))
        return torch.where(masks.bool(), (augmented - mean) / std, images), masks


class FeaturesAsTheyAre(nn.Module):
    """Takes the place of SuperSimpleNet's generator, which disturbs features: the defects are in the images already."""

    @staticmethod
    def forward(
        input_features: torch.Tensor | None,
        adapted_features: torch.Tensor,
        masks: torch.Tensor,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give back what comes, in the order of anomalib's own."""
        return input_features, adapted_features, masks, labels


class SyntheticAnomalies(Callback):
    """Train a model of anomalib with defects of a DDPM in place of its own: Draem, Supersimplenet and their like.

    Before training a DDPM of the normal training images is trained and its bank filled, or both are taken from the
    cache. Models that hold anomalib's ``PerlinAnomalyGenerator`` (Draem) get this one instead. Supersimplenet, which
    disturbs features, gets images with defects, and features as they are. After training the model has its own again.

    Args:
        synthesis (Synthesis): Where defects come from, see :class:`anomalib_ddpm_st.DdpmSt`. Defaults to ``"mixture"``.
        probability (float): Share of training images that get a defect. Defaults to ``0.5``.
        blend_factor (list[float] | None): Range of the opacity of textures. ``None`` takes ``[0.5, 1.0]``.
            Defaults to ``None``.
        foreground (Literal["auto", "off"]): Keep defects on an object that lies on a plain background, or put them
            anywhere. Defaults to ``"auto"``.
        diffusion_path (str | None): Folder of a trained DDPM. ``None`` trains one. Defaults to ``None``.
        cache_dir (str | None): Folder for DDPMs and banks. ``None`` takes the user's cache folder.
            Defaults to ``None``.
        diffusion_steps (int): Training steps of the DDPM. Defaults to ``1000``.
        bank_size (int): Number of textures in the bank. Defaults to ``256``.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib.models import Draem
        >>> engine = Engine(callbacks=[SyntheticAnomalies()], max_epochs=10)
        >>> engine.train(Draem(), datamodule=MVTecAD(category="bottle"))  # doctest: +SKIP
    """

    def __init__(
        self,
        synthesis: Synthesis = "mixture",
        probability: float = 0.5,
        blend_factor: list[float] | None = None,
        foreground: Literal["auto", "off"] = "auto",
        diffusion_path: str | None = None,
        cache_dir: str | None = None,
        diffusion_steps: int = 1000,
        bank_size: int = 256,
    ) -> None:
        self.settings: dict[str, Any] = {
            "synthesis": synthesis,
            "probability": probability,
            "blend_factor": blend_factor or [0.5, 1.0],
            "foreground": foreground,
            "diffusion_path": diffusion_path,
            "cache_dir": cache_dir,
            "diffusion_steps": diffusion_steps,
            "bank_size": bank_size,
        }
        # A bad setting is named now, not when training starts.
        DiffusionAnomalyGenerator(None, probability, self.settings["blend_factor"], foreground=foreground)
        self.generator: NormalizedGenerator | None = None
        self._in_batch = False
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the generator and put it in the place of the model's own.

        Args:
            trainer (Trainer): Trainer.
            pl_module (LightningModule): Model of anomalib that makes defects to train with.
            stage (str): Nothing is done unless ``"fit"``.

        Raises:
            TypeError: If the model makes no defects, or is not given a datamodule of anomalib.
        """
        if stage != "fit":
            return
        places, model = self._places(pl_module), cast("AnomalibModule", pl_module)
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, AnomalibDataModule):
            msg = "SyntheticAnomalies reads the normal images of an anomalib datamodule: pass one to the Engine."
            raise TypeError(msg)
        transform = getattr(model.pre_processor, "transform", None)
        generator = prepare_generator(
            normal_paths(datamodule.train_data.samples),
            image_size=model.input_size or (256, 256),
            device=trainer.strategy.root_device,
            precision=str(trainer.precision),
            **self.settings,
        )
        self.generator = NormalizedGenerator(generator, find_transform(transform, Normalize))
        self._in_batch = isinstance(pl_module, Supersimplenet)
        for parent, name in places:
            self._replaced.append((parent, name, getattr(parent, name)))
            setattr(parent, name, FeaturesAsTheyAre() if self._in_batch else self.generator)

    @staticmethod
    def _places(model: LightningModule) -> list[tuple[nn.Module, str]]:
        """Where a model holds its generator: the module that has it, and the name."""
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
        """Put defects into the images of a model that looks for them there, and into its masks and labels."""
        del trainer, pl_module, batch_idx
        if not self._in_batch or self.generator is None:
            return
        image, mask = self.generator(batch.image)
        batch.update(image=image, gt_mask=mask[:, 0].bool(), gt_label=mask.flatten(1).any(dim=1))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the model back what it had."""
        del trainer, pl_module, stage
        while self._replaced:
            parent, name, original = self._replaced.pop()
            setattr(parent, name, original)
        self.generator, self._in_batch = None, False
