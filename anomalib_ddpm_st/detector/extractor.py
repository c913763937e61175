# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Features of any timm backbone that gives maps: CNNs, transformers of several scales and plain vision transformers."""

import difflib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import nn

NUM_LEVELS = 3
# Finer features than every fourth pixel cost much and tell little.
MIN_REDUCTION = 4
POSSIBLE = (
    "choose a CNN such as resnet18 or wide_resnet50_2, or a vision transformer such as vit_small_patch14_dinov2.lvd142m"
)
# What makes a transformer take images of any size; timm has no common name for it.
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
# What timm raises where a model has no features, or does not know an argument.
TIMM_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class FeatureExtractor(nn.Module):
    """Feature maps of a timm backbone, frozen.

    A vision transformer has one resolution: its levels are the patch tokens of different blocks. Its position
    embeddings are resampled to the size of the images.

    Args:
        backbone (str): Name of a timm model.
        layers (Sequence[str] | None): Names of the layers to take features from, from fine to coarse. ``None`` takes
            those of :func:`default_layers`. Defaults to ``None``.
        pre_trained (bool): Download the weights from timm's hub. Defaults to ``False``.

    Attributes:
        layers (list[str]): Names of the layers.
        out_dims (list[int]): Number of channels of each level.
        reductions (list[int]): Pixels of the image for one place of each level.
        one_resolution (bool): Whether all layers of the backbone have the same resolution.

    Raises:
        ConnectionError: If the weights could not be downloaded.
        ValueError: If timm has no backbone of that name, or the backbone cannot serve, or has no such layers.
    """

    def __init__(self, backbone: str, layers: Sequence[str] | None = None, pre_trained: bool = False) -> None:
        super().__init__()
        _check_name(backbone)
        arguments, info = _probe(backbone)
        names = [level["module"] for level in info]
        reductions = [level["reduction"] for level in info]
        self.one_resolution = len(set(reductions)) == 1
        self.layers = list(default_layers(names, reductions) if layers is None else layers)
        missing = [layer for layer in self.layers if layer not in names]
        if missing or not self.layers:
            msg = f"The backbone '{backbone}' has no layers {missing}: choose from {', '.join(names)}."
            raise ValueError(msg)
        indices = [names.index(layer) for layer in self.layers]
        self.reductions = [reductions[index] for index in indices]
        if indices != sorted(set(indices)) or self.reductions != sorted(self.reductions):
            msg = f"The layers {self.layers} must be ordered from fine to coarse, each of them once."
            raise ValueError(msg)
        self.feature_extractor = _create(backbone, {**arguments, "out_indices": indices}, pre_trained)
        self.out_dims = list(self.feature_extractor.feature_info.channels())
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """Backbone without timm's wrapper, with the names that weight files have."""
        model = getattr(self.feature_extractor, "model", None)
        return model if isinstance(model, nn.Module) else self.feature_extractor

    @property
    def has_positions(self) -> bool:
        """Whether position embeddings are resampled to the size of the images."""
        network = self.network
        return isinstance(getattr(network, "pos_embed", None), nn.Parameter) and hasattr(network, "set_input_size")

    @contextmanager
    def fixed_size(self, height: int, width: int) -> Generator[None]:
        """Resample position embeddings once, for images of one size; exported models compute it differently.

        Args:
            height (int): Height of the images that the backbone sees.
            width (int): Their width.

        Yields:
            None: Position embeddings are as before afterwards.
        """
        network: Any = self.network
        if not self.has_positions:
            yield
            return
        positions, size = network.pos_embed, network.patch_embed.img_size
        network.set_input_size(img_size=(height, width))
        network.pos_embed.requires_grad_(requires_grad=False)
        try:
            yield
        finally:
            network.set_input_size(img_size=size)
            network.pos_embed = positions

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Extract features.

        Args:
            images (torch.Tensor): Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            list[torch.Tensor]: Features of each level, of shape ``(B, C_l, H / r_l, W / r_l)``.
        """
        features = self.feature_extractor(images)
        if getattr(self.feature_extractor, "output_fmt", None) == Format.NHWC:
            return [level.permute(0, 3, 1, 2).contiguous() for level in features]
        return list(features)


def default_layers(names: Sequence[str], reductions: Sequence[int]) -> list[str]:
    """Layers to compare if none are named.

    These are the last ones at a quarter, an eighth and a sixteenth of the image's resolution, or the three finest that
    there are. All layers of a plain vision transformer have one resolution; then they are those after a quarter, a half
    and three quarters of its depth: the last blocks tell what an image shows, and little about where it is damaged.

    Args:
        names (Sequence[str]): Names of all layers.
        reductions (Sequence[int]): Pixels of the image for one place of each of them.

    Returns:
        list[str]: Names, from fine to coarse.
    """
    if len(set(reductions)) == 1:
        depths = {max(1, round(len(names) * part / 4)) for part in (1, 2, 3)}
        return [names[depth - 1] for depth in sorted(depths)]
    last = {reduction: name for name, reduction in zip(names, reductions, strict=True) if reduction >= MIN_REDUCTION}
    return [last[reduction] for reduction in sorted(last)[:NUM_LEVELS]]


def _check_name(backbone: str) -> None:
    """Refuse names that timm does not know."""
    if not timm.is_model(backbone):
        similar = difflib.get_close_matches(backbone, timm.list_models(), n=5)
        hint = f" Did you mean one of {', '.join(similar)}?" if similar else " timm.list_models() lists the names."
        msg = f"timm has no backbone named '{backbone}'.{hint}"
        raise ValueError(msg)
    architecture, _, tag = backbone.partition(".")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and known and backbone not in known:
        msg = f"timm has no weights named '{backbone}': choose from {', '.join(known)}."
        raise ValueError(msg)


def _create(backbone: str, arguments: dict[str, Any], pre_trained: bool = False) -> Any:  # noqa: ANN401
    """Create a timm model that returns features."""
    if not pre_trained:
        return timm.create_model(backbone, pretrained=False, features_only=True, exportable=True, **arguments).eval()
    if not timm.is_model_pretrained(backbone):
        msg = f"timm has no weights of '{backbone}': set teacher_weights to a local file, or choose another backbone."
        raise ValueError(msg)
    try:
        return timm.create_model(backbone, pretrained=True, features_only=True, exportable=True, **arguments).eval()
    except (OSError, RuntimeError, ValueError) as error:  # the hub's errors are among these
        msg = (
            f"The weights of '{backbone}' could not be downloaded. Without a network, set teacher_weights to a local "
            "file."
        )
        raise ConnectionError(msg) from error


def _probe(backbone: str) -> tuple[dict[str, bool], list[dict[str, Any]]]:
    """Find out what makes a backbone take images of any size, and which layers it has.

    Args:
        backbone (str): Name of a timm model.

    Returns:
        tuple[dict[str, bool], list[dict[str, Any]]]: Arguments of ``timm.create_model``, and timm's description of each
        layer.

    Raises:
        ValueError: If the backbone has no feature maps, or takes images of one size alone.
    """
    config = timm.get_pretrained_cfg(backbone)
    is_fixed = config is not None and config.fixed_input_size
    reason = "has no feature maps"
    for option in ANY_SIZE if is_fixed else ANY_SIZE[-1:]:
        try:
            wrapper = _create(backbone, option)
        except TIMM_ERRORS:
            continue
        # The wrapper of a transformer lists only the layers that it returns.
        network = getattr(wrapper, "model", None)
        info = list(wrapper.feature_info.info if network is None else network.feature_info)
        if (network is None and not is_fixed) or _takes_any_size(wrapper, info):
            return option, info
        reason = f"takes images of {' x '.join(map(str, wrapper.default_cfg['input_size'][1:]))} pixels alone"
    msg = f"The backbone '{backbone}' {reason} and cannot be the teacher: {POSSIBLE}."
    raise ValueError(msg)


@torch.no_grad()
def _takes_any_size(wrapper: Any, info: Sequence[dict[str, Any]]) -> bool:  # noqa: ANN401
    """Whether a model gives maps of images of another size than its own."""
    coarsest = max(level["reduction"] for level in info)
    height, width = 2 * coarsest, 3 * coarsest
    try:
        maps = wrapper(torch.zeros(1, 3, height, width))
    except TIMM_ERRORS:
        return False
    sides = (1, 2) if getattr(wrapper, "output_fmt", None) == Format.NHWC else (2, 3)
    expected = [(height // reduction, width // reduction) for reduction in wrapper.feature_info.reduction()]
    return [tuple(level.shape[side] for side in sides) for level in maps] == expected
