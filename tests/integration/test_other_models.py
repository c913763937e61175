# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib models that train with diffusion-made defects, by the configs of this repository."""

from pathlib import Path

import pytest
import timm
import yaml
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Draem

from anomalib_ddpm_st import SyntheticAnomalies, prepare_generator, synthetic_split

from .conftest import ROOT, SIZE, SMALL_IMAGES, TINY, Command

STAGES = {name: TINY[name] for name in ("diffusion", "bank")}


@pytest.mark.parametrize("name", ["draem", "supersimplenet"])
def test_config(
    name: str,
    command: Command,
    tmp_path: Path,
    mvtec_root: Path,
    cache_dir: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The config trains the model for a step, made small; Supersimplenet with a backbone without weights."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False}))
    config = yaml.safe_load((ROOT / "configs" / f"{name}_ddpm_st.yaml").read_text())
    config["trainer"].update(max_steps=1, max_epochs=1, accelerator="cpu")
    config["model"]["init_args"]["pre_processor"] = SMALL_IMAGES
    config["trainer"]["callbacks"][0]["init_args"].update(STAGES, cache_dir=cache_dir)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    data = [f"--data.root={mvtec_root}", "--data.category=gravel", "--data.train_batch_size=2", "--data.num_workers=0"]
    command("fit", "-c", str(path), "--data", "anomalib.data.MVTecAD", *data)
    assert len(list(tmp_path.rglob("model.ckpt"))) == 1


@pytest.mark.slow
def test_draem_with_a_validation_set_of_defects(
    tmp_path: Path,
    mvtec_root: Path,
    cache_dir: str,
) -> None:
    """Trained and validated with defects of a DDPM; the checkpoint holds none of it."""
    data = MVTecAD(mvtec_root, "gravel", 2, 2, 0, val_split_mode="synthetic", val_split_ratio=0.4, seed=0)
    good = sorted((mvtec_root / "gravel" / "train" / "good").glob("*.png"))
    settings = {**STAGES, "cache_dir": cache_dir}
    with synthetic_split(prepare_generator(good, image_size=SIZE, **settings)):
        data.setup()
    model = Draem(dtd_dir=tmp_path, pre_processor=Draem.configure_pre_processor(SIZE))
    use = SyntheticAnomalies(**settings)
    engine = Engine(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[use])
    names = set(model.state_dict())
    engine.fit(model, datamodule=data)
    assert set(model.state_dict()) == names
    assert any(bool(item.gt_label) for item in data.val_data)
    assert model.post_processor.image_threshold.isfinite(), "the threshold comes from validation"


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_generator_is_restored_after_an_exception(
    error: BaseException,
    tmp_path: Path,
    mvtec_root: Path,
    cache_dir: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later training without the callback makes the model's own defects again."""

    def fail(*_: object, **__: object) -> None:
        raise error

    model = Draem(dtd_dir=tmp_path, pre_processor=Draem.configure_pre_processor(SIZE))
    own = model.augmenter
    monkeypatch.setattr(model, "training_step", fail)
    data = MVTecAD(mvtec_root, "gravel", 2, 2, 0)
    use = SyntheticAnomalies(**STAGES, cache_dir=cache_dir)
    engine = Engine(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[use])
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        engine.fit(model, datamodule=data)
    assert model.augmenter is own
    assert use.generator is None
