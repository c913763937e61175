# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Parts that lie in any pose: training, testing, checkpoints and export, and other models with the same step."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import Folder
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from anomalib.models import Padim
from anomalib.pre_processing import PreProcessor
from PIL import Image, ImageDraw
from torchvision.transforms.v2 import Compose, Resize

from anomalib_ddpm_st import CanonicalPose, DdpmSt, TextureBank
from anomalib_ddpm_st.detector.layers import resize

from .conftest import TINY, make_engine

SIDE = 96
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def draw(angle: float, *, dent: bool = False, bolts: int = 1) -> Image.Image:
    """Bolts on a plain background with a little noise."""
    image = Image.new("L", (SIDE, SIDE), 200)
    for number in range(bolts):
        bolt = Image.new("L", (SIDE, SIDE), 0)
        canvas = ImageDraw.Draw(bolt)
        canvas.rectangle((18, 42, 70, 52), fill=255)
        canvas.rectangle((70, 34, 78, 60), fill=255)
        if dent:
            canvas.rectangle((36, 42, 42, 46), fill=0)
        bolt = bolt.rotate(angle + 80 * number, translate=(6 * number, -12 * number))
        image.paste(60, mask=bolt)
    noise = np.random.default_rng(int(angle)).normal(0, 2, (SIDE, SIDE))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of normal, good and defective bolts, turned at random."""
    root = tmp_path_factory.mktemp("bolts")
    angles = np.random.default_rng(0).uniform(0, 360, 18).tolist()
    for folder, part in (("normal", angles[:12]), ("good", angles[12:15]), ("bad", angles[15:])):
        (root / folder).mkdir()
        for index, angle in enumerate(part):
            draw(angle, dent=folder == "bad").save(root / folder / f"{index}.png")
    (root / "mask").mkdir()
    for index, angle in enumerate(angles[15:]):
        dent = Image.new("L", (SIDE, SIDE), 0)
        ImageDraw.Draw(dent).rectangle((36, 42, 42, 46), fill=255)
        dent.rotate(angle).save(root / "mask" / f"{index}.png")
    return root


def make_datamodule(root: Path) -> Folder:
    """Datamodule of the bolts."""
    folders = {"normal_dir": "normal", "normal_test_dir": "good", "abnormal_dir": "bad", "mask_dir": "mask"}
    settings = {"train_batch_size": 4, "eval_batch_size": 2, "num_workers": 0, "val_split_mode": "same_as_test"}
    return Folder("bolts", root=root, **folders, **settings)


def settings(folder: Path) -> dict[str, Any]:
    """Init arguments of a model that trains in seconds."""
    return {**TINY, "cache_dir": str(folder / "cache"), "visualizer": False}


@pytest.fixture(scope="module")
def turned(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, DdpmSt, str]:
    """A model trained for two steps on images of 96 pixels, its engine and what it logged."""
    folder = tmp_path_factory.mktemp("pose")
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("anomalib_ddpm_st")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    model = DdpmSt(**settings(folder), pre_processor=DdpmSt.configure_pre_processor((SIDE, SIDE)))
    engine = make_engine(folder)
    engine.fit(model, datamodule=make_datamodule(root))
    logger.removeHandler(handler)
    return engine, model, "\n".join(records)


def test_pose_is_found_and_used_by_all_stages(turned: tuple, root: Path) -> None:
    """One line says why; DDPM, bank and memory see turned parts in a frame smaller than the image."""
    engine, model, log = turned
    assert log.count("Pose on: parts lie in different poses") == 1
    pose = model.model.pose
    assert pose is not None
    size = pose.frame.size(SIDE, SIDE)
    assert size[0] < SIDE
    assert TextureBank.load(model.bank_dir).textures.shape[-2:] == size
    assert model.model.memory_bank.is_filled
    (metrics,) = engine.test(model, datamodule=make_datamodule(root))
    assert all(0 <= value <= 1 for value in metrics.values())


def test_pose_is_loaded(turned: tuple) -> None:
    """A checkpoint brings the pose, and a model that is loaded again predicts the same."""
    engine, model, _ = turned
    loaded = DdpmSt.load_from_checkpoint(engine.best_model_path).eval()
    assert loaded.model.pose is not None
    assert loaded.model.pose.frame == model.model.pose.frame
    image = as_tensor(draw(77))
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).anomaly_map, model.cpu().eval()(image).anomaly_map)


def test_checkpoint_of_an_earlier_version(turned: tuple, tmp_path: Path) -> None:
    """It takes images as they are, and its memory bank has one scale and knows no places."""
    engine, _, _ = turned
    checkpoint = torch.load(engine.best_model_path, weights_only=False)
    state = checkpoint["state_dict"]
    for name in ("pose_frame", "memory_bank.position_weight", *(f"memory_bank.places{level}" for level in range(3))):
        del state[f"model.{name}"]
    state["model.memory_bank.scale"] = torch.tensor(4.0)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    model = DdpmSt.load_from_checkpoint(tmp_path / "old.ckpt").model
    assert model.pose is None
    memory_bank = model.memory_bank
    features = [torch.randn(1, dim, 16 >> level, 16 >> level) for level, dim in enumerate(model.teacher.out_dims)]
    described = zip(memory_bank.describe(features), memory_bank.levels, strict=True)
    distances = [(1 - torch.einsum("bchw,nc->bnhw", *pair)).amin(dim=1, keepdim=True) for pair in described]
    expected = 4 * torch.stack([resize(distance, (8, 8)) for distance in distances]).mean(dim=0)
    torch.testing.assert_close(memory_bank(features), expected.clamp(0, 1))


def as_tensor(*images: Image.Image) -> torch.Tensor:
    """Images of shape ``(B, 3, H, W)`` with values in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255


@pytest.mark.parametrize("input_size", [None, (SIDE, SIDE)])
def test_openvino_equals_torch(turned: tuple, input_size: tuple[int, int] | None, tmp_path: Path) -> None:
    """Dynamic and static, one image and three, with parts that are missing, doubled or dented, too."""
    engine, model, _ = turned
    path = engine.export(model, ExportType.OPENVINO, export_root=tmp_path, input_size=input_size)
    compiled = openvino.Core().compile_model(path, "CPU", FLOAT32)
    flat = Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
    images = as_tensor(draw(12), draw(100, dent=True), draw(230, bolts=2), draw(291), flat, draw(0))
    for count in (1, 3):
        for batch in images.split(count):
            with torch.no_grad():
                expected = model.cpu().eval()(batch)
            result = compiled([batch.numpy()])
            np.testing.assert_allclose(result["anomaly_map"], expected.anomaly_map, atol=1e-4)
            np.testing.assert_allclose(result["pred_score"].flatten(), expected.pred_score.flatten(), atol=1e-4)


@pytest.mark.slow
def test_int8_turns_parts_as_before(turned: tuple, root: Path, tmp_path: Path) -> None:
    """The pose is computed in FP32, so that the map of a part stays where it is."""
    engine, model, _ = turned
    arguments = {"input_size": (SIDE, SIDE), "compression_type": CompressionType.INT8_PTQ}
    path = engine.export(
        model, ExportType.OPENVINO, export_root=tmp_path, datamodule=make_datamodule(root), **arguments
    )
    compiled = openvino.Core().compile_model(path, "CPU", FLOAT32)
    for angle in (12, 130, 291):
        image = as_tensor(draw(angle, dent=True))
        with torch.no_grad():
            expected = model.cpu().eval()(image).anomaly_map.numpy()
        shown = compiled([image.numpy()])["anomaly_map"] > 0
        overlap = (shown & (expected > 0)).sum() / (shown | (expected > 0)).sum()
        assert overlap > 0.97


@pytest.mark.parametrize("change", [{"pose": "off"}, {"pose": "auto"}], ids=["off", "lying alike"])
def test_pose_off(change: dict[str, str], root: Path, tmp_path: Path) -> None:
    """Switched off, or with parts that all lie alike, images stay as they are."""
    folder = root
    if change["pose"] == "auto":
        folder = tmp_path / "fixed"
        for name in ("normal", "good", "bad", "mask"):
            (folder / name).mkdir(parents=True)
            for index in range(12 if name == "normal" else 2):
                draw(0.1 * index, dent=name == "bad").save(folder / name / f"{index}.png")
    model = DdpmSt(**{**settings(tmp_path), "defects": {"source": "self_texture"}}, **change)
    make_engine(tmp_path, limit_val_batches=0).fit(model, datamodule=make_datamodule(folder))
    assert model.model.pose is None


def test_other_models_take_it_as_a_step(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and masks of another model are turned in training, test and exported model."""
    import timm

    create: Callable[..., Any] = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False}))
    transform = Compose([Resize((64, 64), antialias=False), CanonicalPose()])
    arguments = {"pre_trained": False, "layers": ["layer1"], "n_features": 10, "visualizer": False}
    model = Padim(pre_processor=PreProcessor(transform=transform), **arguments)
    engine = make_engine(tmp_path)
    datamodule = make_datamodule(root)
    engine.fit(model, datamodule=datamodule)
    (metrics,) = engine.test(model, datamodule=datamodule)
    assert metrics["pixel_AUROC"] > 0.5
    path = engine.export(model, ExportType.OPENVINO, export_root=tmp_path, onnx_kwargs={"opset_version": 18})
    image = as_tensor(draw(40))
    with torch.no_grad():
        expected = model.cpu().eval()(image).anomaly_map
    result = openvino.Core().compile_model(path, "CPU", FLOAT32)([image.numpy()])["anomaly_map"]
    np.testing.assert_allclose(result.squeeze(), expected.squeeze(), atol=1e-3)
