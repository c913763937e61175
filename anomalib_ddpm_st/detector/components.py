# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Default pre-processor and evaluator of DdpmSt."""

from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Score
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import (
    CenterCrop,
    Compose,
    FiveCrop,
    Normalize,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Resize,
)

from anomalib_ddpm_st.core.images import DEFAULT_IMAGE_SIZE
from anomalib_ddpm_st.core.transforms import find_transform, flatten_transform

# Transforms that do not commute with Resize.
FIELD_OF_VIEW = (CenterCrop, FiveCrop, Pad, RandomCrop, RandomResizedCrop)


def make_pre_processor(
    image_size: tuple[int, int] | None = None,
    center_crop_size: tuple[int, int] | None = None,
) -> PreProcessor:
    """Make the default pre-processor, which resizes like the exported model and does not normalise.

    Args:
        image_size (tuple[int, int] | None): Height and width in pixels. Defaults to 256 x 256.
        center_crop_size (tuple[int, int] | None): Height and width to crop to. Defaults to ``None``, no crop.

    Returns:
        PreProcessor: Pre-processor.
    """
    transforms: list[nn.Module] = [Resize(image_size or DEFAULT_IMAGE_SIZE, antialias=False)]
    if center_crop_size is not None:
        transforms.append(CenterCrop(center_crop_size))
    return PreProcessor(transform=Compose(transforms))


def refuse_normalize(pre_processor: nn.Module | None) -> None:
    """Refuse a pre-processor that normalises: normalised twice, training would fail silently.

    Args:
        pre_processor (nn.Module | None): Pre-processor.

    Raises:
        ValueError: If it normalises.
    """
    if find_transform(getattr(pre_processor, "transform", None), Normalize) is not None:
        msg = (
            "DdpmSt normalises images itself, by the statistics of its backbone: remove Normalize from the transform "
            "of the pre-processor."
        )
        raise ValueError(msg)


def crops_before_resize(transform: nn.Module | None) -> bool:
    """Whether a transform changes the field of view of images before it resizes them.

    anomalib's datamodules resize before the transform, so that it then crops or pads another image than in the exported
    model.

    Args:
        transform (nn.Module | None): Transform of a pre-processor.

    Returns:
        bool: Whether a crop or padding comes before Resize.
    """
    steps = [step for step in flatten_transform(transform) if isinstance(step, (Resize, *FIELD_OF_VIEW))]
    return any(isinstance(step, Resize) for step in steps[1:]) and not isinstance(steps[0], Resize)


def make_evaluator() -> Evaluator:
    """Make the default evaluator.

    Returns:
        Evaluator: Image and pixel AUROC for validation; these, AUPRO, pixel AUPR and F1 scores for test.
    """

    def aurocs() -> list:
        return [
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
        ]

    return Evaluator(
        val_metrics=aurocs(),
        test_metrics=[
            *aurocs(),
            AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            AUPR(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
        ],
    )
