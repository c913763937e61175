# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Models and weights that the tests of the detector share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from anomalib.data import Folder
from PIL import Image

from anomalib_ddpm_st.detector import DdpmStModel, build_model


def write_images(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> list[str]:
    """Write noisy images of one part, of the same texture in all folders."""
    folder.mkdir(parents=True, exist_ok=True)
    part = torch.rand(*size, 3, generator=torch.Generator().manual_seed(7))
    paths = [str(folder / f"{index}.png") for index in range(count)]
    for path in paths:
        pixels = (part + 0.02 * torch.randn_like(part)).clamp(0, 1) * 255
        Image.fromarray(pixels.round().byte().numpy()).save(path)
    return paths


def cut(path: str) -> str:
    """Cut a file off, as a copy that was interrupted leaves it."""
    file = Path(path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file.name


def make_datamodule(root: Path, size: tuple[int, int] = (64, 64), **settings: Any) -> Folder:  # noqa: ANN401
    """Datamodule of five normal, two good and two defective images, validated by the test images."""
    for folder, count in (("normal", 5), ("good", 2), ("bad", 2)):
        write_images(root / folder, count, size)
    (root / "mask").mkdir(exist_ok=True)
    for path in (root / "bad").iterdir():
        Image.new("L", size[::-1], 255).save(root / "mask" / path.name)
    arguments = {
        "normal_dir": "normal",
        "normal_test_dir": "good",
        "abnormal_dir": "bad",
        "mask_dir": "mask",
        "train_batch_size": 2,
        "eval_batch_size": 2,
        "num_workers": 0,
        "val_split_mode": "same_as_test",
        **settings,
    }
    return Folder("parts", root=root, **arguments)


@pytest.fixture(scope="session")
def shared_network() -> DdpmStModel:
    """A model with random weights, made once."""
    torch.manual_seed(0)
    return build_model(memory_size=20)


@pytest.fixture
def network(shared_network: DdpmStModel) -> Iterator[DdpmStModel]:
    """The shared model in evaluation mode, with its weights restored after the test."""
    state = {name: value.clone() for name, value in shared_network.state_dict().items()}
    yield shared_network.eval()
    shared_network.load_state_dict(state)
    shared_network.zero_grad()


@pytest.fixture(scope="session")
def whole_weights() -> dict[str, torch.Tensor]:
    """Weights of the whole backbone as timm names them, with classifier and ``layer4``."""
    torch.manual_seed(7)
    backbone = timm.create_model("resnet18", pretrained=False)
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 3
        for name, value in backbone.state_dict().items()
    }
