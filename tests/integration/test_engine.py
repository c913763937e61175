# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""DdpmSt in anomalib's Engine: train, checkpoints, predict, export, bad input."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import Folder, ImageBatch, MVTecAD
from anomalib.data.utils import ValSplitMode
from anomalib.deploy import CompressionType, ExportType, OpenVINOInferencer
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.signals import signal_stack
from anomalib_ddpm_st.synthesis import preparation

from .conftest import make_engine


def test_train_gives_all_metrics(trained: tuple) -> None:
    _, _, metrics = trained
    expected = {"image_AUROC", "pixel_AUROC", "pixel_AUPRO", "pixel_AUPR", "image_F1Score", "pixel_F1Score"}
    assert set(metrics[0]) == expected


def test_validation_metrics_can_be_monitored(trained: tuple) -> None:
    engine, _, _ = trained
    # The Engine's test run clears them; validating alone brings them back.
    _, model, _ = trained
    datamodule = engine.trainer.datamodule
    assert set(engine.validate(model, datamodule=datamodule)[0]) == {"image_AUROC", "pixel_AUROC"}


def test_teacher_and_batch_norm_of_the_encoder_stay_frozen(
    trained: tuple,
    tmp_path: Path,
    datamodule: MVTecAD,
    small: dict[str, Any],
) -> None:
    assert trained
    model = DdpmSt(**small, student="encoder", visualizer=False)
    teacher = {name: value.clone() for name, value in model.model.teacher.state_dict().items()}
    encoder = {name: value.clone() for name, value in model.model.student.encoder.state_dict().items()}
    make_engine(tmp_path, limit_val_batches=0).fit(model, datamodule=datamodule)
    for name, value in model.model.teacher.state_dict().items():
        assert name == "has_weights" or torch.equal(value, teacher[name]), name
    changed = {
        name
        for name, value in model.model.student.encoder.state_dict().items()
        if not torch.equal(value, encoder[name])
    }
    assert changed
    assert not [name for name in changed if "running" in name or "num_batches" in name]


def test_schedule_ends_training(trained: tuple) -> None:
    engine, _, _ = trained
    assert engine.trainer.global_step == 2


def test_max_steps_ends_training_sooner(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    model = DdpmSt(**{**small, "training_steps": 50}, visualizer=False)
    engine = make_engine(tmp_path, max_steps=1, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    assert engine.trainer.global_step == 1


def test_max_epochs_ends_training_sooner(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    model = DdpmSt(**{**small, "training_steps": 50}, visualizer=False)
    engine = make_engine(tmp_path, max_epochs=1, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    assert engine.trainer.global_step == 3  # six images in batches of two
    # The learning rate has come down with the end of the shorter schedule.
    assert engine.trainer.optimizers[0].param_groups[0]["lr"] < 1e-4


def test_second_run_reuses_the_cache(
    tmp_path: Path,
    datamodule: MVTecAD,
    tiny: dict[str, Any],
    trained: tuple,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert trained

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"made again with {args} {kwargs}")

    monkeypatch.setattr(preparation, "train_diffusion", refuse)
    monkeypatch.setattr(preparation, "sample_bank", refuse)
    make_engine(tmp_path, limit_val_batches=0).fit(DdpmSt(**tiny, visualizer=False), datamodule=datamodule)


def test_checkpoint_reloads_and_predicts_the_same(trained: tuple, mvtec_root: Path) -> None:
    engine, model, _ = trained
    loaded = DdpmSt.load_from_checkpoint(engine.best_model_path).eval()
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = model.cpu().eval()(image), loaded(image)
    torch.testing.assert_close(actual.anomaly_map, expected.anomaly_map, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.pred_score, expected.pred_score, atol=1e-5, rtol=0)
    assert mvtec_root.exists()


def test_checkpoint_holds_no_diffusion_and_no_textures(trained: tuple) -> None:
    engine, model, _ = trained
    state = torch.load(engine.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    parts = {name.split(".")[1] for name in state if name.startswith("model.")}
    assert parts == {"teacher", "student", "head", "memory", "score_spread"}
    assert model.model.memory.is_filled
    assert (state["model.score_spread"] < 1).all()
    assert not any("unet" in name or "bank" in name for name in state)
    assert model.generator is None


def test_predict_on_a_folder(trained: tuple, mvtec_root: Path) -> None:
    engine, model, _ = trained
    batches = engine.predict(model, data_path=mvtec_root / "gravel" / "test" / "defect")
    assert sum(len(batch.image_path) for batch in batches) == 2
    assert all(0 <= float(score) <= 1 for batch in batches for score in batch.pred_score.flatten())


@pytest.mark.parametrize("input_size", [None, (256, 256)])
def test_openvino_equals_torch(
    tmp_path: Path,
    trained: tuple,
    mvtec_root: Path,
    input_size: tuple[int, int] | None,
) -> None:
    engine, model, _ = trained
    path = engine.export(
        model,
        ExportType.OPENVINO,
        export_root=tmp_path,
        input_size=input_size,
    )
    size = input_size or (150, 200)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    # Processors with bfloat16 would use it unasked.
    inferencer = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    prediction = inferencer.predict(image)
    with torch.no_grad():
        expected = model.cpu().eval()(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    np.testing.assert_allclose(prediction.anomaly_map.squeeze(), expected.anomaly_map.squeeze(), atol=1e-4)
    np.testing.assert_allclose(prediction.pred_score.squeeze(), expected.pred_score.squeeze(), atol=1e-4)
    assert mvtec_root.exists()


@pytest.mark.parametrize(
    ("compression", "input_size"),
    [(CompressionType.INT8_PTQ, None), (CompressionType.INT8_PTQ, (128, 128)), (CompressionType.INT8_ACQ, None)],
)
def test_int8_comes_close(
    tmp_path: Path,
    trained: tuple,
    datamodule: MVTecAD,
    compression: CompressionType,
    input_size: tuple[int, int] | None,
) -> None:
    engine, model, _ = trained
    stack = bytes(signal_stack())
    paths = [
        engine.export(
            model,
            ExportType.OPENVINO,
            export_root=tmp_path / str(kind),
            input_size=input_size,
            compression_type=kind,
            datamodule=datamodule,
        )
        for kind in (None, compression)
    ]
    assert bytes(signal_stack()) == stack
    core = openvino.Core()
    kinds = [{node.get_type_name() for node in core.read_model(path).get_ops()} for path in paths]
    assert "FakeQuantize" not in kinds[0]
    if compression == CompressionType.INT8_PTQ:
        assert "FakeQuantize" in kinds[1]
        assert paths[1].with_suffix(".bin").stat().st_size < 0.4 * paths[0].with_suffix(".bin").stat().st_size
    image = datamodule.test_data[0].image[None].numpy()
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    full, short = (core.compile_model(path, "CPU", config)(image)["anomaly_map"] for path in paths)
    assert np.abs(full - short).mean() < 0.05


@pytest.mark.parametrize(
    ("compression", "arguments", "match"),
    [
        (CompressionType.INT8_PTQ, {}, "give the datamodule of the training"),
        (CompressionType.INT8_ACQ, {"split": ValSplitMode.NONE}, "set the datamodule's val_split_mode"),
        (CompressionType.INT8_ACQ, {"split": ValSplitMode.SAME_AS_TEST, "max_drop": 2.0}, "max_drop must lie in"),
    ],
)
def test_int8_without_what_it_needs(
    tmp_path: Path,
    trained: tuple,
    mvtec_root: Path,
    compression: CompressionType,
    arguments: dict[str, Any],
    match: str,
) -> None:
    _, model, _ = trained
    arguments = dict(arguments)
    split = arguments.pop("split", None)
    if split is not None:
        arguments["datamodule"] = MVTecAD(root=mvtec_root, category="gravel", num_workers=0, val_split_mode=split)
    with pytest.raises(ValueError, match=match):
        model.to_openvino(tmp_path, compression_type=compression, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_onnx_export_is_a_file(tmp_path: Path, trained: tuple) -> None:
    onnx = pytest.importorskip("onnx")
    engine, model, _ = trained
    path = engine.export(model, ExportType.ONNX, export_root=tmp_path)
    onnx.checker.check_model(str(path))


def test_dataloader_without_datamodule(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    datamodule.setup()
    engine = make_engine(tmp_path)
    engine.fit(DdpmSt(**small, visualizer=False), train_dataloaders=datamodule.train_dataloader())
    assert engine.trainer.global_step == 2


def test_self_texture_needs_no_diffusion(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    cache = tmp_path / "cache"
    model = DdpmSt(**{**small, "cache_dir": str(cache), "synthesis": "self_texture"}, visualizer=False)
    make_engine(tmp_path, limit_val_batches=0).fit(model, datamodule=datamodule)
    assert not cache.exists()


def test_component_arguments(tiny: dict[str, Any]) -> None:
    model = DdpmSt(**tiny, pre_processor=False, post_processor=False, evaluator=False, visualizer=False)
    assert model.pre_processor is None
    assert model.post_processor is None
    assert model.evaluator is None
    assert model.visualizer is None


def test_training_step_needs_no_masks(
    tmp_path: Path,
    datamodule: MVTecAD,
    small: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Classification folders give batches without masks."""
    model = DdpmSt(**small, visualizer=False)
    engine = make_engine(tmp_path, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    model.on_train_start()
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    batch = ImageBatch(image=torch.rand(2, 3, 64, 64), gt_label=torch.zeros(2, dtype=torch.bool))
    assert torch.isfinite(model.training_step(batch)["loss"])


# Bad input: one clear sentence each


def test_missing_data_root(tmp_path: Path, tiny: dict[str, Any]) -> None:
    datamodule = Folder(name="part", root=tmp_path / "missing", normal_dir="good", num_workers=0)
    with pytest.raises(FileNotFoundError, match=r"images are missing .*missing/good.*check the root"):
        make_engine(tmp_path).fit(DdpmSt(**tiny, visualizer=False), datamodule=datamodule)


def test_unreadable_image(tmp_path: Path, mvtec_root: Path, tiny: dict[str, Any]) -> None:
    good = tmp_path / "data" / "good"
    shutil.copytree(mvtec_root / "gravel" / "train" / "good", good)
    broken = min(good.glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    datamodule = Folder(name="part", root=tmp_path / "data", normal_dir="good", num_workers=0)
    with pytest.raises(ValueError, match=f"{broken.name} cannot be read"):
        make_engine(tmp_path).fit(DdpmSt(**tiny, visualizer=False), datamodule=datamodule)


def test_single_training_image(tmp_path: Path, mvtec_root: Path, tiny: dict[str, Any]) -> None:
    good = tmp_path / "data" / "good"
    good.mkdir(parents=True)
    shutil.copy(min((mvtec_root / "gravel" / "train" / "good").glob("*.png")), good)
    datamodule = Folder(
        name="part",
        root=tmp_path / "data",
        normal_dir="good",
        normal_test_dir="good",
        num_workers=0,
        val_split_mode="none",
    )
    with pytest.raises(ValueError, match="at least 2 normal images, but found 1"):
        make_engine(tmp_path).fit(DdpmSt(**tiny, visualizer=False), datamodule=datamodule)


def test_hub_unreachable(
    tmp_path: Path,
    datamodule: MVTecAD,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    model = DdpmSt(**{**tiny, "pre_trained": True}, visualizer=False)
    with pytest.raises(ConnectionError, match=r"could not be had from the hub.*teacher_weights"):
        make_engine(tmp_path).fit(model, datamodule=datamodule)


def test_normalize_is_refused(tiny: dict[str, Any]) -> None:
    transform = Compose([Resize((64, 64)), Normalize([0.5] * 3, [0.5] * 3)])
    with pytest.raises(ValueError, match="take Normalize out"):
        DdpmSt(**tiny, pre_processor=PreProcessor(transform=transform))
