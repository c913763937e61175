# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of diffusion-made defects for other models."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from anomalib.models import Draem, Patchcore, Stfpm, Supersimplenet
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import (
    BankConfig,
    DefectConfig,
    DiffusionAnomalyGenerator,
    SyntheticAnomalies,
    callback,
)
from anomalib_ddpm_st.synthesis.callback import NormalizedGenerator, UnchangedFeatures


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones with random weights."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of the call of ``prepare_generator``, which returns a generator without a bank."""
    arguments: dict[str, Any] = {}

    def prepare(images: NormalImages, **settings: Any) -> DiffusionAnomalyGenerator:  # noqa: ANN401
        arguments.update(images=images, **settings)
        return DiffusionAnomalyGenerator(None, replace(settings["defects"], source="self_texture"))

    monkeypatch.setattr(callback, "prepare_generator", prepare)
    return arguments


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Two normal images."""
    root = tmp_path_factory.mktemp("data")
    (root / "good").mkdir()
    for index in range(2):
        pixels = torch.randint(256, (40, 60, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / "good" / f"{index}.png")
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    datamodule = Folder(name="x", root=root, normal_dir="good", num_workers=0, **splits)
    datamodule.setup()
    return datamodule


def trainer(datamodule: Any) -> Any:  # noqa: ANN401
    """Stand-in for the Trainer."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(datamodule=datamodule, strategy=strategy, precision="bf16-mixed")


def test_draem_gets_the_generator(tmp_path: Path, data: Folder, asked: dict[str, Any]) -> None:
    """Draem has this generator during training, and its own again afterwards."""
    model = Draem(dtd_dir=tmp_path)
    own = model.augmenter
    assert isinstance(own, PerlinAnomalyGenerator)
    use = SyntheticAnomalies({"probability": 1.0}, {"size": 3}, {"training_steps": 7}, cache_dir="cache")
    use.setup(trainer(data), model, "test")
    assert model.augmenter is own
    use.setup(trainer(data), model, "fit")
    assert isinstance(model.augmenter, NormalizedGenerator)
    assert asked["images"].paths == data.train_data.samples["image_path"].tolist()
    assert "image_size" not in asked
    assert asked["defects"] == DefectConfig(probability=1.0)
    assert (asked["bank"], asked["diffusion"]) == (BankConfig(size=3), DiffusionConfig(training_steps=7))
    assert (asked["diffusion_path"], asked["cache_dir"], asked["precision"]) == (None, "cache", "bf16-mixed")
    images = torch.rand(2, 3, 64, 64)
    augmented, masks = model.augmenter(images)
    assert masks.flatten(1).any(dim=1).all()
    assert torch.equal((augmented != images).any(dim=1, keepdim=True) & ~masks.bool(), torch.zeros_like(masks).bool())
    batch = ImageBatch(image=images.clone(), gt_label=torch.zeros(2, dtype=torch.bool))
    use.on_train_batch_start(trainer(data), model, batch, 0)
    assert torch.equal(batch.image, images)
    use.teardown(trainer(data), model, "fit")
    assert model.augmenter is own


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("adapt_cls_features", [True, False])
def test_supersimplenet_gets_images_with_defects(
    supervised: bool,
    adapt_cls_features: bool,
    data: Folder,
    asked: dict[str, Any],
) -> None:
    """Images, masks and labels of the batch change, features do not. Fails if anomalib changes the call."""
    model = Supersimplenet(
        backbone="resnet18.tv_in1k", supervised=supervised, adapt_cls_features=adapt_cls_features
    ).train()
    own = model.model.anomaly_generator
    use = SyntheticAnomalies(DefectConfig(probability=1.0))
    use.setup(trainer(data), model, "fit")
    assert len(asked["images"]) == 2
    assert isinstance(model.model.anomaly_generator, UnchangedFeatures)
    normalize = model.pre_processor.transform
    images = normalize(torch.rand(2, 3, 64, 64))
    batch = ImageBatch(
        image=images.clone(),
        gt_label=torch.zeros(2, dtype=torch.bool),
        gt_mask=torch.zeros(2, *images.shape[-2:], dtype=torch.bool),
    )
    use.on_train_batch_start(trainer(data), model, batch, 0)
    assert batch.gt_label.all()
    assert batch.gt_mask.shape == (2, *images.shape[-2:])
    changed = (batch.image != images).any(dim=1)
    assert changed.any()
    assert not (changed & ~batch.gt_mask).any()
    anomaly_map, score, masks, labels = model.model(batch.image, batch.gt_mask, batch.gt_label)
    assert len(anomaly_map) == len(score) == len(masks) == len(labels) == 2
    assert labels.all()
    assert masks.flatten(1).any(dim=1).all()
    use.teardown(trainer(data), model, "fit")
    assert model.model.anomaly_generator is own
    use.on_train_batch_start(trainer(data), model, batch, 1)


@pytest.mark.parametrize("kind", [Patchcore, Stfpm])
def test_models_that_make_no_defects(kind: type, data: Folder, asked: dict[str, Any]) -> None:
    """Defects in their images would be learned as normal."""
    with pytest.raises(TypeError, match=f"{kind.__name__} makes no defects"):
        SyntheticAnomalies().setup(trainer(data), kind(backbone="resnet18"), "fit")
    assert not asked


def test_no_datamodule(tmp_path: Path, asked: dict[str, Any]) -> None:
    """Without a datamodule there are no normal images for the DDPM."""
    model = Draem(dtd_dir=tmp_path)
    with pytest.raises(TypeError, match="pass one to the Engine"):
        SyntheticAnomalies().setup(trainer(datamodule="a loader"), model, "fit")
    assert not asked
    assert isinstance(model.augmenter, PerlinAnomalyGenerator)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"defects": {"probability": 2.0}}, "probability"),
        ({"defects": {"opacity": [0.9, 0.1]}}, "opacity"),
        ({"defects": {"foreground": "on"}}, "foreground"),
        ({"bank": {"size": 0}}, "size"),
        ({"diffusion": {"training_steps": 0}}, "training_steps"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], name: str) -> None:
    """The error is raised at once, not when training starts."""
    with pytest.raises(ValueError, match=name):
        SyntheticAnomalies(**arguments)


@pytest.mark.parametrize("normalize", [Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), None])
def test_normalised_images(normalize: Normalize | None) -> None:
    """Defects are those of the image before normalisation, and nothing else changes."""
    images = torch.rand(2, 3, 48, 48)
    images[0, :, :24] = 0
    images[1, :, :24] = 1
    transform = nn.Identity() if normalize is None else normalize
    results = []
    defects = DefectConfig(source="self_texture", probability=1.0)
    for wrap in (True, False):
        generator = DiffusionAnomalyGenerator(None, defects, torch.Generator().manual_seed(2))
        if wrap:
            results.append(NormalizedGenerator(generator, normalize)(transform(images)))
        else:
            augmented, masks = generator(images)
            results.append((transform(augmented), masks))
    assert results[0][1].any()
    assert (results[0][1] != results[1][1]).float().mean() < 0.01
    same = (results[0][1] == results[1][1]).expand_as(images)
    torch.testing.assert_close(results[0][0][same], results[1][0][same], atol=1e-5, rtol=0)
    outside = ~results[0][1].bool().expand_as(images)
    assert torch.equal(results[0][0][outside], transform(images)[outside])


def test_images_are_those_of_the_model(tmp_path: Path, data: Folder, asked: dict[str, Any]) -> None:
    """Cropped by its pre-processor, but with values in [0, 1], however deeply Normalize is nested."""
    model = Draem(dtd_dir=tmp_path)
    normalize = Normalize([0.1] * 3, [0.2] * 3)
    model.pre_processor.transform = Compose([Compose([Resize((40, 60)), CenterCrop((16, 24)), normalize])])
    SyntheticAnomalies().setup(trainer(data), model, "fit")
    images = asked["images"]
    with Image.open(images.paths[1]) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(images[1], pixels[:, 12:28, 18:42])
    torch.testing.assert_close(model.augmenter.mean.flatten(), torch.full((3,), 0.1))
    torch.testing.assert_close(model.augmenter.std.flatten(), torch.full((3,), 0.2))
