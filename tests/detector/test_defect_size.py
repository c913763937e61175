# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the pre-processor that chooses the input size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Resize

from anomalib_ddpm_st import DdpmSt, DefectSizePreProcessor
from anomalib_ddpm_st.detector import DdpmStModel
from anomalib_ddpm_st.detector.components import make_pre_processor
from anomalib_ddpm_st.detector.defect_size import describe_choice

from .conftest import make_datamodule

NATIVE = (400, 600)
DEFECT = 50


def chosen(pre_processor: DefectSizePreProcessor) -> list[int]:
    """Height and width that a pre-processor resizes to."""
    step = pre_processor.transform.transforms[0]  # type: ignore[union-attr,index]
    assert isinstance(step, Resize)
    return list(step.size)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of images that are not square."""
    folder = tmp_path_factory.mktemp("parts")
    make_datamodule(folder, NATIVE)
    return folder


def set_up(root: Path, **settings: Any) -> Any:  # noqa: ANN401
    """Datamodule of these images, set up."""
    datamodule = make_datamodule(root, NATIVE, **settings)
    datamodule.setup()
    return datamodule


def test_choice(root: Path) -> None:
    """The size fits images and defect, is like that of the default pre-processor, and is chosen once."""
    pre_processor = DefectSizePreProcessor(DEFECT)
    assert pre_processor.transform is None
    pre_processor.choose(set_up(root))
    assert pre_processor.input_size is not None
    size = pre_processor.input_size.image_size
    assert size == (128, 192)
    assert chosen(pre_processor) == [128, 192]
    assert pre_processor.checkpoint_config() == make_pre_processor(size).checkpoint_config()
    assert str(pre_processor.export_transform) == str(make_pre_processor(size).export_transform)
    pre_processor.choose(set_up(root, augmentations=CenterCrop(100)))
    assert chosen(pre_processor) == [128, 192]


def test_crops_of_the_datamodule_count(root: Path) -> None:
    """Pixels stay those of the original images."""
    pre_processor = DefectSizePreProcessor(DEFECT)
    pre_processor.choose(set_up(root, augmentations=CenterCrop((400, 400))))
    assert chosen(pre_processor) == [128, 128]


def test_budget(root: Path) -> None:
    small, large = (DefectSizePreProcessor(4, max_cost=cost) for cost in (0.5, 100))
    for pre_processor in (small, large):
        pre_processor.choose(set_up(root))
    assert chosen(small) == [128, 192]
    assert chosen(large) == [416, 608]


@pytest.mark.parametrize("name", ["smallest_defect", "pixel_size", "max_cost"])
def test_settings_are_checked_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a finite number above 0, got -1"):
        DefectSizePreProcessor(**{"smallest_defect": 5, name: -1})


def make_trainer(datamodule: object = None, ckpt_path: str | None = None) -> Any:  # noqa: ANN401
    """What the pre-processor uses of a Trainer."""
    return SimpleNamespace(datamodule=datamodule, ckpt_path=ckpt_path)


def make_module(network: nn.Module) -> Any:  # noqa: ANN401
    """What the pre-processor uses of a model."""
    return SimpleNamespace(model=network)


def test_set_up_for_a_test(root: Path, network: DdpmStModel) -> None:
    """By the training images, too; without them only if a checkpoint will provide the size."""
    pre_processor = DefectSizePreProcessor(DEFECT)
    pre_processor.setup(make_trainer(set_up(root)), make_module(network), "test")
    assert chosen(pre_processor) == [128, 192]
    pre_processor = DefectSizePreProcessor(DEFECT)
    pre_processor.setup(make_trainer(ckpt_path="model.ckpt"), make_module(network), "predict")
    assert pre_processor.transform is None
    with pytest.raises(TypeError, match=r"by the normal images of a datamodule: pass one, or load a trained model\.$"):
        pre_processor.setup(make_trainer(), make_module(network), "predict")


def test_other_models_need_normalisation(root: Path) -> None:
    with pytest.raises(TypeError, match=r"use SimpleNamespace\.configure_pre_processor with the size that"):
        DefectSizePreProcessor(DEFECT).setup(make_trainer(set_up(root)), make_module(nn.Identity()), "fit")


def test_checkpoint_of_another_size(root: Path) -> None:
    """An untouched pre-processor takes any size, one that has chosen only its own."""
    config = make_pre_processor((64, 96)).checkpoint_config()
    pre_processor = DefectSizePreProcessor(DEFECT)
    pre_processor.load_checkpoint_config(config)
    assert chosen(pre_processor) == [64, 96]
    pre_processor = DefectSizePreProcessor(DEFECT)
    pre_processor.choose(set_up(root))
    pre_processor.load_checkpoint_config(pre_processor.checkpoint_config())
    with pytest.raises(ValueError, match="trained at another input size than the 128 x 192 pixels"):
        pre_processor.load_checkpoint_config(config)
    assert chosen(pre_processor) == [128, 192]


def test_description(root: Path) -> None:
    pre_processor = DefectSizePreProcessor(DEFECT)
    pre_processor.choose(set_up(root))
    assert pre_processor.input_size is not None
    start = "Input size 128 x 192 pixels: a defect of 50 pixels covers 16 pixels of the input. On this machine, "
    with_training = describe_choice(pre_processor.input_size, 6.789, 1234.5)
    assert with_training == f"{start}training takes about 20 h 30 min and an image 6.79 ms."
    # A training prints its plan, which has the time of each stage.
    assert describe_choice(pre_processor.input_size, 1234.5) == f"{start}an image takes 1234 ms."


def test_no_size_before_there_are_images() -> None:
    """A model can be made with it, and its default stays a resize to 256 x 256 pixels."""
    model = DdpmSt(pre_trained=False, pre_processor=DefectSizePreProcessor(DEFECT))
    assert model.pre_processor is not None
    assert model.pre_processor.transform is None
    assert DdpmSt.configure_pre_processor().transform.transforms[0].size == [256, 256]
