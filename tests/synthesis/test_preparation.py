# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the way from normal images to a bank, through the cache."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Resize, Transform

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose, PoseFrame
from anomalib_ddpm_st.core.datasets import ImageFiles
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.diffusion import DefectPipeline, DiffusionConfig, load_pipeline
from anomalib_ddpm_st.synthesis import (
    BankConfig,
    DefectConfig,
    TextureBank,
    preparation,
    prepare_bank,
    prepare_generator,
    sample_bank,
)
from anomalib_ddpm_st.synthesis.preparation import PreparedBank, find_prepared, prepare_diffusion
from anomalib_ddpm_st.synthesis.texture_bank import thumbnails

DIFFUSION = DiffusionConfig(training_steps=1, batch_size=2, block_out_channels=(8, 8))
BANK = BankConfig(size=3, delta=(0.1, 0.2), start_timestep=(100, 200), num_inference_steps=1)
SIZE = (32, 32)
RESIZE = Resize(SIZE, antialias=False)
CPU = torch.device("cpu")


@pytest.fixture
def pipeline_dir(pipeline: DefectPipeline, tmp_path: Path) -> Path:
    """Folder with an untrained DDPM."""
    pipeline.save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three images, twice as wide as high."""
    names = [tmp_path / f"{index}.png" for index in range(3)]
    for name in names:
        Image.fromarray(torch.randint(256, (32, 64, 3), dtype=torch.uint8).numpy()).save(name)
    return names


@pytest.fixture
def images(paths: list[Path]) -> NormalImages:
    """These images, resized."""
    return NormalImages.from_files(paths, SIZE)


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Fail the test if one of the functions is called."""

    def fail(*_: Any, **__: Any) -> None:  # noqa: ANN401
        pytest.fail(f"one of {names} was called")

    for name in names:
        monkeypatch.setattr(preparation, name, fail)


def test_diffusion_is_trained_once(
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second call finds the folder, whatever the device and precision; the settings are next to the weights."""
    folder = prepare_diffusion(normal_images, DIFFUSION, tmp_path, CPU)
    assert folder.parent == tmp_path
    saved = json.loads((folder / "settings.json").read_text())
    assert DiffusionConfig(**saved) == DIFFUSION
    assert isinstance(load_pipeline(folder), DefectPipeline)
    forbid(monkeypatch, "train_diffusion")
    assert prepare_diffusion(normal_images, DIFFUSION, tmp_path, torch.device("cuda:1"), "bf16-mixed") == folder


def test_other_images_or_settings_are_another_diffusion(
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Content decides, not names."""
    calls: list[Path] = []
    monkeypatch.setattr(preparation, "train_diffusion", lambda _, folder, *__, **___: calls.append(folder))
    first = prepare_diffusion(normal_images, DIFFUSION, tmp_path, CPU)
    assert prepare_diffusion(normal_images.clone(), DiffusionConfig(**asdict(DIFFUSION)), tmp_path, CPU) == first
    assert len(calls) == 1
    other = normal_images.clone()
    other[0, 0, 0, 0] += 1
    folders = {first, prepare_diffusion(other, DIFFUSION, tmp_path, CPU)}
    for name, value in {"training_steps": 2, "batch_size": 1, "learning_rate": 0.1, "seed": 1}.items():
        changed = DiffusionConfig(**{**asdict(DIFFUSION), name: value})
        folders.add(prepare_diffusion(normal_images, changed, tmp_path, CPU))
    assert len(folders) == len(calls) == 6


@pytest.mark.parametrize(("device", "devices"), [("cpu", 1), ("cuda", 1), ("cuda:1", [1])])
def test_trains_on_the_device(
    normal_images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    devices: Any,  # noqa: ANN401
) -> None:
    """The Trainer gets the device and the precision."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(preparation, "train_diffusion", lambda *_, **arguments: asked.update(arguments))
    prepare_diffusion(normal_images, DIFFUSION, tmp_path, torch.device(device), "bf16-mixed")
    assert asked == {"accelerator": device[:4].rstrip(":"), "devices": devices, "precision": "bf16-mixed"}


def test_bank_is_sampled_once(
    images: NormalImages,
    paths: list[Path],
    pipeline_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second call finds the folder; the settings are next to the textures."""
    cache = tmp_path / "cache"
    prepared = prepare_bank(images, BANK, None, pipeline_dir, cache, CPU)
    assert len(TextureBank.load(prepared.bank_dir)) == BANK.size
    assert prepared.diffusion_dir == pipeline_dir
    assert prepared.bank_dir.parent == cache
    assert sorted(prepared.seconds) == ["bank", "diffusion"]
    assert min(prepared.seconds.values()) >= 0
    settings = json.loads((prepared.bank_dir / "settings.json").read_text())
    assert settings.pop("diffusion") == str(pipeline_dir)
    assert settings.pop("aspect") == 2
    assert BankConfig(**settings) == BANK
    forbid(monkeypatch, "sample_bank")
    same = NormalImages.from_files(list(map(str, paths)), SIZE)
    again = prepare_bank(same, asdict(BANK), None, str(pipeline_dir), str(cache), CPU)
    assert again.bank_dir == prepared.bank_dir


def test_finding_what_is_prepared_prepares_nothing(images: NormalImages, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    arguments = (images, BANK, DIFFUSION, None, cache)
    assert find_prepared(*arguments) == (False, False)
    assert not cache.exists()
    folder = prepare_diffusion(images.load(), DIFFUSION, cache, CPU)
    assert find_prepared(*arguments) == (True, False)
    assert find_prepared(images, BANK, DIFFUSION, folder, cache) == (True, False)
    prepare_bank(images, BANK, DIFFUSION, None, cache, CPU)
    assert find_prepared(*arguments) == find_prepared(images, BANK, DIFFUSION, folder, cache) == (True, True)
    assert find_prepared(images, BankConfig(size=4), DIFFUSION, None, cache) == (True, False)


@pytest.mark.parametrize("knows", ["parts as they lie", "turned parts"])
def test_textures_of_turned_parts(
    knows: str, pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DDPM that was trained elsewhere sees parts as they lie; its textures are turned. Our own sees turned parts."""
    files = []
    for index in range(3):
        pixels = torch.full((32, 32, 3), 200, dtype=torch.uint8)
        pixels[8 + 4 * index : 13 + 4 * index, 4 + index : 22 + index] = 60 + 10 * index
        files.append(tmp_path / f"bar{index}.png")
        Image.fromarray(pixels.numpy()).save(files[-1])
    canonical = CanonicalPose(PoseFrame(30, 50))
    images = NormalImages.from_files(files, SIZE).turn(canonical)
    lying, turned = images.as_they_lie().load(), images.load()
    assert lying.shape[-2:] == SIZE
    assert turned.shape[-2:] == (64, 64)
    seen = lying if knows == "parts as they lie" else turned
    monkeypatch.setattr(DefectPipeline, "image_size", tuple(seen.shape[-2:]))

    def sample(_: DefectPipeline, pixels: torch.Tensor, *__: Any) -> TextureBank:  # noqa: ANN401
        assert torch.equal(pixels, seen)
        return TextureBank(pixels[[2, 0]], torch.tensor([2, 0]), torch.zeros(3, 768))

    monkeypatch.setattr(preparation, "sample_bank", sample)
    bank = TextureBank.load(prepare_bank(images, BANK, None, pipeline_dir, tmp_path / "cache", CPU).bank_dir)
    assert bank.sources.tolist() == [2, 0]
    assert (bank.textures.int() - turned[[2, 0]].int()).abs().max() <= 1
    if knows == "parts as they lie":
        assert torch.equal(bank.source_thumbnails, thumbnails(turned.float() / 255))
    assert images.pose is canonical


def test_other_content_is_another_bank(paths: list[Path], pipeline_dir: Path, tmp_path: Path) -> None:
    """Pixels of files, transform, every setting and the weights of the DDPM decide, not the path of the DDPM."""

    def folder(files: list[Path], transform: Transform = RESIZE, **settings: Any) -> Path:  # noqa: ANN401
        images = NormalImages(ImageFiles(files), PreProcessor(transform))
        config = BankConfig(**{**asdict(BANK), **settings})
        return prepare_bank(images, config, None, pipeline_dir, tmp_path / "cache", CPU).bank_dir

    folders = [folder(paths), folder(paths[:2])]
    cropped = Compose([Resize((40, 40)), CenterCrop(SIZE)])
    folders += [folder(paths, transform) for transform in (Resize((32, 64)), Resize(SIZE, antialias=True), cropped)]
    changes = {"size": 2, "delta": (0, 1), "start_timestep": (1, 2), "num_inference_steps": 2, "detail": 2 * (0,)}
    folders += [folder(paths, **{name: value}) for name, value in {**changes, "seed": 1}.items()]
    pipeline_dir = pipeline_dir.rename(tmp_path / "moved")
    assert folder(paths) == folders[0]
    pipeline = load_pipeline(pipeline_dir)
    with torch.no_grad():
        pipeline.unet.conv_out.bias[0] += 0.5
    pipeline.save_pretrained(pipeline_dir)
    folders.append(folder(paths))
    with Image.open(paths[0]) as image:
        image.putpixel((33, 17), (0, 0, 0) if image.getpixel((33, 17))[0] > 127 else (255, 255, 255))
        image.save(paths[0])
    folders.append(folder(paths))
    assert len(set(folders)) == len(folders) == 13


def test_aspect_changes_no_texture(images: NormalImages, pipeline_dir: Path, tmp_path: Path) -> None:
    """The same pixels of squeezed images and of square ones: two banks with equal textures."""
    square = tmp_path / "square"
    square.mkdir()
    banks = []
    for index, pixels in enumerate(images.load()):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(square / f"{index}.png")
    for same in (images, NormalImages.from_files(sorted(square.iterdir()))):
        prepared = prepare_bank(same, BANK, None, pipeline_dir, tmp_path / "cache", CPU)
        banks.append(TextureBank.load(prepared.bank_dir))
    assert torch.equal(banks[0].textures, banks[1].textures)
    assert banks[0].aspect is not None
    assert banks[0].aspect.item() == pytest.approx(2)
    assert banks[1].aspect is None


def test_mixed_precision(
    images: NormalImages,
    pipeline_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The network samples in ``bfloat16``; the key does not depend on it."""
    seen: list[bool] = []

    def spy(*arguments: Any) -> TextureBank:  # noqa: ANN401
        seen.append(torch.is_autocast_enabled("cpu"))
        return sample_bank(*arguments)

    monkeypatch.setattr(preparation, "sample_bank", spy)
    folders = []
    for precision in ("bf16-mixed", "32-true"):
        arguments = (images, BANK, None, pipeline_dir, tmp_path / precision, CPU, precision)
        folders.append(prepare_bank(*arguments).bank_dir)
        assert TextureBank.load(folders[-1]).textures.dtype == torch.uint8
    assert seen == [True, False]
    assert folders[0].name == folders[1].name


def test_compiled_network(normal_images: torch.Tensor, pipeline_dir: Path) -> None:
    """A compiled network samples the same textures."""
    pipeline = load_pipeline(pipeline_dir)
    expected = sample_bank(pipeline, normal_images, BANK).textures
    pipeline.unet.compile(backend="eager")
    assert torch.equal(sample_bank(pipeline, normal_images, BANK).textures, expected)


def test_too_few_images(paths: list[Path], pipeline_dir: Path, tmp_path: Path) -> None:
    """One image is enough, unless the caller needs more."""
    image = NormalImages.from_files(paths[:1], SIZE)
    arguments = (image, BANK, None, pipeline_dir, tmp_path / "cache", CPU)
    assert prepare_bank(*arguments).bank_dir.exists()
    with pytest.raises(ValueError, match="at least 2 normal images, but found 1"):
        prepare_bank(*arguments, min_images=2)


@pytest.mark.parametrize("from_files", [True, False])
@pytest.mark.parametrize(("size", "aspect"), [((32, 32), 2.0), ((32, 64), None)])
def test_generator_from_images(
    paths: list[Path],
    pipeline_dir: Path,
    tmp_path: Path,
    size: tuple[int, int],
    aspect: float | None,
    from_files: bool,
) -> None:
    """The generator's bank stores the aspect ratio of squeezed images, and is that of ``prepare_bank``."""
    images = NormalImages.from_files(paths, size)
    given, unused = (paths, size) if from_files else (images, (8, 8))
    cache = tmp_path / "cache"
    defects = DefectConfig(source="diffusion", probability=0.25, p_soft=0.0)
    generator = prepare_generator(given, defects, asdict(BANK), None, unused, pipeline_dir, cache, CPU)
    assert generator.bank_textures is not None
    bank = generator.bank_textures.bank
    assert bank.textures.shape == (3, 3, *size)
    assert (None if bank.aspect is None else bank.aspect.item()) == aspect
    assert generator.defects == defects
    bank_dir = prepare_bank(images, BANK, None, pipeline_dir, cache, CPU).bank_dir
    assert [path for path in cache.iterdir() if path.is_dir()] == [bank_dir]


def test_generator_trains_a_ddpm_if_none_is_given(
    paths: list[Path],
    pipeline_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the given settings, on the given device and in the given precision."""
    asked: list[Any] = []

    def prepare(images: torch.Tensor, *arguments: Any) -> Path:  # noqa: ANN401
        asked.extend([tuple(images.shape), *arguments])
        return pipeline_dir

    monkeypatch.setattr(preparation, "prepare_diffusion", prepare)
    diffusion = {"training_steps": 5, "seed": 3}
    prepare_generator(paths, None, BANK, diffusion, SIZE, cache_dir=tmp_path, device=CPU, precision="bf16-mixed")
    assert asked == [(3, 3, 32, 32), DiffusionConfig(training_steps=5, seed=3), tmp_path, CPU, "bf16-mixed"]


def test_default_size_and_cache(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 x 256 pixels and the defaults of ``prepare_bank``."""
    asked: list[Any] = []

    def prepare(*arguments: Any) -> PreparedBank:  # noqa: ANN401
        asked.extend(arguments)
        TextureBank(torch.zeros(1, 3, 4, 4).byte(), torch.tensor([0]), torch.zeros(1, 768)).save(tmp_path)
        return PreparedBank(tmp_path, tmp_path)

    monkeypatch.setattr(preparation, "prepare_bank", prepare)
    assert prepare_generator(paths).defects == DefectConfig()
    images = asked.pop(0)
    assert images.paths == list(map(str, paths))
    assert torch.equal(images[0], NormalImages.from_files(paths, (256, 256))[0])
    assert asked == [BankConfig(), DiffusionConfig(), None, None, None, "32-true"]


def test_generator_without_a_ddpm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, trained or sampled."""
    forbid(monkeypatch, "prepare_diffusion", "prepare_bank")
    monkeypatch.setattr(NormalImages, "__getitem__", None)
    generator = prepare_generator(["missing.png"], {"source": "self_texture", "probability": 0.2})
    assert generator.bank_textures is None
    assert generator.defects == DefectConfig(source="self_texture", probability=0.2)


@pytest.mark.parametrize("source", ["mixture", "self_texture"])
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"defects": {"source": "magic"}}, r"defects\.source must be"),
        ({"defects": {"probability": 3.0}}, r"defects\.probability must be"),
        ({"bank": {"delta": (2.0, 1.0)}}, r"bank\.delta must be"),
        ({"bank": {"strength": (1.0, 2.0)}}, "has no setting 'strength'"),
        ({"diffusion": {"training_steps": 0}}, r"diffusion\.training_steps must be"),
    ],
)
def test_bad_settings_cost_no_training(
    paths: list[Path],
    source: str,
    arguments: dict[str, Any],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error is raised before stage 1, even for settings that the source does not use."""
    forbid(monkeypatch, "prepare_diffusion")
    monkeypatch.setattr(NormalImages, "__getitem__", None)
    with pytest.raises(ValueError, match=match):
        prepare_generator(paths, **{"defects": {"source": source}, **arguments})


def test_own_diffusion_has_learned_turned_parts(
    images: NormalImages,
    pipeline_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever its size, which is that of windows for large images: nothing is turned twice."""
    images.turn(CanonicalPose(PoseFrame(30, 50)))
    monkeypatch.setattr(preparation, "prepare_diffusion", lambda *_: pipeline_dir)
    forbid(monkeypatch, "turn_bank")
    assert load_pipeline(pipeline_dir).image_size != images.load().shape[-2:]
    bank = TextureBank.load(prepare_bank(images, BANK, None, None, tmp_path / "cache", CPU).bank_dir)
    assert bank.textures.shape[-2:] == images.load().shape[-2:]
