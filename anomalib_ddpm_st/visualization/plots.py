# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Contact sheets and histograms."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

INCHES_PER_IMAGE = 1.6
DPI = 110


def contact_sheet(columns: Mapping[str, Sequence[torch.Tensor]], title: str = "") -> Figure:
    """Arrange images in a grid, one row per sample and one titled column per kind.

    Args:
        columns (Mapping[str, Sequence[torch.Tensor]]): Images by column title, equally many in each column: colour
            images of shape ``(3, H, W)``, masks and anomaly maps of shape ``(1, H, W)``, values in [0, 1].
        title (str): Title of the sheet. Defaults to ``""``.

    Returns:
        Figure: Contact sheet.
    """
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(INCHES_PER_IMAGE * len(columns), INCHES_PER_IMAGE * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        axes[0][column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            pixels = image.detach().float().cpu().clamp(0, 1)
            axis = axes[row][column]
            if pixels.shape[0] == 1:
                axis.imshow(pixels[0], cmap="inferno", vmin=0, vmax=1)
            else:
                axis.imshow(pixels.permute(1, 2, 0))
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def save_contact_sheet(path: str | Path, columns: Mapping[str, Sequence[torch.Tensor]], title: str = "") -> None:
    """Save a contact sheet as PNG.

    Args:
        path (str | Path): PNG file to write.
        columns (Mapping[str, Sequence[torch.Tensor]]): See :func:`contact_sheet`.
        title (str): Title of the sheet. Defaults to ``""``.
    """
    contact_sheet(columns, title).savefig(path, dpi=DPI)


def histograms(values: Mapping[str, Sequence[float]]) -> Figure:
    """Draw histograms side by side.

    Args:
        values (Mapping[str, Sequence[float]]): Values by axis label, one value per image pair.

    Returns:
        Figure: Histograms.
    """
    figure = Figure(figsize=(4 * len(values), 3), layout="constrained")
    for axis, (name, numbers) in zip(figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True):
        axis.hist(numbers, bins="auto")
        axis.set_xlabel(name)
        axis.set_ylabel("pairs")
    return figure


def save_score_histogram(path: str | Path, scores: torch.Tensor, labels: torch.Tensor) -> None:
    """Save overlaid histograms of the image scores of normal and defective images.

    Args:
        path (str | Path): PNG file to write.
        scores (torch.Tensor): Image scores of shape ``(N,)``.
        labels (torch.Tensor): Whether each image is defective, of shape ``(N,)``.
    """
    labels = labels.bool()
    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    bins = torch.linspace(scores.min().item(), scores.max().item() + 1e-6, 31).tolist()
    axis.hist(scores[~labels].tolist(), bins=bins, alpha=0.7, label="normal")
    axis.hist(scores[labels].tolist(), bins=bins, alpha=0.7, label="defective")
    axis.set_xlabel("image score")
    axis.set_ylabel("images")
    axis.legend()
    figure.savefig(path, dpi=DPI)
