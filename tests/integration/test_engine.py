# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""DdpmSt in anomalib's Engine: train, checkpoints, predict, bad input."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import Folder, ImageBatch, MVTecAD
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_ddpm_st import BankConfig, DdpmSt, DefectConfig, DiffusionConfig
from anomalib_ddpm_st.core import optimization
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


def test_only_student_and_head_learn(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    """The weights and statistics of the teacher stay as they were."""
    model = DdpmSt(**small)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    make_engine(tmp_path, limit_val_batches=0).fit(model, datamodule=datamodule)
    changed = {name for name, value in model.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"student", "head", "memory_bank", "score_spread"}
    assert {name for name, _ in model.model.named_parameters() if not name.startswith("teacher.")} <= changed


def test_schedule_ends_training(trained: tuple) -> None:
    engine, _, _ = trained
    assert engine.trainer.global_step == 2


def test_max_steps_ends_training_sooner(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    model = DdpmSt(**{**small, "training_steps": 50})
    engine = make_engine(tmp_path, max_steps=1, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    assert engine.trainer.global_step == 1


def test_few_images_train_the_whole_schedule(
    tmp_path: Path,
    datamodule: MVTecAD,
    small: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning's default number of epochs, here 1, does not end the schedule."""
    monkeypatch.setattr(optimization, "LIGHTNING_EPOCHS", 1)
    model = DdpmSt(**{**small, "training_steps": 5})
    engine = make_engine(tmp_path, max_epochs=1, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    assert engine.trainer.global_step == 5  # three steps an epoch


def test_max_epochs_ends_training_sooner(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    model = DdpmSt(**{**small, "training_steps": 50})
    engine = make_engine(tmp_path, max_epochs=1, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    assert engine.trainer.global_step == 3  # six images in batches of two
    # The learning rate has come down with the end of the shorter schedule.
    assert engine.trainer.optimizers[0].param_groups[0]["lr"] < 1e-4


def test_second_run_reuses_the_cache(
    tmp_path: Path,
    datamodule: MVTecAD,
    small: dict[str, Any],
    trained: tuple,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if the same settings are given as dataclasses."""
    _, first, _ = trained

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"made again with {args} {kwargs}")

    monkeypatch.setattr(preparation, "train_diffusion", refuse)
    monkeypatch.setattr(preparation, "sample_bank", refuse)
    configs = {
        "diffusion": DiffusionConfig(**small["diffusion"]),
        "bank": BankConfig(**small["bank"]),
        "defects": DefectConfig(probability=1.0),
    }
    model = DdpmSt(**{**small, **configs})
    make_engine(tmp_path, limit_val_batches=0).fit(model, datamodule=datamodule)
    assert (model.bank_dir, model.diffusion_dir) == (first.bank_dir, first.diffusion_dir)


def test_checkpoint_reloads_and_predicts_the_same(trained: tuple) -> None:
    engine, model, _ = trained
    loaded = DdpmSt.load_from_checkpoint(engine.best_model_path).eval()
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = model.cpu().eval()(image), loaded(image)
    torch.testing.assert_close(actual.anomaly_map, expected.anomaly_map, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.pred_score, expected.pred_score, atol=1e-5, rtol=0)


def test_checkpoint_holds_no_diffusion_and_no_textures(trained: tuple) -> None:
    engine, model, _ = trained
    state = torch.load(engine.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    parts = {name.split(".")[1] for name in state if name.startswith("model.")}
    assert parts == {"teacher", "student", "head", "memory_bank", "score_spread", "pose_frame"}
    assert model.model.memory_bank.is_filled
    assert (state["model.score_spread"] < 1).all()
    assert not any("unet" in name or "bank." in name.replace("memory_bank.", "") for name in state)
    assert model.generator is None


def is_plain(value: Any) -> bool:  # noqa: ANN401
    """Whether a value consists of builtin types alone."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in {bool, int, float, str}


def test_checkpoint_holds_settings_as_plain_data(trained: tuple) -> None:
    """They come back as the same dataclasses, lists as tuples; a group can be replaced."""
    engine, model, _ = trained
    saved = torch.load(engine.best_model_path, map_location="cpu", weights_only=True)["hyper_parameters"]
    loaded = DdpmSt.load_from_checkpoint(engine.best_model_path)
    for name, kind in (("diffusion", DiffusionConfig), ("bank", BankConfig), ("defects", DefectConfig)):
        assert is_plain(saved[name])
        assert saved[name] == asdict(getattr(model, name))
        assert type(getattr(loaded, name)) is kind
        assert getattr(loaded, name) == getattr(model, name)
        assert loaded.hparams[name] == model.hparams[name]
    assert loaded.bank.num_inference_steps == 2
    assert loaded.defects.opacity == (0.4, 0.9)
    assert isinstance(loaded.diffusion.block_out_channels, tuple)
    other = DdpmSt.load_from_checkpoint(engine.best_model_path, defects={"probability": 0.5})
    assert other.defects == DefectConfig(probability=0.5)
    assert other.bank == model.bank


def test_predict_on_a_folder(trained: tuple, mvtec_root: Path) -> None:
    engine, model, _ = trained
    batches = engine.predict(model, data_path=mvtec_root / "gravel" / "test" / "defect")
    assert sum(len(batch.image_path) for batch in batches) == 2
    assert all(0 <= float(score) <= 1 for batch in batches for score in batch.pred_score.flatten())


def test_dataloader_without_datamodule(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    datamodule.setup()
    engine = make_engine(tmp_path)
    engine.fit(DdpmSt(**small), train_dataloaders=datamodule.train_dataloader())
    assert engine.trainer.global_step == 2


def test_self_texture_needs_no_diffusion(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    cache = tmp_path / "cache"
    model = DdpmSt(**{**small, "cache_dir": str(cache), "defects": {"source": "self_texture"}})
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
    model = DdpmSt(**small)
    engine = make_engine(tmp_path, limit_val_batches=0)
    engine.fit(model, datamodule=datamodule)
    model.on_train_start()
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    batch = ImageBatch(image=torch.rand(2, 3, 64, 64), gt_label=torch.zeros(2, dtype=torch.bool))
    assert torch.isfinite(model.training_step(batch)["loss"])


# Bad input: one clear sentence each


def test_missing_data_root(tmp_path: Path, small: dict[str, Any]) -> None:
    datamodule = Folder(name="part", root=tmp_path / "missing", normal_dir="good", num_workers=0)
    with pytest.raises(FileNotFoundError, match=r"images are missing .*missing/good.*check the root"):
        make_engine(tmp_path).fit(DdpmSt(**small), datamodule=datamodule)


def test_unreadable_image(tmp_path: Path, mvtec_root: Path, small: dict[str, Any]) -> None:
    good = tmp_path / "data" / "good"
    shutil.copytree(mvtec_root / "gravel" / "train" / "good", good)
    broken = min(good.glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    datamodule = Folder(name="part", root=tmp_path / "data", normal_dir="good", num_workers=0)
    with pytest.raises(ValueError, match=f"{broken.name} cannot be read"):
        make_engine(tmp_path).fit(DdpmSt(**small), datamodule=datamodule)


def test_single_training_image(tmp_path: Path, mvtec_root: Path, small: dict[str, Any]) -> None:
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
        make_engine(tmp_path).fit(DdpmSt(**small), datamodule=datamodule)


@pytest.mark.usefixtures("offline")
def test_hub_unreachable(tmp_path: Path, datamodule: MVTecAD, small: dict[str, Any]) -> None:
    model = DdpmSt(**{**small, "pre_trained": True})
    with pytest.raises(ConnectionError, match=r"could not be downloaded.*teacher_weights"):
        make_engine(tmp_path).fit(model, datamodule=datamodule)


def test_normalize_is_refused(tiny: dict[str, Any]) -> None:
    transform = Compose([Resize((64, 64)), Normalize([0.5] * 3, [0.5] * 3)])
    with pytest.raises(ValueError, match="remove Normalize"):
        DdpmSt(**tiny, pre_processor=PreProcessor(transform=transform))
