# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What figures show, read from their axes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_ddpm_st.visualization import contact_sheet, histograms, save_contact_sheet, save_score_histogram


@pytest.fixture
def columns() -> dict[str, list[torch.Tensor]]:
    """Three rows of a colour image and a mask, some values out of range."""
    images = [torch.rand(3, 6, 8) * 2 - 0.5 for _ in range(3)]
    return {"normal": images, "mask": [torch.full((1, 6, 8), level) for level in (0.0, 0.25, 1.5)]}


def test_contact_sheet(columns: dict[str, list[torch.Tensor]]) -> None:
    """A row per sample, a titled column per kind, values clamped and not stretched."""
    figure = contact_sheet(columns, title="Sheet")
    axes = np.array(figure.axes).reshape(3, 2)
    assert figure.get_suptitle() == "Sheet"
    assert [axis.get_title() for axis in axes[0]] == ["normal", "mask"]
    assert not any(axis.get_title() for axis in axes[1:].flat)
    assert not any(axis.axison for axis in axes.flat)
    for row in range(3):
        image, mask = (axis.images[0] for axis in axes[row])
        expected = columns["normal"][row].clamp(0, 1).permute(1, 2, 0)
        np.testing.assert_array_equal(image.get_array(), expected)
        np.testing.assert_array_equal(mask.get_array(), columns["mask"][row][0].clamp(0, 1))
        assert mask.get_clim() == (0, 1)
    width, height = figure.get_size_inches()
    assert height > width


def test_contact_sheet_takes_what_models_return() -> None:
    """Half precision, gradients and whole numbers."""
    image = torch.rand(3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    axes = contact_sheet({"image": [image], "mask": [torch.ones(1, 4, 4, dtype=torch.int64)]}).axes
    np.testing.assert_array_equal(axes[0].images[0].get_array(), image.detach().float().permute(1, 2, 0))
    assert (axes[1].images[0].get_array() == 1).all()


def test_histograms() -> None:
    """Every value is in a bar of its own axis."""
    values = {"mask area": [0.1, 0.2, 0.2], "contrast": [0.5] * 7}
    figure = histograms(values)
    assert [axis.get_xlabel() for axis in figure.axes] == list(values)
    for axis, numbers in zip(figure.axes, values.values(), strict=True):
        assert sum(bar.get_height() for bar in axis.patches) == len(numbers)
        assert axis.get_ylabel() == "pairs"


def test_save_contact_sheet(tmp_path: Path, columns: dict[str, list[torch.Tensor]]) -> None:
    path = tmp_path / "sheet.png"
    save_contact_sheet(path, columns, title="Sheet")
    width, height = contact_sheet(columns).get_size_inches()
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (int(110 * width), int(110 * height))


@pytest.mark.parametrize("scores", [torch.rand(20), torch.ones(20)], ids=["spread", "equal"])
def test_save_score_histogram(tmp_path: Path, scores: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups over the same bins, all scores counted, also where all are equal."""
    saved = []
    monkeypatch.setattr(
        "anomalib_ddpm_st.visualization.plots.Figure.savefig", lambda figure, *_, **__: saved.append(figure)
    )
    save_score_histogram(tmp_path / "scores.png", scores, torch.arange(20) < 5)
    axis = saved[0].axes[0]
    normal, defective = axis.containers
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["normal", "defective"]
    assert sum(bar.get_height() for bar in normal) == 15
    assert sum(bar.get_height() for bar in defective) == 5
    assert [bar.get_x() for bar in normal] == [bar.get_x() for bar in defective]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("image score", "images")
    monkeypatch.undo()
    save_score_histogram(tmp_path / "scores.png", scores, torch.arange(20) < 5)
    with Image.open(tmp_path / "scores.png") as image:
        assert image.size == (550, 330)
