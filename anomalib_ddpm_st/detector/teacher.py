# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Teacher: a frozen pre-trained backbone."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from anomalib.models.components.feature_extractors import TimmFeatureExtractor
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a local file.

    Args:
        path (str | Path): Safetensors file, or one written by ``torch.save`` (``.pth``, ``.pt``, ``.bin``).

    Returns:
        dict[str, torch.Tensor]: Tensors by name, without the prefixes that wrappers and trainers add.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"The weight file {path} does not exist: set teacher_weights to the path of a .pth or .safetensors file."
        raise FileNotFoundError(msg)
    try:
        state = load_state_dict(str(path), use_ema=False)
        return {
            name.removeprefix("module.").removeprefix("model."): value
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
    except (
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        UnpicklingError,
    ) as error:
        msg = f"The weight file {path} holds no readable state dict: {error}"
        raise ValueError(msg) from error


def build_extractor(backbone: str, layers: Sequence[str], pre_trained: bool = False) -> TimmFeatureExtractor:
    """Build a feature extractor and report clearly what is wrong with its name, its layers or the download.

    Args:
        backbone (str): Name of a timm CNN.
        layers (Sequence[str]): Names of the layers to take features from, from fine to coarse.
        pre_trained (bool): Download the weights from timm's hub. Defaults to ``False``.

    Returns:
        TimmFeatureExtractor: Extractor.

    Raises:
        ConnectionError: If the weights could not be downloaded.
        ValueError: If timm has no backbone of that name, or the backbone has no such layers.
    """
    if not timm.is_model(backbone):
        similar = difflib.get_close_matches(backbone, timm.list_models(), n=5)
        hint = f" Did you mean one of {', '.join(similar)}?" if similar else " timm.list_models() lists the names."
        msg = f"timm has no backbone named '{backbone}'.{hint}"
        raise ValueError(msg)
    if "vit" in backbone.lower():
        msg = f"The backbone '{backbone}' has no multi-scale features: choose a CNN such as resnet18."
        raise ValueError(msg)
    try:
        extractor = TimmFeatureExtractor(backbone, list(layers), pre_trained)
    except (OSError, RuntimeError, ValueError) as error:
        # These include the hub's errors; without pre_trained nothing is downloaded.
        if not pre_trained:
            msg = f"The backbone '{backbone}' has no multi-scale features (choose a CNN such as resnet18): {error}"
            raise ValueError(msg) from error
        msg = (
            f"The weights of '{backbone}' could not be downloaded. Without a network, set teacher_weights to a local "
            "file."
        )
        raise ConnectionError(msg) from error
    if list(extractor.layers) != list(layers):
        msg = f"The backbone '{backbone}' has only {extractor.layers} of the layers {list(layers)}."
        raise ValueError(msg)
    if list(extractor.reductions) != sorted(extractor.reductions):
        msg = f"The layers {list(layers)} must be ordered from fine to coarse."
        raise ValueError(msg)
    return extractor


class Teacher(nn.Module):
    """Frozen pre-trained backbone that normalises images itself.

    Args:
        backbone (str): Name of a timm CNN. Defaults to ``"resnet18"``.
        layers (Sequence[str]): Names of the layers to take features from, from fine to coarse.
            Defaults to ``("layer1", "layer2", "layer3")``.

    Raises:
        ValueError: If timm has no backbone of that name, or the backbone has no such layers.
    """

    def __init__(self, backbone: str = "resnet18", layers: Sequence[str] = ("layer1", "layer2", "layer3")) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.has_weights: torch.Tensor
        self.backbone = backbone
        self.layers = list(layers)
        self.extractor = build_extractor(backbone, layers)
        self.extractor.requires_grad_(requires_grad=False)
        config = self.extractor.feature_extractor.default_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).reshape(1, 3, 1, 1), persistent=False)
        # Saved with the weights, so that loading a checkpoint downloads nothing.
        self.register_buffer("has_weights", torch.tensor(data=False))
        # From the start: it is used before a training puts the model into a mode.
        self.eval()

    @property
    def out_dims(self) -> list[int]:
        """Number of channels of each level."""
        return list(self.extractor.out_dims)

    def load_weights(self, path: str | Path | None = None) -> None:
        """Load pre-trained weights from a local file or from timm's hub.

        Args:
            path (str | Path | None): Local file that holds every weight of the layers used. ``None`` downloads the
                weights. Defaults to ``None``.

        Raises:
            ConnectionError: If the weights could not be downloaded.
            FileNotFoundError: If the file does not exist.
            ValueError: If the weights do not fit the backbone.
        """
        network = self.extractor.feature_extractor
        if path is None:
            source = build_extractor(self.backbone, self.layers, pre_trained=True)
            network.load_state_dict(source.feature_extractor.state_dict())
        else:
            state = read_weights(path)
            expected = network.state_dict()
            unfit = [
                name
                for name, value in expected.items()
                if not name.endswith("num_batches_tracked") and (name not in state or state[name].shape != value.shape)
            ]
            if unfit:
                msg = (
                    f"The weights in {path} do not fit the backbone '{self.backbone}': {len(unfit)} of "
                    f"{len(expected)} tensors are missing or have another shape, the first is '{unfit[0]}'."
                )
                raise ValueError(msg)
            network.load_state_dict({name: state.get(name, value) for name, value in expected.items()})
        self.has_weights.fill_(value=True)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever the mode of the model."""
        del mode
        return super().train(mode=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Extract features.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1]; they are normalised by the
                statistics that the backbone was trained with.

        Returns:
            list[torch.Tensor]: Features of each level, of shape ``(B, C_l, H / r_l, W / r_l)``.
        """
        return list(self.extractor((images - self.mean) / self.std).values())
