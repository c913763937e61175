# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the picture of what the detector learns from and finds."""

import shutil
import sys
from pathlib import Path
from typing import Any

import overview
import pytest
import torch
from common import make_mvtec
from overview import Finding
from PIL import Image

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.synthesis.texture_bank import TextureBank


def finding(kind: str, score: float) -> Finding:
    """What the detector says of a black image, defective at one place if the score says so."""
    anomaly_map = torch.zeros(8, 8)
    anomaly_map[2:5, 3:6] = score
    return Finding(kind, torch.zeros(3, 8, 8), score, anomaly_map)


def test_choice_of_test_images() -> None:
    """The median of each kind; of five kinds the second and the fourth; then the good one."""
    scores = {
        "good": (0.1, 0.3, 0.9),
        "a": (0.2, 0.5, 0.6),
        "b": (0.9,),
        "c": (0.7, 0.8, 0.1),
        "d": (0.6,),
        "e": (0.4,),
    }
    findings = [finding(kind, score) for kind, values in scores.items() for score in values]
    chosen = overview.choose_findings(findings)
    assert [(found.kind, found.score) for found in chosen] == [("c", 0.7), ("a", 0.5), ("good", 0.3)]
    assert [found.caption for found in chosen] == ["c: defective, 0.70", "a: defective, 0.50", "good part: good, 0.30"]
    assert [found.kind for found in overview.choose_findings(findings[:6])] == ["a", "good"]


def test_outline_and_verdict_are_drawn(tmp_path: Path) -> None:
    """An outline where the map is above the threshold, none on a good image; a file of the promised size."""
    pair = tuple(torch.rand(channels, 64, 64) for channels in (3, 3, 1))
    colours = []
    for score in (0.9, 0.3):
        path = tmp_path / "docs" / f"{score}.png"
        overview.save(overview.draw([pair, pair], [finding("crack", score)] * 3), path)
        assert path.stat().st_size <= overview.MAX_BYTES
        picture = Image.open(path).convert("RGB")
        assert picture.size == (overview.WIDTH, overview.HEIGHT)
        row = picture.crop((0, overview.HEIGHT - overview.CAPTION - overview.SIDE, overview.SIDE, overview.HEIGHT - 45))
        pixels = torch.tensor(list(row.getdata())).float()
        orange = torch.tensor([0xFF, 0x7A, 0x1A])
        colours.append(int(((pixels - orange).abs().amax(dim=1) < 40).sum()))
    assert colours[0] > 50
    assert colours[1] == 0


@pytest.fixture
def tiles(data_root: Path, tmp_path: Path) -> Path:
    """Folder with the category "magnetic_tile"."""
    shutil.copytree(data_root / "bottle", tmp_path / "data" / "magnetic_tile")
    return tmp_path / "data"


@pytest.mark.usefixtures("small_images")
def test_picture_from_trained_weights(
    tiles: Path,
    short_curve: tuple[list[dict[str, Any]], list[torch.Tensor], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thresholds come from good training images: none of these scores above 0.5."""
    output = tmp_path / "images" / "overview.png"
    textures = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "bank").mkdir()
    TextureBank(textures, torch.zeros(4, dtype=torch.long), torch.zeros(1, 768)).save(tmp_path / "bank")
    models: list[DdpmSt] = []

    def find_bank(model: DdpmSt, *_: object) -> Path:
        models.append(model)
        return tmp_path / "bank"

    monkeypatch.setattr(overview, "find_bank", find_bank)
    options = [f"--data-root={tiles}", f"--weights={short_curve[-1] / 'step2.pt'}", f"--cache-dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["overview.py", *options, f"--output={output}"])
    overview.main()
    assert output.stat().st_size > 10_000
    assert models[0].post_processor.image_threshold.item() > 0
    datamodule = make_mvtec(tiles, "magnetic_tile", num_workers=0)
    datamodule.setup()
    with torch.no_grad():
        images = torch.stack([datamodule.train_data[index].image for index in range(4)])
        assert (models[0](images).pred_score < 0.5).all()


def test_bank_that_is_not_there(tiles: Path, tmp_path: Path) -> None:
    datamodule = make_mvtec(tiles, "magnetic_tile", num_workers=0)
    datamodule.setup()
    with pytest.raises(FileNotFoundError, match="no bank of these images"):
        overview.find_bank(DdpmSt(pre_trained=False), datamodule, tmp_path / "cache")


def test_other_images_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["overview.py", "--category=bottle", "--weights=a.pt", "--cache-dir=b"])
    with pytest.raises(SystemExit):
        overview.main()
    assert "may not be passed on" in capsys.readouterr().err
