# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Teacher: a frozen pre-trained backbone."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn

from .extractor import FeatureExtractor
from .layers import resize


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


def match_names(state: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Rename tensors as timm's wrapper of a CNN does, which joins the first parts of some names by underscores.

    Args:
        state (Mapping[str, torch.Tensor]): Tensors by the names of the whole backbone.
        expected (Mapping[str, Any]): What the wrapper holds, by name.

    Returns:
        dict[str, torch.Tensor]: Tensors by the names of the wrapper where it holds them, others as they are.
    """
    renamed = {}
    for name, value in state.items():
        joined = (name.replace(".", "_", count) for count in range(name.count(".")))
        renamed[next((candidate for candidate in joined if candidate in expected), name)] = value
    return renamed


class Teacher(nn.Module):
    """Frozen pre-trained backbone that normalises images itself.

    A vision transformer cuts images into patches. Images whose sides are no multiples of the patch are resized to the
    nearest size whose sides are, such as 256 to 252 pixels for patches of 14.

    Args:
        backbone (str): Name of a timm model. Defaults to ``"resnet18"``.
        layers (Sequence[str] | None): Names of the layers to take features from, from fine to coarse. ``None`` takes
            those of :func:`~anomalib_ddpm_st.detector.extractor.default_layers`, which are ``layer1`` to ``layer3`` of
            a ResNet. Defaults to ``None``.

    Raises:
        ValueError: If timm has no backbone of that name, or the backbone cannot serve, or has no such layers.
    """

    def __init__(self, backbone: str = "resnet18", layers: Sequence[str] | None = None) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.has_weights: torch.Tensor
        self.backbone = backbone
        self.extractor = FeatureExtractor(backbone, layers)
        self.layers = self.extractor.layers
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

    @property
    def patch_size(self) -> int | None:
        """Side of a patch of a vision transformer in pixels; ``None`` for backbones of several resolutions."""
        return self.extractor.reductions[0] if self.extractor.one_resolution else None

    @property
    def has_positions(self) -> bool:
        """Whether position embeddings are resampled to the size of the images."""
        return self.extractor.has_positions

    def load_weights(self, path: str | Path | None = None) -> None:
        """Load pre-trained weights from a local file or from timm's hub.

        Args:
            path (str | Path | None): Local file that holds every weight of the layers used. ``None`` downloads the
                weights. Defaults to ``None``.

        Raises:
            ConnectionError: If the weights could not be downloaded.
            FileNotFoundError: If the file does not exist.
            ValueError: If the weights do not fit the backbone, or the hub has none of it.
        """
        network = self.extractor.network
        if path is None:
            source = FeatureExtractor(self.backbone, self.layers, pre_trained=True)
            network.load_state_dict(source.network.state_dict())
        else:
            expected = network.state_dict()
            state = match_names(read_weights(path), expected)
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

    def fixed_size(self, height: int, width: int) -> AbstractContextManager[None]:
        """Prepare for an export: position embeddings are resampled once, for images of one size.

        Args:
            height (int): Height of the images that the teacher sees.
            width (int): Their width.

        Returns:
            AbstractContextManager[None]: Context to export in.
        """
        return self.extractor.fixed_size(*self._whole_patches((height, width)))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Extract features.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1]; they are normalised by the
                statistics that the backbone was trained with.

        Returns:
            list[torch.Tensor]: Features of each level, of shape ``(B, C_l, H / r_l, W / r_l)``.

        Raises:
            ValueError: If a backbone with position embeddings is exported for images of any size.
        """
        if self.patch_size is not None:
            sides = tuple(images.shape[-2:])
            if self.has_positions and not all(isinstance(side, int) for side in sides):
                msg = (
                    f"The backbone '{self.backbone}' can be exported for one size of images only: pass input_size, or "
                    "give the pre-processor a Resize to a height and a width."
                )
                raise ValueError(msg)
            whole = self._whole_patches(sides)
            images = images if whole == sides else resize(images, torch.Size(whole))
        return self.extractor((images - self.mean) / self.std)

    def _whole_patches(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Nearest sides that patches fill, at least one patch."""
        patch = self.patch_size or 1
        return tuple(max(1, (side + patch // 2) // patch) * patch for side in sides)
