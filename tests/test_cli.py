# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The commands of this package."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from PIL import Image

from anomalib_ddpm_st import cli
from anomalib_ddpm_st.synthesis.preparation import load_pipeline


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Folder of three normal images."""
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(100, 140, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def ddpm(tmp_path: Path, good: Path) -> Path:
    """Folder of a DDPM trained for two steps by the command line."""
    output = tmp_path / "ddpm"
    arguments = ["--images", str(good), "--output", str(output), "--image_size", "[32, 32]"]
    cli.DdpmStCLI(["diffusion", *arguments, "--training_steps", "2", "--batch_size", "2", "--accelerator", "cpu"])
    return output


def test_diffusion_writes_a_pipeline_and_samples(ddpm: Path) -> None:
    assert (ddpm / "samples.png").exists()
    assert load_pipeline(ddpm)(batch_size=1, num_inference_steps=1).images.shape == (1, 3, 32, 32)


def test_diffusion_does_not_overwrite(ddpm: Path, good: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a trained DDPM already"):
        cli.diffusion(good, ddpm)


def test_synthesize_writes_what_folder_reads(tmp_path: Path, good: Path, ddpm: Path) -> None:
    output = tmp_path / "pairs"
    arguments = {"--images": good, "--output": output, "--diffusion_path": ddpm, "--cache_dir": tmp_path / "cache"}
    settings = {"--count": 3, "--bank_size": 3, "--image_size": "[32, 32]", "--strength": "[0.5, 0.9]"}
    pairs = [str(part) for item in {**arguments, **settings}.items() for part in item]
    cli.DdpmStCLI(["synthesize", *pairs])
    assert (output / "contact_sheet.png").exists()
    names = [path.name for path in sorted((output / "image").glob("*.png"))]
    assert names == [path.name for path in sorted((output / "mask").glob("*.png"))]
    assert len(names) == 3
    for name in names:
        values = np.unique(np.asarray(Image.open(output / "mask" / name)))
        assert values.tolist() == [0, 255]
    data = Folder(
        name="pairs",
        root=tmp_path,
        normal_dir="good",
        abnormal_dir="pairs/image",
        mask_dir="pairs/mask",
        num_workers=0,
        val_split_mode="same_as_test",
    )
    data.setup()
    masks = [item.gt_mask for item in data.test_data if bool(item.gt_label)]
    assert len(masks) == 3
    assert all(torch.as_tensor(mask).any() for mask in masks)


def test_same_seed_same_files(tmp_path: Path, good: Path, ddpm: Path) -> None:
    def files(name: str, seed: int) -> list[bytes]:
        cli.synthesize(
            good,
            tmp_path / name,
            count=2,
            diffusion_path=ddpm,
            image_size=(32, 32),
            strength=(0.5, 0.9),
            bank_size=3,
            seed=seed,
            cache_dir=tmp_path / "cache",
        )
        return [path.read_bytes() for path in sorted((tmp_path / name / "image").glob("*.png"))]

    first = files("first", 0)
    assert first == files("second", 0)
    assert first != files("third", 1)


def test_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "only.png")
    arguments = ["--images", str(tmp_path), "--output", str(tmp_path / "ddpm")]
    monkeypatch.setattr(sys, "argv", ["anomalib-ddpm-st", "diffusion", *arguments])
    with pytest.raises(SystemExit, match="needs at least 2 normal images, but found 1"):
        cli.main()


def test_help_lists_own_and_anomalib_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.DdpmStCLI(["--help"])
    output = capsys.readouterr().out
    for command in ("diffusion", "synthesize", "demo", "train", "benchmark"):
        assert command in output
