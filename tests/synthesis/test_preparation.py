# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the way from normal images to a bank through the cache."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from anomalib_ddpm_st.diffusion import DefectPipeline
from anomalib_ddpm_st.synthesis import TextureBank, preparation, sample_bank
from anomalib_ddpm_st.synthesis.preparation import (
    load_pipeline,
    normal_paths,
    prepare_bank,
    prepare_diffusion,
    prepare_generator,
)

DIFFUSION: dict[str, Any] = {"training_steps": 1, "batch_size": 2, "block_out_channels": [8, 8]}
TRAINER: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
BANK: dict[str, Any] = {"size": 3, "strength": [0.1, 0.2], "start": [100, 200], "num_inference_steps": 1}
CPU = torch.device("cpu")


@pytest.fixture
def pipeline_dir(pipeline: DefectPipeline, tmp_path: Path) -> Path:
    """Folder with an untrained DDPM."""
    pipeline.save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Fail the test if the function is called."""

    def fail(*_: Any, **__: Any) -> None:  # ruff: ignore[any-type]
        pytest.fail(f"{name} was called again")

    monkeypatch.setattr(preparation, name, fail)


def test_diffusion_is_trained_once(
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second call finds the folder, whatever the Trainer; the settings lie beside the weights."""
    folder = prepare_diffusion(normal_images, tmp_path, DIFFUSION, **TRAINER)
    assert folder.parent == tmp_path
    assert json.loads((folder / "settings.json").read_text()) == DIFFUSION
    assert isinstance(load_pipeline(folder), DefectPipeline)
    forbid(monkeypatch, "train_diffusion")
    assert prepare_diffusion(normal_images, tmp_path, DIFFUSION, accelerator="gpu") == folder


def test_other_images_or_settings_are_another_diffusion(
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Content decides, not names."""
    calls: list[Path] = []
    monkeypatch.setattr(preparation, "train_diffusion", lambda _, folder, **__: calls.append(folder))
    first = prepare_diffusion(normal_images, tmp_path, DIFFUSION)
    assert prepare_diffusion(normal_images.clone(), tmp_path, dict(DIFFUSION)) == first
    assert len(calls) == 1
    other = normal_images.clone()
    other[0, 0, 0, 0] += 1
    folders = {
        first,
        prepare_diffusion(other, tmp_path, DIFFUSION),
        prepare_diffusion(normal_images, tmp_path, {**DIFFUSION, "training_steps": 2}),
    }
    assert len(folders) == len(calls) == 3


def test_bank_is_sampled_once(
    normal_images: torch.Tensor,
    pipeline_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second call finds the folder; the settings lie beside the textures."""
    folder = prepare_bank(normal_images, pipeline_dir, tmp_path, BANK, CPU)
    assert len(TextureBank.load(folder)) == BANK["size"]
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["diffusion"] == str(pipeline_dir)
    assert {name: settings[name] for name in BANK} == BANK
    forbid(monkeypatch, "sample_bank")
    assert prepare_bank(normal_images, str(pipeline_dir), tmp_path, BANK, CPU) == folder


def test_other_content_is_another_bank(normal_images: torch.Tensor, pipeline_dir: Path, tmp_path: Path) -> None:
    """Images, settings and the weights of the DDPM decide, not the path of the DDPM."""
    folders = [
        prepare_bank(normal_images, pipeline_dir, tmp_path, BANK, CPU),
        prepare_bank(255 - normal_images, pipeline_dir, tmp_path, BANK, CPU),
        prepare_bank(normal_images, pipeline_dir, tmp_path, {**BANK, "size": 2}, CPU),
    ]
    pipeline_dir = pipeline_dir.rename(tmp_path / "moved")
    assert prepare_bank(normal_images, pipeline_dir, tmp_path, BANK, CPU) == folders[0]
    pipeline = load_pipeline(pipeline_dir)
    with torch.no_grad():
        pipeline.unet.conv_out.bias[0] += 0.5
    pipeline.save_pretrained(pipeline_dir)
    folders.append(prepare_bank(normal_images, pipeline_dir, tmp_path, BANK, CPU))
    assert len(set(folders)) == 4


def test_mixed_precision(normal_images: torch.Tensor, pipeline_dir: Path, tmp_path: Path) -> None:
    """``bfloat16`` gives a bank as well."""
    folder = prepare_bank(normal_images, pipeline_dir, tmp_path, BANK, CPU, mixed_precision=True)
    assert TextureBank.load(folder).textures.dtype == torch.uint8


def test_channels_last(pipeline_dir: Path) -> None:
    """A loaded DDPM samples in the memory format that is fastest."""
    weight = load_pipeline(pipeline_dir).unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_compiled_network(normal_images: torch.Tensor, pipeline_dir: Path) -> None:
    """A network that was compiled samples the same textures."""
    pipeline = load_pipeline(pipeline_dir)
    expected = sample_bank(pipeline, normal_images, **BANK).textures
    pipeline.unet.compile(backend="eager")
    assert torch.equal(sample_bank(pipeline, normal_images, **BANK).textures, expected)


def test_load_pipeline_from_nowhere(tmp_path: Path) -> None:
    """The message names the folder and how to make one."""
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*anomalib-ddpm-st diffusion"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", b""),
        ("model_index.json", b"{}"),
        ("model_index.json", b"{not json"),
        ("unet/config.json", b"{not json"),
        ("unet/diffusion_pytorch_model.safetensors", b""),
        ("unet/diffusion_pytorch_model.safetensors", b"no weights here"),
        ("unet/diffusion_pytorch_model.safetensors", None),
        ("unet/diffusion_pytorch_model.safetensors", "cut"),
        ("scheduler/scheduler_config.json", None),
    ],
)
def test_load_damaged_pipeline(file: str, content: bytes | str | None, pipeline_dir: Path) -> None:
    """Whatever is damaged, the message names the folder and the way out."""
    path = pipeline_dir / file
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{pipeline_dir}.*delete the folder"):
        load_pipeline(pipeline_dir)


def test_load_pipeline_asks_no_hub(pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder is loaded without a network."""

    def fail(*_: Any, **__: Any) -> None:  # ruff: ignore[any-type]
        pytest.fail("the hub was asked")

    monkeypatch.setattr("socket.socket.connect", fail)
    assert isinstance(load_pipeline(pipeline_dir).unet, UNet2DModel)


def test_normal_paths() -> None:
    """Defective images are left out; no samples give no paths."""
    samples = pd.DataFrame({"image_path": ["a", "b", "c"], "label_index": [0, 1, 0]})
    assert normal_paths(samples) == ["a", "c"]
    assert normal_paths(pd.DataFrame()) == []


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three images, twice as wide as high."""
    names = [tmp_path / f"{index}.png" for index in range(3)]
    for name in names:
        Image.fromarray(torch.randint(256, (32, 64, 3), dtype=torch.uint8).numpy()).save(name)
    return names


@pytest.mark.parametrize(("size", "aspect"), [((32, 32), 2.0), ((32, 64), None)])
def test_generator_from_images(
    paths: list[Path],
    pipeline_dir: Path,
    tmp_path: Path,
    size: tuple[int, int],
    aspect: float | None,
) -> None:
    """A bank for the images, which remembers their proportions where they were squeezed; the rest is passed on."""
    generator = prepare_generator(
        paths,
        "diffusion",
        size,
        pipeline_dir,
        tmp_path / "cache",
        bank_size=3,
        device=CPU,
        probability=0.25,
        soft=0.0,
    )
    assert generator.bank is not None
    assert generator.bank.textures.shape == (3, 3, *size)
    assert (None if generator.bank.aspect is None else generator.bank.aspect.item()) == aspect
    assert (generator.probability, generator.soft) == (0.25, 0.0)
    assert generator.shares == [1.0, 0.0, 0.0]


def test_generator_trains_a_ddpm_where_none_is_given(
    paths: list[Path],
    pipeline_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the device and in the precision that were asked for."""
    asked: dict[str, Any] = {}

    def prepare(images: torch.Tensor, cache_dir: Path, settings: dict[str, Any], **trainer: Any) -> Path:  # ruff: ignore[any-type]
        asked.update(images=images, cache_dir=cache_dir, **settings, **trainer)
        return pipeline_dir

    monkeypatch.setattr(preparation, "prepare_diffusion", prepare)
    prepare_generator(
        paths, cache_dir=tmp_path, diffusion_steps=5, bank_size=2, seed=3, device=CPU, precision="bf16-mixed"
    )
    assert asked.pop("images").shape == (3, 3, 256, 256)
    expected = {"training_steps": 5, "seed": 3, "accelerator": "cpu", "devices": 1, "precision": "bf16-mixed"}
    assert asked == {"cache_dir": tmp_path, **expected}


@pytest.mark.parametrize("synthesis", ["self_texture", "noise", "none"])
def test_generator_without_a_ddpm(synthesis: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # ruff: ignore[any-type]
    """Nothing is read, trained or sampled."""
    for name in ("load_normal_images", "prepare_diffusion", "prepare_bank"):
        forbid(monkeypatch, name)
    generator = prepare_generator(["missing.png"], synthesis)
    assert generator.bank is None
    assert (generator.probability == 0) == (synthesis == "none")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"synthesis": "magic"}, "Unknown synthesis 'magic'"),
        ({"strength": (2.0, 1.0)}, "strength must be"),
        ({"probability": 3.0}, "probability must lie"),
    ],
)
def test_bad_settings_cost_no_training(
    paths: list[Path],
    arguments: dict[str, Any],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are named before stage 1."""
    forbid(monkeypatch, "prepare_diffusion")
    with pytest.raises(ValueError, match=match):
        prepare_generator(paths, **arguments)
