# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of files with pairs of image and mask."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.synthesis import DiffusionAnomalyGenerator, pairs
from anomalib_ddpm_st.synthesis.pairs import Pair, read_pair, write_pairs


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three normal images of different sizes."""
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        Image.fromarray(torch.randint(256, (40, 32 + 8 * index, 3), dtype=torch.uint8).numpy()).save(path)
    return paths


def write(
    images: list[Path],
    output: Path,
    size: tuple[int, int] | None = None,
    **settings: Any,  # noqa: ANN401
) -> list[Pair]:
    """Pairs without a bank."""
    return write_pairs(DiffusionAnomalyGenerator(), NormalImages.from_files(images, size), output, **settings)


def content(output: Path) -> dict[str, bytes]:
    """Every PNG file of a folder."""
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.png"))}


@pytest.mark.parametrize("size", [None, (24, 24)])
def test_pairs(images: list[Path], tmp_path: Path, size: tuple[int, int] | None) -> None:
    """Files, table and measurements agree; outside the mask the image is the normal one."""
    output = tmp_path / "pairs"
    found = write(images, output, size, per_image=2)
    assert [pair.name for pair in found] == [f"{place:05d}_{turn:02d}.png" for turn in (0, 1) for place in (0, 1, 2)]
    rows = list(csv.DictReader((output / "pairs.csv").open()))
    assert [Pair(row["name"], row["source"], float(row["mask_area"]), float(row["contrast"])) for row in rows] == found
    assert len(content(output)) == 12
    assert not list(output.rglob("*.partial"))
    for index, pair in enumerate(found):
        assert pair.source == str(images[index % 3])
        normal = NormalImages.from_files([pair.source], size)[0] / 255
        image, mask = read_pair(output, pair)
        assert image.shape == normal.shape
        assert size is None or image.shape[-2:] == size
        changed = (image - normal).abs().amax(dim=0)
        assert mask.any()
        assert not ((changed > 0) & (mask[0] == 0)).any()
        assert pair.mask_area == pytest.approx(mask.mean().item(), abs=1e-6)
        assert pair.contrast == pytest.approx(changed[mask[0] > 0].mean().item(), abs=1e-6)


def test_count(images: list[Path], tmp_path: Path) -> None:
    """The images take turns, and the first pairs do not depend on the number of pairs."""
    few = write(images, tmp_path / "few", count=2)
    more = write(images, tmp_path / "more", count=5)
    assert [pair.name for pair in more] == [*(pair.name for pair in few), *(pair.name for pair in more[2:])]
    before, after = content(tmp_path / "few"), content(tmp_path / "more")
    assert len(after) == 10
    assert all(after[name] == data for name, data in before.items())


def test_interrupted_run_resumes(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pairs are kept, half a pair is made again, and the result is that of a single run."""
    whole = write(images, tmp_path / "whole", seed=4)
    save = pairs.save_image
    written: list[str] = []

    def stop(pixels: torch.Tensor, path: Path, **settings: Any) -> None:  # noqa: ANN401
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        save(pixels, path, **settings)

    monkeypatch.setattr(pairs, "save_image", stop)
    with pytest.raises(KeyboardInterrupt):
        write(images, tmp_path / "parts", seed=4)
    monkeypatch.setattr(pairs, "save_image", save)
    kept = {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in content(tmp_path / "parts")}
    assert sorted(kept) == ["image/00000_00.png", "mask/00000_00.png", "mask/00001_00.png"]
    assert write(images, tmp_path / "parts", seed=4) == whole
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    for name in ("image/00000_00.png", "mask/00000_00.png"):
        assert (tmp_path / "parts" / name).stat().st_mtime_ns == kept[name]


@pytest.mark.parametrize(("number", "changed"), [(3, {"seed": 1}), (3, {"settings": {"bank.delta": 2}}), (2, {})])
def test_other_settings_are_not_mixed(
    images: list[Path],
    tmp_path: Path,
    number: int,
    changed: dict[str, Any],
) -> None:
    """Nor other images; the message says where to look."""
    write(images, tmp_path / "pairs")
    before = content(tmp_path / "pairs")
    with pytest.raises(FileExistsError, match="made with other settings"):
        write(images[:number], tmp_path / "pairs", **changed)
    assert content(tmp_path / "pairs") == before


def test_other_images_are_not_touched(images: list[Path], tmp_path: Path) -> None:
    """A folder with images from elsewhere raises an error."""
    (tmp_path / "image").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "image" / "mine.png")
    with pytest.raises(FileExistsError, match="holds other images"):
        write(images, tmp_path)


@pytest.mark.parametrize(("count", "number"), [(0, 3), (None, 0), (5, 0)])
def test_nothing_to_make(images: list[Path], tmp_path: Path, count: int | None, number: int) -> None:
    """The message says what to check."""
    with pytest.raises(ValueError, match="normal images to make"):
        write(images[:number], tmp_path / "pairs", count=count)
