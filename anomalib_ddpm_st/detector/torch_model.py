# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Asymmetric student-teacher network with a segmentation head."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, starmap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, get_args

import timm
import torch
from anomalib.data import InferenceBatch
from anomalib.models.components.feature_extractors import TimmFeatureExtractor
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from .memory import NormalMemory

MAX_DECODER_WIDTH = 256
BOTTLENECK_WIDTH = 256
DEFAULT_MEMORY_SIZE = 1024
DEFAULT_MEMORY_WEIGHT = 1 / 3
# Smallest spread that scores of normal images count as having: those seen in training can be all alike.
MIN_SPREAD = 0.02
MIN_LENGTH = 1e-12

StudentKind = Literal["reverse", "encoder", "symmetric"]
HeadInput = Literal["product", "distance", "both"]


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a local file.

    Args:
        path (str | Path): File ending in ``.safetensors``, or one of ``torch.save`` (``.pth``, ``.pt``, ``.bin``).

    Returns:
        dict[str, torch.Tensor]: Tensors by name, without the prefixes that wrappers and trainers add.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no weight file {path}: give the path of a .pth or .safetensors file as teacher_weights."
        raise FileNotFoundError(msg)
    try:
        if path.suffix == ".safetensors":
            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors: dict[str, Any] = state.get("state_dict", state)
        return {
            name.removeprefix("module.").removeprefix("model."): value
            for name, value in tensors.items()
            if isinstance(value, torch.Tensor)
        }
    except (AttributeError, EOFError, IndexError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        msg = f"The weight file {path} holds no readable state dict: {error}"
        raise ValueError(msg) from error


def build_extractor(
    backbone: str,
    layers: Sequence[str],
    pre_trained: bool = False,
    requires_grad: bool = False,
) -> TimmFeatureExtractor:
    """Build a feature extractor and say plainly what is wrong with its name, its layers or the hub.

    Args:
        backbone (str): Name of a timm CNN.
        layers (Sequence[str]): Names of the layers to take features from, from fine to coarse.
        pre_trained (bool): Load the weights from timm's hub. Defaults to ``False``.
        requires_grad (bool): Whether gradients are computed. Defaults to ``False``.

    Returns:
        TimmFeatureExtractor: Extractor.

    Raises:
        ConnectionError: If the weights cannot be had from the hub.
        ValueError: If timm knows no such backbone, or the backbone no such layers.
    """
    if not timm.is_model(backbone):
        similar = difflib.get_close_matches(backbone, timm.list_models(), n=5)
        hint = f" Did you mean one of {', '.join(similar)}?" if similar else " timm.list_models() lists the names."
        msg = f"timm knows no backbone '{backbone}'.{hint}"
        raise ValueError(msg)
    if "vit" in backbone.lower():
        msg = f"The backbone '{backbone}' gives no multi-scale features: choose a CNN such as resnet18."
        raise ValueError(msg)
    try:
        extractor = TimmFeatureExtractor(backbone, list(layers), pre_trained, requires_grad)
    except (OSError, RuntimeError, ValueError) as error:
        # Of these the hub's own errors are a part; without pre_trained nothing is asked of it.
        if not pre_trained:
            msg = f"The backbone '{backbone}' gives no multi-scale features (choose a CNN such as resnet18): {error}"
            raise ValueError(msg) from error
        msg = (
            f"The weights of '{backbone}' could not be had from the hub. Without a network, give a local file as "
            "teacher_weights."
        )
        raise ConnectionError(msg) from error
    if list(extractor.layers) != list(layers):
        msg = f"The backbone '{backbone}' has only {extractor.layers} of the layers {list(layers)}."
        raise ValueError(msg)
    if list(extractor.reductions) != sorted(extractor.reductions):
        msg = f"The layers {list(layers)} must go from fine to coarse."
        raise ValueError(msg)
    return extractor


class Teacher(nn.Module):
    """Frozen pre-trained backbone, with its own normalisation of images.

    Args:
        backbone (str): Name of a timm CNN.
        layers (Sequence[str]): Names of the layers to take features from, from fine to coarse.

    Raises:
        ValueError: If timm knows no such backbone, or the backbone no such layers.
    """

    def __init__(self, backbone: str, layers: Sequence[str]) -> None:
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
        # Saved with the weights, so that a loaded checkpoint does not ask the hub again.
        self.register_buffer("has_weights", torch.tensor(data=False))

    @property
    def out_dims(self) -> list[int]:
        """Number of channels of each level."""
        return list(self.extractor.out_dims)

    def load_weights(self, path: str | Path | None = None) -> None:
        """Load pre-trained weights from a local file or from timm's hub.

        Args:
            path (str | Path | None): Local file; every weight of the layers used must be in it. ``None`` asks the hub.

        Raises:
            ConnectionError: If the weights cannot be had from the hub.
            FileNotFoundError: If there is no such file.
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
                    f"{len(expected)} tensors are missing or of another shape, the first is '{unfit[0]}'."
                )
                raise ValueError(msg)
            network.load_state_dict({name: state.get(name, value) for name, value in expected.items()})
        self.has_weights.fill_(value=True)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode whatever the mode of the model."""
        del mode
        return super().train(mode=False)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images in [0, 1] by the statistics that the backbone was trained with.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)``.

        Returns:
            torch.Tensor: Normalised images of the same shape.
        """
        return (images - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Extract features.

        Args:
            images (torch.Tensor): Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            list[torch.Tensor]: Features of each level, of shape ``(B, C_l, H / r_l, W / r_l)``.
        """
        return list(self.extractor(images).values())


def conv_block(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a skip around them (He et al., 2016).

    Args:
        width (int): Number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_block(width, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute features of the same shape, ``(B, C, H, W)``."""
        return functional.relu(hidden + self.layers(hidden))


class Decoder(nn.Module):
    """From the bottleneck back to the teacher's levels, coarse to fine, without skips.

    Args:
        in_width (int): Number of channels of the bottleneck.
        out_dims (Sequence[int]): Number of channels of each level, from fine to coarse.
    """

    def __init__(self, in_width: int, out_dims: Sequence[int]) -> None:
        super().__init__()
        widths = [min(dim, MAX_DECODER_WIDTH) for dim in out_dims]
        in_widths = [*widths[1:], in_width]
        # Channels are reduced before the features are enlarged: the same result as after it for a fraction of the cost.
        self.reduce = nn.ModuleList(
            nn.Conv2d(before, width, 1, bias=False) for before, width in zip(in_widths, widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True)) for width in widths)
        self.blocks = nn.ModuleList(conv_block(width, width) for width in widths)
        self.outputs = nn.ModuleList(nn.Conv2d(width, dim, 1) for width, dim in zip(widths, out_dims, strict=True))

    def forward(self, hidden: torch.Tensor, sizes: Sequence[torch.Size]) -> list[torch.Tensor]:
        """Restore features.

        Args:
            hidden (torch.Tensor): Bottleneck of shape ``(B, C, h, w)``.
            sizes (Sequence[torch.Size]): Height and width of each level, from fine to coarse.

        Returns:
            list[torch.Tensor]: Features of each level, from fine to coarse.
        """
        restored = []
        levels = zip(self.reduce, self.norms, self.blocks, self.outputs, sizes, strict=True)
        for reduce, norm, block, output, size in reversed(list(levels)):
            enlarged = functional.interpolate(reduce(hidden), size=size, mode="bilinear", align_corners=False)
            hidden = block(norm(enlarged))
            restored.append(output(hidden))
        return restored[::-1]


class ReverseStudent(nn.Module):
    """Restores the teacher's features of the normal image from the teacher's features of the defective one.

    The asymmetry to the teacher: the student runs the other way. The levels are fused at the coarsest resolution and
    pass a bottleneck of half of it, from which a light decoder without skips builds them anew (after the reverse
    distillation of Deng & Li, 2022). It has no encoder of its own, which costs little in training and in use.

    Args:
        out_dims (Sequence[int]): Number of channels of each level.
    """

    def __init__(self, out_dims: Sequence[int]) -> None:
        super().__init__()
        fused = out_dims[-1]
        # Widths of each level on its way to the coarsest resolution, doubled where it is halved but not at first.
        lateral_widths = [
            [dim, *(min(dim * 2 ** (step - 1), fused) for step in range(1, len(out_dims) - level))]
            for level, dim in enumerate(out_dims)
        ]
        self.lateral = nn.ModuleList(
            nn.Sequential(*(conv_block(before, after, stride=2) for before, after in pairwise(widths)))
            for widths in lateral_widths
        )
        self.bottleneck = nn.Sequential(
            nn.Conv2d(sum(widths[-1] for widths in lateral_widths), fused, 1, bias=False),
            nn.BatchNorm2d(fused),
            nn.ReLU(inplace=True),
            conv_block(fused, BOTTLENECK_WIDTH, stride=2),
            ResidualBlock(BOTTLENECK_WIDTH),
        )
        self.decoder = Decoder(BOTTLENECK_WIDTH, out_dims)

    def forward(self, images: torch.Tensor, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Restore the teacher's features.

        Args:
            images (torch.Tensor): Unused.
            features (Sequence[torch.Tensor]): Teacher's features of the images with or without defects.

        Returns:
            list[torch.Tensor]: Restored features of each level, from fine to coarse, of the teacher's shapes.
        """
        del images
        size = features[-1].shape[-2:]
        fused = [
            functional.interpolate(lateral(level), size=size, mode="bilinear", align_corners=False)
            for lateral, level in zip(self.lateral, features, strict=True)
        ]
        hidden = self.bottleneck(torch.cat(fused, dim=1))
        return self.decoder(hidden, [level.shape[-2:] for level in features])


class EncoderStudent(nn.Module):
    """Encoder of its own, bottleneck and decoder without skips.

    The encoder starts from the teacher's weights; its batch normalisation stays frozen.

    Args:
        backbone (str): Name of the timm CNN that the encoder is.
        layers (Sequence[str]): Layers whose features are restored, from fine to coarse.
        out_dims (Sequence[int]): Number of channels of each level.
    """

    def __init__(self, backbone: str, layers: Sequence[str], out_dims: Sequence[int]) -> None:
        super().__init__()
        self.encoder = build_extractor(backbone, layers[-1:], requires_grad=True)
        self.bottleneck = nn.Sequential(
            conv_block(out_dims[-1], BOTTLENECK_WIDTH, stride=2),
            ResidualBlock(BOTTLENECK_WIDTH),
        )
        self.decoder = Decoder(BOTTLENECK_WIDTH, out_dims)

    def train(self, mode: bool = True) -> "EncoderStudent":
        """Keep the batch normalisation of the encoder in evaluation mode."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
                module.eval()
        return self

    def forward(self, images: torch.Tensor, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Restore the teacher's features.

        Args:
            images (torch.Tensor): Normalised images of shape ``(B, 3, H, W)``, with or without defects.
            features (Sequence[torch.Tensor]): Teacher's features of them; only their shapes are used.

        Returns:
            list[torch.Tensor]: Restored features of each level, from fine to coarse, of the teacher's shapes.
        """
        hidden = self.bottleneck(next(iter(self.encoder(images).values())))
        return self.decoder(hidden, [level.shape[-2:] for level in features])


class SymmetricStudent(nn.Module):
    """The teacher's own architecture with random weights, as in STFPM: the control of the asymmetry.

    Args:
        backbone (str): Name of the timm CNN.
        layers (Sequence[str]): Layers whose features are restored, from fine to coarse.
    """

    def __init__(self, backbone: str, layers: Sequence[str]) -> None:
        super().__init__()
        self.encoder = build_extractor(backbone, layers, requires_grad=True)

    def forward(self, images: torch.Tensor, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Restore the teacher's features.

        Args:
            images (torch.Tensor): Normalised images of shape ``(B, 3, H, W)``, with or without defects.
            features (Sequence[torch.Tensor]): Unused.

        Returns:
            list[torch.Tensor]: Features of each level, from fine to coarse.
        """
        del features
        return list(self.encoder(images).values())


class SegmentationHead(nn.Module):
    """Segment defects in the level-wise discrepancy of teacher and student.

    Each level is reduced to a few channels at its own resolution before it is enlarged (both are linear, so the order
    does not change the result, only the cost). Context comes from dilated convolutions at half of the finest
    resolution (as ASPP) and from the mean over the image.

    Args:
        in_dims (Sequence[int]): Number of channels of each level.
        width (int): Number of hidden channels. Defaults to ``64``.
        dilations (Sequence[int]): Rates of the dilated convolutions. Defaults to ``(1, 3, 6)``.
    """

    def __init__(self, in_dims: Sequence[int], width: int = 64, dilations: Sequence[int] = (1, 3, 6)) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(dim, width, 1, bias=False) for dim in in_dims)
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.fine = conv_block(width, width)
        self.dilated = nn.ModuleList(conv_block(width, width, dilation=dilation) for dilation in dilations)
        self.pooled = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True))
        self.context = nn.Sequential(
            nn.Conv2d(width * (len(dilations) + 1), width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.merge = nn.Sequential(conv_block(width, width // 2), nn.Conv2d(width // 2, 1, 1))

    def forward(self, products: Sequence[torch.Tensor]) -> torch.Tensor:
        """Segment defects.

        Args:
            products (Sequence[torch.Tensor]): Products of normalised features of each level, from fine to coarse,
                each of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            torch.Tensor: Logits of shape ``(B, 1, h_0, w_0)``, the resolution of the finest level.
        """
        size = products[0].shape[-2:]
        hidden = self.reduce[0](products[0])
        for reduce, product in zip(self.reduce[1:], products[1:], strict=True):
            hidden = hidden + functional.interpolate(reduce(product), size=size, mode="bilinear", align_corners=False)
        hidden = self.fine(self.norm(hidden))
        half = functional.avg_pool2d(hidden, 2, ceil_mode=True)
        pooled = self.pooled(half.mean(dim=(2, 3), keepdim=True)).expand_as(half)
        context = self.context(torch.cat([*(block(half) for block in self.dilated), pooled], dim=1))
        context = functional.interpolate(context, size=size, mode="bilinear", align_corners=False)
        return self.merge(hidden + context)


class DdpmStModel(nn.Module):
    """Asymmetric student-teacher detector.

    Three components look for defects: the segmentation, the distance to the student and the distance to the memory.
    The anomaly map is their weighted mean. The score of an image is a weighted mean of the components' own scores, each
    the mean of its highest pixels: the weights are those of the map over the spread of the component's scores among
    normal images (:meth:`calibrate`), so that each counts by how far it stands out from what is normal.

    Args:
        backbone (str): Name of the timm CNN of the teacher and of the student's encoder. Defaults to ``"resnet18"``.
        layers (Sequence[str]): Layers to compare, from fine to coarse. Defaults to ``("layer1", "layer2", "layer3")``.
        top_k (int): Number of pixels of a component whose mean is its score. Defaults to ``100``.
        distance_weight (float): Share of the cosine distance to the student in what of the anomaly map the memory
            leaves; the rest is the segmentation. Defaults to ``0.5``.
        memory_size (int): Number of normal features of each level that the memory holds. Defaults to ``1024``.
        memory_weight (float): Share of the distance to the memory in the anomaly map; with 0 there is no memory.
            With the default, a third, the three have equal shares.
        student (StudentKind): ``"reverse"``, ``"encoder"`` or ``"symmetric"``, see the three classes.
            Defaults to ``"reverse"``.
        head_input (HeadInput): What the segmentation head sees of each level: the element-wise ``"product"`` of
            directions (Zhang et al., 2023), their cosine ``"distance"``, or ``"both"``. Defaults to ``"product"``.

    Raises:
        ValueError: If the kind of student or of head input is unknown, or a share or the size of the memory is out of
            its range.

    Example:
        >>> import torch
        >>> model = DdpmStModel().eval()
        >>> output = model(torch.rand(2, 3, 64, 64))
        >>> output.anomaly_map.shape, output.pred_score.shape
        (torch.Size([2, 1, 64, 64]), torch.Size([2]))
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[str] = ("layer1", "layer2", "layer3"),
        top_k: int = 100,
        distance_weight: float = 0.5,
        memory_size: int = DEFAULT_MEMORY_SIZE,
        memory_weight: float = DEFAULT_MEMORY_WEIGHT,
        student: StudentKind = "reverse",
        head_input: HeadInput = "product",
    ) -> None:
        super().__init__()
        for name, share in (("distance_weight", distance_weight), ("memory_weight", memory_weight)):
            if not 0 <= share <= 1:
                msg = f"{name} must lie in [0, 1], but is {share}."
                raise ValueError(msg)
        if memory_size < 1:
            msg = f"memory_size must be at least 1, but is {memory_size}; memory_weight=0 turns the memory off."
            raise ValueError(msg)
        for name, value, known in (("student", student, StudentKind), ("head_input", head_input, HeadInput)):
            if value not in get_args(known):
                msg = f"Unknown {name} '{value}': choose one of {', '.join(get_args(known))}."
                raise ValueError(msg)
        self.top_k = top_k
        self.distance_weight = distance_weight
        self.memory_weight = memory_weight
        self.head_input = head_input
        self.teacher = Teacher(backbone, layers)
        dims = self.teacher.out_dims
        self.student: ReverseStudent | EncoderStudent | SymmetricStudent
        if student == "reverse":
            self.student = ReverseStudent(dims)
        elif student == "encoder":
            self.student = EncoderStudent(backbone, layers, dims)
        else:
            self.student = SymmetricStudent(backbone, layers)
        extra = {"product": dims, "distance": [1] * len(dims), "both": [dim + 1 for dim in dims]}
        self.head = SegmentationHead(extra[head_input])
        self.memory = NormalMemory(dims, memory_size) if memory_weight > 0 else None
        self.score_spread: torch.Tensor
        self.register_buffer("score_spread", torch.ones(len(self.shares)))

    @property
    def shares(self) -> list[float]:
        """Shares of segmentation, distance to the student and, if there is one, distance to the memory in the map."""
        if self.memory is None:
            return [1 - self.distance_weight, self.distance_weight]
        left = 1 - self.memory_weight
        return [left * (1 - self.distance_weight), left * self.distance_weight, self.memory_weight]

    def load_teacher_weights(self, path: str | Path | None = None) -> None:
        """Load pre-trained weights into the teacher and start the student's encoder from them.

        Args:
            path (str | Path | None): Local file, or ``None`` to ask timm's hub.

        Raises:
            ConnectionError: If the weights cannot be had from the hub.
            FileNotFoundError: If there is no such file.
            ValueError: If the weights do not fit the backbone.
        """
        self.teacher.load_weights(path)
        if isinstance(self.student, EncoderStudent):
            source: Mapping[str, torch.Tensor] = self.teacher.extractor.feature_extractor.state_dict()
            encoder = self.student.encoder.feature_extractor
            encoder.load_state_dict({name: source[name] for name in encoder.state_dict()})

    def compare(
        self,
        images: torch.Tensor,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Run teacher and student on images and compare their features.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Returns:
            tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]: Teacher's features, student's features
            and products of their directions for each level, all of shape ``(B, C_l, h_l, w_l)``. The products are
            scaled by ``C_l``, so that their mean over channels is the cosine similarity.
        """
        normalized = self.teacher.normalize(images)
        teacher = self.teacher(normalized)
        student = self.student(normalized, teacher)
        products = list(starmap(direction_product, zip(teacher, student, strict=True)))
        return teacher, student, products

    def discrepancy(self, products: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the head sees of each level, by ``head_input``.

        Args:
            products (Sequence[torch.Tensor]): Products of :meth:`compare`.

        Returns:
            list[torch.Tensor]: Tensors of shape ``(B, C_l, h_l, w_l)``, ``(B, 1, h_l, w_l)`` or
            ``(B, C_l + 1, h_l, w_l)``.
        """
        if self.head_input == "product":
            return list(products)
        distances = [1 - product.mean(dim=1, keepdim=True) for product in products]
        if self.head_input == "distance":
            return distances
        return [torch.cat(pair, dim=1) for pair in zip(products, distances, strict=True)]

    def segment(self, products: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Run the segmentation head.

        Args:
            products (Sequence[torch.Tensor]): Products of :meth:`compare`.
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` that they come from.

        Returns:
            torch.Tensor: Logits of shape ``(B, 1, H, W)``.
        """
        logits = self.head(self.discrepancy(products))
        return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def forward(
        self,
        images: torch.Tensor,
        clean_images: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor] | InferenceBatch:
        """Compute what the loss needs while training, and predictions in evaluation mode.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1], with defects while training.
            clean_images (torch.Tensor | None): The same images without defects, while training.

        Returns:
            tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor] | InferenceBatch: While training, the
            teacher's features of the clean images, the student's features and the logits of shape ``(B, 1, H, W)``;
            in evaluation mode the anomaly map of shape ``(B, 1, H, W)`` and the score of shape ``(B,)``, both in
            [0, 1].
        """
        teacher, student, products = self.compare(images)
        logits = self.segment(products, images)
        if self.training:
            if clean_images is not None:
                teacher = self.teacher(self.teacher.normalize(clean_images))
            return teacher, student, logits
        components = self.components(teacher, products, logits)
        weighted = [share * component for share, component in zip(self.shares, components, strict=True)]
        # Enlarged once: the mean of maps that are linearly enlarged is the enlarged mean.
        coarse = torch.stack(weighted[1:]).sum(dim=0)
        anomaly_map = weighted[0] + functional.interpolate(
            coarse,
            size=logits.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        weights = logits.new_tensor(self.shares) / self.score_spread
        scores = (self.component_scores(components) * weights / weights.sum()).sum(dim=1)
        return InferenceBatch(pred_score=scores, anomaly_map=anomaly_map)

    def components(
        self,
        teacher: Sequence[torch.Tensor],
        products: Sequence[torch.Tensor],
        logits: torch.Tensor,
    ) -> list[torch.Tensor]:
        """What the anomaly map is the weighted mean of.

        Args:
            teacher (Sequence[torch.Tensor]): Teacher's features of each level.
            products (Sequence[torch.Tensor]): Products of :meth:`compare`.
            logits (torch.Tensor): Logits of the segmentation, of shape ``(B, 1, H, W)``.

        Returns:
            list[torch.Tensor]: Segmentation, of shape ``(B, 1, H, W)``, distance to the student and, if there is a
            memory, distance to it, both of shape ``(B, 1, h_0, w_0)``; with values in [0, 1].
        """
        maps = [logits.sigmoid(), distance_map(products)]
        if self.memory is not None:
            size = maps[1].shape[-2:]
            remembered = self.memory(teacher)
            maps.append(functional.interpolate(remembered, size=size, mode="bilinear", align_corners=False))
        return maps

    def component_scores(self, components: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean of the highest places of each component: ``top_k`` pixels of the image, or as large an area.

        Args:
            components (Sequence[torch.Tensor]): Components of :meth:`components`, the first of the image's resolution.

        Returns:
            torch.Tensor: Scores of shape ``(B, C)``.
        """
        pixels = [component.flatten(1) for component in components]
        counts = [max(1, round(self.top_k * values.shape[1] / pixels[0].shape[1])) for values in pixels]
        highest = [
            values.topk(min(count, values.shape[1]), dim=1).values.mean(dim=1)
            for values, count in zip(pixels, counts, strict=True)
        ]
        return torch.stack(highest, dim=1)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """Take the spread of each component's scores from normal images.

        Args:
            batches (Iterable[torch.Tensor]): Batches of normal images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Raises:
            RuntimeError: If the model is in training mode.
        """
        if self.training:
            msg = "Scores are calibrated in evaluation mode: call eval() first."
            raise RuntimeError(msg)
        scores = []
        for images in batches:
            teacher, _, products = self.compare(images)
            scores.append(self.component_scores(self.components(teacher, products, self.segment(products, images))))
        self.score_spread.copy_(torch.cat(scores).std(dim=0, correction=0).clamp_min(MIN_SPREAD))


def direction_product(target: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """Product of the directions of two features, scaled by their number of channels.

    Args:
        target (torch.Tensor): Features of shape ``(B, C, h, w)``.
        restored (torch.Tensor): Features of the same shape.

    Returns:
        torch.Tensor: Products of the same shape, whose mean over channels is the cosine similarity.
    """
    # Multiplied by reciprocals of one channel: a division of all channels costs more.
    lengths = [torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp_min(MIN_LENGTH) for part in (target, restored)]
    return (target * (target.shape[1] / lengths[0])) * (restored * lengths[1].reciprocal())


def distance_map(products: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over levels of the cosine distance, limited to [0, 1], in the resolution of the finest level.

    Args:
        products (Sequence[torch.Tensor]): Products of :meth:`DdpmStModel.compare`, each of shape
            ``(B, C_l, h_l, w_l)``.

    Returns:
        torch.Tensor: Map of shape ``(B, 1, h_0, w_0)``.
    """
    size = products[0].shape[-2:]
    distances = [
        functional.interpolate(1 - product.mean(dim=1, keepdim=True), size=size, mode="bilinear", align_corners=False)
        for product in products
    ]
    return torch.stack(distances).mean(dim=0).clamp(0, 1)
