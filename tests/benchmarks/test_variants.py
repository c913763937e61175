# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the comparison of pre-processors."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import variants
from common import make_mvtec
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Pad
from variants import PLAIN, VARIANTS, Variant, compare, copy_category, judge, read_rows, resize

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.core.images import NormalImages

CROP = Variant((resize((80, 80)), CenterCrop(64)))
SMALL = {PLAIN: Variant((resize((64, 64)),)), "crop": CROP, "pad": Variant((resize((16, 16)), Pad(24)))}


def row(variant: str, score_good: float, auroc: float, category: str = "bottle", **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Row of a cell."""
    return {"category": category, "variant": variant, "score_good": score_good, "image_AUROC": auroc, **more}


# ---------------------------------------------------------------------------------------------------------------------
# Variants


@pytest.mark.parametrize(
    ("name", "size", "crops"),
    [
        ("plain", (256, 256), False),
        ("centre-crop", (224, 224), True),
        ("centre-crop-small", (128, 128), True),
        ("shorter-side", (128, 128), True),
        ("pad", (256, 256), False),
        ("grey", (256, 256), False),
        ("bicubic", (256, 256), False),
        ("none", (128, 128), False),
        ("512", (512, 512), False),
        ("oblong", (96, 192), False),
    ],
)
def test_variants(name: str, size: tuple[int, int], crops: bool) -> None:
    """The detector accepts each, and sees images of one size whatever the shape of the file."""
    variant = VARIANTS[name]
    model = DdpmSt(pre_trained=False, pre_processor=variant.pre_processor())
    files = [variant.file_size] if variant.file_size else [(256, 256), (200, 300), (300, 190)]
    for height, width in files:
        images = torch.rand(1, 3, height, width)
        seen = model.pre_processor(images) if variant.transforms else images
        assert seen.shape == (1, 3, *size)
    assert (model.pre_processor is None) == (not variant.transforms)
    assert variant.pixels == size[0] * size[1]
    assert variant.crops == crops
    assert json.loads(json.dumps(variant.settings)) == variant.settings


def test_variants_are_ten_different_ones() -> None:
    """The plain one comes first, and options need no quotes."""
    assert next(iter(VARIANTS)) == PLAIN
    assert len({json.dumps(variant.settings) for variant in VARIANTS.values()}) == len(VARIANTS) == 10
    assert not any(" " in name for name in VARIANTS)


# ---------------------------------------------------------------------------------------------------------------------
# Field of view


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (slice(40, 60), slice(40, 60), 1.0),
        # The crop keeps rows and columns 10 to 89 of 100.
        (slice(0, 8), slice(0, 100), 0.0),
        (slice(0, 20), slice(30, 70), 0.5),
        (slice(5, 15), slice(5, 15), 0.25),
        (slice(0, 100), slice(0, 100), 0.64),
        (slice(0, 0), slice(0, 0), 1.0),
    ],
)
def test_visible_fraction(rows: slice, columns: slice, expected: float) -> None:
    """Area that the crop leaves of a defect; without a crop all of it."""
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    mask[rows, columns] = 1
    assert variants.visible_fraction(mask, CROP) == pytest.approx(expected, abs=0.05)
    for variant in (SMALL[PLAIN], SMALL["pad"], Variant()):
        assert variants.visible_fraction(mask, variant) == 1


def test_visible_fraction_of_the_shorter_side() -> None:
    """An oblong image loses more of its longer side."""
    variant = VARIANTS["shorter-side"]
    mask = torch.zeros(144, 288, dtype=torch.uint8)
    mask[:, :144] = 1
    # Of 144 x 288 pixels, rows 8 to 135 and columns 80 to 207 are left.
    assert variants.visible_fraction(mask, variant) == pytest.approx(128 * 64 / 144**2)
    mask[:, 72:] = 0
    assert variants.visible_fraction(mask, variant) == 0


def test_visible_defects(data_root: Path, tmp_path: Path) -> None:
    """By name, of defective images only."""
    copy_category(data_root / "bottle", tmp_path / "bottle", None, None)
    edge = np.zeros((64, 64), np.uint8)
    edge[:, :3] = 255
    Image.fromarray(edge).save(tmp_path / "bottle" / "ground_truth" / "hole" / "001_mask.png")
    datamodule = make_mvtec(tmp_path, "bottle", num_workers=0)
    datamodule.setup(TrainerFn.TESTING)
    visible = variants.visible_defects(datamodule, CROP)
    assert visible == {"hole/000.png": pytest.approx(0.64), "hole/001.png": 0.0}


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_files_are_copied_only_to_differ(data_root: Path, tmp_path: Path) -> None:
    """Evenly spaced training images, and files of another size with their masks."""
    few = variants.category_root(data_root, "bottle", tmp_path, 3, SMALL[PLAIN])
    assert variants.category_root(data_root, "bottle", tmp_path, None, SMALL[PLAIN]) == data_root
    resized = variants.category_root(data_root, "bottle", tmp_path, None, Variant(file_size=(32, 48)))
    assert len({data_root, few, resized}) == 3
    for root, count, size in ((few, 3, (64, 64)), (resized, 10, (48, 32))):
        files = sorted(path for path in root.rglob("*.*") if path.is_file())
        assert [path.parent.name for path in files].count("good") == count + 2
        assert {Image.open(path).size for path in files} == {size}
    names = sorted(path.name for path in (few / "bottle" / "train" / "good").iterdir())
    assert names == ["000.png", "004.png", "009.png"]
    mask = np.asarray(Image.open(resized / "bottle" / "ground_truth" / "hole" / "000_mask.png"))
    assert set(np.unique(mask)) == {255}
    assert variants.category_root(data_root, "bottle", tmp_path, 3, SMALL["pad"]) == few, "copied once"


# ---------------------------------------------------------------------------------------------------------------------
# Table


SCORES = {"good/0": 0.2, "good/1": 0.4, "hole/0": 0.1, "hole/1": 0.9}


def test_auroc_without_images() -> None:
    """The images left out do not count."""
    assert variants.image_auroc(SCORES) == 50
    assert variants.image_auroc(SCORES, ["hole/0"]) == 100
    assert math.isnan(variants.image_auroc(SCORES, ["hole/0", "hole/1"]))
    assert variants.mean_score(SCORES, defective=False) == pytest.approx(0.3)
    assert variants.mean_score(SCORES, defective=True) == pytest.approx(0.5)


def test_rows_are_compared_with_the_plain_one() -> None:
    """Of their own category; if they crop, by the same images, too."""
    crop = {"outside": {"more_than_half": ["hole/0"]}, "image_AUROC_inside": 90.0}
    names = ("score_good_minus_plain", "auroc_minus_plain", "auroc_inside_minus_plain")
    rows = [row(PLAIN, 0.3, 50.0, scores=SCORES), row("pad", 0.45, 94.0), row("crop", 0.1, 60.0, **crop)]
    differences = [[part.get(name) for name in names] for part in compare(rows)]
    assert differences == [[0.0, 0.0, None], [0.15, 44.0, None], [-0.2, 10.0, -10.0]]
    assert compare(rows[2:])[0] == {**rows[2], **dict.fromkeys(names)}
    nothing = {**rows[2], "outside": {"more_than_half": ["hole/0", "hole/1"]}, "image_AUROC_inside": None}
    assert compare([rows[0], nothing])[1]["auroc_inside_minus_plain"] is None


def test_criteria() -> None:
    """Each lists the rows that miss it; one exactly at the bound does not."""
    outside = {"images": 1, "more_than_half": ["hole/0"], "all": []}
    crop = {"outside": outside, "image_AUROC_inside": 94.5}
    rows = compare([
        row(PLAIN, 0.3, 95.0, scores=SCORES),
        row("grey", 0.4, 93.0),
        row("pad", 0.41, 99.0),
        row("crop", 0.1, 92.0, **crop),
    ])
    result = judge(rows)
    assert result["judged_cells"] == 3
    assert not result["no_good_score_above_plain"]
    assert [part["variant"] for part in result["good_score_above_plain"]] == ["pad"]
    assert not result["no_auroc_below_plain"]
    difference = {"auroc_minus_plain": -3.0, "auroc_inside_minus_plain": -5.5}
    assert result["auroc_below_plain"] == [
        {"category": "bottle", "variant": "crop", "image_AUROC": 92.0, **difference, **crop}
    ]
    good = judge(rows[:2])
    assert good["no_good_score_above_plain"]
    assert good["no_auroc_below_plain"]
    assert judge(rows[:1])["no_good_score_above_plain"] is None


def write(path: Path, *changes: dict[str, Any]) -> None:
    """Write a table of the small variants with changed rows."""
    rows = [{**row(name, 0.3, 95.0), "settings": variant.settings} for name, variant in SMALL.items()]
    rows = [{**part, **change} for part, change in zip(rows, changes, strict=True)]
    path.write_text(json.dumps({"settings": {"seed": 1}, "rows": rows}), encoding="utf-8")


def test_rows_with_other_settings_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the table, of a variant that was changed, and variants that are gone."""
    monkeypatch.setattr(variants, "VARIANTS", SMALL)
    path = tmp_path / "variants.json"
    assert read_rows(path, {"seed": 1}) == []
    write(path, {}, {"settings": {"transforms": []}}, {"variant": "gone"})
    assert [part["variant"] for part in read_rows(path, {"seed": 1})] == [PLAIN]
    assert read_rows(path, {"seed": 2}) == []


def test_finished_cells_are_not_run_again(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An interrupted table resumes; other settings start a new one; the order is that of the variants."""
    cells: list[tuple[str, str]] = []
    arguments: list[dict[str, Any]] = []
    interrupted = {("bottle", PLAIN)}

    def run_cell(variant: Variant, root: Path, category: str, *settings: Any) -> dict[str, Any]:  # noqa: ANN401
        name = next(name for name, other in SMALL.items() if other is variant)
        if (category, name) in interrupted:
            raise KeyboardInterrupt
        cells.append((category, name))
        arguments.append(settings[3])
        assert root == data_root
        return {"score_good": 0.3, "image_AUROC": 95.0, "pixel_AUPR": 50.0, "seconds": 60.0, "scores": {}}

    monkeypatch.setattr(variants, "VARIANTS", SMALL)
    monkeypatch.setattr(variants, "run_cell", run_cell)
    output = tmp_path / "results" / "variants.json"
    command = ["benchmarks/variants.py", f"--data-root={data_root}", f"--output={output}", "--teacher-weights=null"]

    def main(*more: str) -> list[tuple[str, str]]:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        variants.main()
        rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
        return [(part["category"], part["variant"]) for part in rows]

    pair = ["--categories", "bottle", "--variants", "pad", PLAIN]
    with pytest.raises(KeyboardInterrupt):
        main(*pair)
    assert cells == [("bottle", "pad")]
    interrupted.clear()
    assert main(*pair) == [("bottle", PLAIN), ("bottle", "pad")]
    assert len(cells) == 2
    more = ["--categories", "bottle", "screw", "--variants", PLAIN, "crop"]
    expected = [*[("bottle", name) for name in (PLAIN, "crop", "pad")], *[("screw", name) for name in (PLAIN, "crop")]]
    assert main(*more) == expected
    assert cells[2:] == [("bottle", "crop"), ("screw", PLAIN), ("screw", "crop")]
    assert "1 of 3 cells, about 2 min left" in caplog.text
    assert main(*more) == expected
    assert len(cells) == 5
    assert main(*pair, "--source", "mixture") == [("bottle", PLAIN), ("bottle", "pad")]
    assert len(cells) == 7
    assert arguments[-1]["defects"] == {"source": "mixture"}
    assert arguments[-1]["diffusion"]["training_steps"] < 800
    assert not list(output.parent.glob("*.partial"))
    assert output.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_record(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure; a second call does nothing; a road that leaves the pre-processor out is found."""
    monkeypatch.setattr(variants, "VARIANTS", SMALL)
    output = tmp_path / "variants.json"
    options = {
        "data-root": data_root,
        "teacher-weights": "null",
        "categories": "bottle",
        "steps": 25,
        "batch-size": 2,
        "train-images": 8,
        "model-arguments": json.dumps({"pre_trained": False, "memory_size": 64}),
    }
    command = ["benchmarks/variants.py", *(f"--{name}={value}" for name, value in options.items())]

    def main(path: Path) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [*command, f"--output={path}"])
        variants.main()
        return json.loads(path.read_text(encoding="utf-8"))

    record = main(output)
    assert {"command", "commit", "machine", "threads", "versions"} <= set(record)
    assert record["settings"]["model_arguments"]["defects"] == {"source": "self_texture"}
    rows = {part["variant"]: part for part in record["rows"]}
    assert list(rows) == list(SMALL)
    for part in rows.values():
        assert part["image_sizes"] == ["64x64"]
        assert part["train_images"] == 8
        assert all(0 < part[f"score_{kind}"] < 1 for kind in ("train", "good", "defective"))
        assert all(0 <= part[metric] <= 100 for metric in ("image_AUROC", "pixel_AUPR"))
        assert part["pixel_difference"] < 0.3, "rounding alone"
        assert part["seconds"] > part["training_seconds"] > 0
    assert rows["crop"]["outside"] == {"images": 0, "more_than_half": [], "all": []}
    assert rows["crop"]["image_AUROC_inside"] == pytest.approx(rows["crop"]["image_AUROC"])
    assert rows["crop"]["auroc_inside_minus_plain"] == pytest.approx(rows["crop"]["auroc_minus_plain"])
    assert [name for name, part in rows.items() if "scores" in part] == [PLAIN]
    assert len(rows[PLAIN]["scores"]) == 4
    assert "outside" not in rows["pad"]
    assert record["judged_cells"] == 2
    assert record["no_good_score_above_plain"]

    before = output.read_bytes()
    with monkeypatch.context() as context:
        context.setattr(variants, "run_cell", None)
        main(output)
    assert output.read_bytes() == before

    def resize_alone(images: NormalImages, image: torch.Tensor, *_: object) -> torch.Tensor:
        images.item_sizes.add((64, 64))
        return resize((64, 64))(image)

    monkeypatch.setattr(NormalImages, "_see", resize_alone)
    broken = tmp_path / "broken.json"
    kept = [part for part in record["rows"] if part["variant"] != "pad"]
    broken.write_text(json.dumps({**record, "rows": kept}), encoding="utf-8")
    record = main(broken)
    assert not record["no_good_score_above_plain"]
    assert [part["variant"] for part in record["good_score_above_plain"]] == ["pad"]
    assert record["rows"][-1]["pixel_difference"] > 50
