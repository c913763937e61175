# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``synthesize``."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from anomalib.data import Folder
from anomalib.engine import Engine
from PIL import Image

from anomalib_ddpm_st.cli import DdpmStCLI
from anomalib_ddpm_st.cli.synthesize import synthesize
from anomalib_ddpm_st.detector import DdpmSt
from anomalib_ddpm_st.detector.teacher import Teacher
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig, DiffusionAnomalyGenerator

SELF_TEXTURE = DefectConfig(source="self_texture")
BANK = BankConfig(size=3, delta=(0.5, 0.9), num_inference_steps=2)


def make_pairs(folder: Path, name: str, good: Path, ddpm: Path, **settings: Any) -> Path:  # noqa: ANN401
    """Folder of two small pairs, unless said otherwise."""
    defaults = {"images": good, "count": 2, "diffusion_path": ddpm, "image_size": (32, 32), "bank": BANK}
    synthesize(folder / name, **{**defaults, "cache_dir": folder / "cache", **settings})
    return folder / name


def test_writes_what_folder_reads(tmp_path: Path, good: Path, ddpm: Path, weights: str) -> None:
    output = tmp_path / "pairs"
    options = {
        "--images": good,
        "--output": output,
        "--diffusion_path": ddpm,
        "--cache_dir": tmp_path / "cache",
        "--per_image": 1,
        "--bank.size": 3,
        "--bank.delta": "[0.5, 0.9]",
        "--defects.opacity": "[0.8, 1.0]",
        "--image_size": "[32, 32]",
        "--teacher_weights": weights,
    }
    DdpmStCLI(["synthesize", *(str(part) for option in options.items() for part in option)])
    assert (output / "contact_sheet.png").exists()
    assert json.loads((output / "health.json").read_text())["verdict"] == "unknown"
    settings = json.loads((output / "settings.json").read_text())
    assert settings["defects.source"] == "diffusion", "the default shows what the DDPM makes"
    assert settings["defects.opacity"] == [0.8, 1.0]
    assert (settings["bank.size"], settings["bank.delta"]) == (3, [0.5, 0.9])
    names = [path.name for path in sorted((output / "image").glob("*"))]
    assert names == [path.name for path in sorted((output / "mask").glob("*"))]
    assert names == ["00000_00.png", "00001_00.png", "00002_00.png"]
    for name in names:
        values = np.unique(np.asarray(Image.open(output / "mask" / name)))
        assert values.tolist() == [0, 255]
    data = Folder(
        name="pairs",
        root=tmp_path,
        normal_dir=good,
        abnormal_dir="pairs/image",
        mask_dir="pairs/mask",
        num_workers=0,
        val_split_mode="same_as_test",
    )
    data.setup()
    masks = [item.gt_mask for item in data.test_data if bool(item.gt_label)]
    assert len(masks) == 3
    assert all(torch.as_tensor(mask).any() for mask in masks)


def test_same_seed_same_files(tmp_path: Path, good: Path, ddpm: Path, weights: str) -> None:
    def files(name: str, seed: int) -> list[bytes]:
        output = make_pairs(tmp_path, name, good, ddpm, seed=seed, teacher_weights=weights)
        return [path.read_bytes() for path in sorted((output / "image").glob("*.png"))]

    first = files("first", 0)
    assert len(first) == 2
    assert first == files("second", 0)
    assert first != files("third", 1)
    assert len(list((tmp_path / "cache").glob("bank-*/"))) == 1, "the seed of the pairs is not that of the bank"


def test_images_of_a_datamodule(tmp_path: Path, good: Path, ddpm: Path, weights: str) -> None:
    """Its normal training images; a whole config with a model in it works too."""
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    arguments = {"name": "x", "root": str(good.parent), "normal_dir": good.name, **splits}
    module = {"class_path": "Folder", "init_args": arguments}
    path = tmp_path / "data.yaml"
    for config in (module, {"model": "DdpmSt", "data": module}):
        path.write_text(yaml.safe_dump(config))
        name = f"pairs{'data' in config}"
        output = make_pairs(tmp_path, name, good, ddpm, images=None, data=path, count=None, teacher_weights=weights)
        rows = list(csv.DictReader((output / "pairs.csv").open()))
        assert rows
        assert {Path(row["source"]).parent for row in rows} == {good}
        with Image.open(output / "image" / rows[0]["name"]) as image:
            assert image.size == (32, 32)
    assert len(list((tmp_path / "cache").glob("bank-*/"))) == 1


def test_pairs_of_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the size of its normal image; of a datamodule that chooses its images at random they are the same."""
    rng = np.random.default_rng(0)
    (tmp_path / "good").mkdir()
    for index in range(8):
        pixels = rng.integers(0, 256, (40 + index, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "good" / f"{index}.png")
    splits = {"test_split_mode": "none", "val_split_mode": "from_train", "val_split_ratio": 0.5}
    arguments = {"name": "x", "root": str(tmp_path), "normal_dir": "good", **splits}
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"class_path": "Folder", "init_args": arguments}))
    output = tmp_path / "pairs"
    used: list[str] = []
    monkeypatch.setattr(
        "anomalib_ddpm_st.cli.synthesize.prepare_generator",
        lambda images, defects, *_, **__: [used.extend(images.paths), DiffusionAnomalyGenerator(defects=defects)][1],
    )
    synthesize(output, data=path, defects=SELF_TEXTURE, full_size=True, image_size=(32, 32))
    rows = list(csv.DictReader((output / "pairs.csv").open()))
    assert len(rows) == 4
    assert [row["source"] for row in rows] == used
    for row in rows:
        with Image.open(output / "image" / row["name"]) as image:
            assert image.size == (60, 40 + int(Path(row["source"]).stem))
    assert json.loads((output / "settings.json").read_text())["image_size"] is None


def test_augmentations_of_a_datamodule(tmp_path: Path, good: Path) -> None:
    """Those that test images get come before the resize to the size of the pairs."""
    crop = {"class_path": "torchvision.transforms.v2.CenterCrop", "init_args": {"size": 24}}
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    arguments = {"name": "x", "root": str(good.parent), "normal_dir": good.name, "augmentations": crop, **splits}
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"class_path": "Folder", "init_args": arguments}))
    output = tmp_path / "pairs"
    synthesize(output, data=path, defects=SELF_TEXTURE, full_size=True)
    with Image.open(output / "image" / "00000_00.png") as image:
        assert image.size == (24, 24)


@pytest.mark.parametrize("changed", [{"image_size": (16, 16)}, {"full_size": True}])
def test_sizes_are_not_mixed(tmp_path: Path, good: Path, changed: dict[str, Any]) -> None:
    """The output folder holds pairs of one size; the same command goes on."""
    arguments = {"output": tmp_path / "pairs", "images": good, "defects": SELF_TEXTURE, "image_size": (32, 32)}
    synthesize(**arguments)
    synthesize(**arguments)
    with pytest.raises(FileExistsError, match="made with other settings"):
        synthesize(**{**arguments, **changed})


@pytest.mark.parametrize("arguments", [{}, {"images": Path("a"), "data": Path("b")}])
def test_one_source_of_images(tmp_path: Path, arguments: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="either a folder of normal images"):
        synthesize(tmp_path / "pairs", **arguments)


@pytest.mark.parametrize("name", ["count", "per_image"])
def test_number_of_pairs_is_checked_first(tmp_path: Path, good: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        synthesize(tmp_path / "pairs", good, **{name: 0})
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"data\.yaml cannot be parsed"),
        ("Folder", r"data\.yaml must have the keys"),
        ("class_path: Nowhere", r"data\.yaml cannot be used(.|\n)*Nowhere"),
        ("data: {class_path: Folder, init_args: {nam: x}}", r"data\.yaml cannot be used(.|\n)*'nam' is not accepted"),
    ],
)
def test_broken_datamodule_config(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "pairs", data=path)


def test_self_textures_need_no_ddpm(tmp_path: Path, good: Path) -> None:
    output = tmp_path / "pairs"
    synthesize(output, good, image_size=(32, 32), defects=SELF_TEXTURE, cache_dir=tmp_path / "cache")
    assert len(list((output / "image").glob("*.png"))) == 3
    assert not (tmp_path / "cache").exists()
    assert not any(
        name.startswith(("bank", "diffusion")) for name in json.loads((output / "settings.json").read_text())
    )


def test_without_weights_the_pairs_are_written_all_the_same(
    tmp_path: Path,
    good: Path,
    ddpm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The health is not measured, and the output says so."""

    def fail(*_: Any, **__: Any) -> None:  # noqa: ANN401
        msg = "No network."
        raise ConnectionError(msg)

    monkeypatch.setattr(Teacher, "load_weights", fail)
    output = make_pairs(tmp_path, "pairs", good, ddpm)
    assert "health of the DDPM was not measured. No network." in capsys.readouterr().out
    assert not (output / "health.json").exists()
    assert (output / "report.html").exists()


def test_shares_ddpm_and_bank_with_the_detector(tmp_path: Path, good: Path, weights: str) -> None:
    """Same images, size and settings: the detector finds both in the cache that ``synthesize`` filled."""
    diffusion = DiffusionConfig(training_steps=2, batch_size=2, block_out_channels=(8, 8))
    cache = tmp_path / "cache"
    size = (64, 64)
    output = tmp_path / "pairs"
    synthesize(output, good, bank=BANK, diffusion=diffusion, image_size=size, teacher_weights=weights, cache_dir=cache)
    folders = sorted(path for path in cache.iterdir() if path.is_dir())
    assert [path.name.split("-")[0] for path in folders] == ["bank", "diffusion"]

    model = DdpmSt(
        pre_trained=False,
        diffusion=diffusion,
        bank=BANK,
        cache_dir=str(cache),
        training_steps=1,
        memory_size=8,
        pre_processor=DdpmSt.configure_pre_processor(size),
        visualizer=False,
    )
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    data = Folder(name="x", root=good.parent, normal_dir=good.name, train_batch_size=2, num_workers=0, **splits)
    arguments = {"accelerator": "cpu", "devices": 1, "logger": False, "limit_val_batches": 0}
    Engine(default_root_dir=tmp_path / "engine", **arguments).fit(model, datamodule=data)
    assert [model.bank_dir, model.diffusion_dir] == folders
    assert sorted(path for path in cache.iterdir() if path.is_dir()) == folders
