# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the teacher: its weights, names and downloads."""

import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from anomalib_ddpm_st.detector import DdpmStModel, build_model, teacher
from anomalib_ddpm_st.detector.teacher import Teacher, build_extractor, read_weights

LAYERS = ("layer1", "layer2", "layer3")


def test_normalises_by_the_statistics_of_the_backbone(network: DdpmStModel) -> None:
    """Images in [0, 1] come in; the backbone sees them with zero mean."""
    images = torch.rand(2, 3, 32, 32)
    config = timm.create_model("resnet18", pretrained=False).default_cfg
    normalised = images.clone()
    for channel in range(3):
        normalised[:, channel] = (images[:, channel] - config["mean"][channel]) / config["std"][channel]
    with torch.no_grad():
        expected = network.teacher.extractor(normalised)
        for level, features in zip(network.teacher(images), expected.values(), strict=True):
            torch.testing.assert_close(level, features)


def test_stays_in_evaluation_mode(network: DdpmStModel) -> None:
    """Whatever the mode of the model; none of its parameters learns."""
    network.train()
    assert not any(module.training for module in network.teacher.modules())
    assert not any(parameter.requires_grad for parameter in network.teacher.parameters())


def test_is_in_evaluation_mode_from_the_start() -> None:
    """It is used before a training puts the model into a mode, and must not adapt its statistics then."""
    teacher = Teacher()
    assert not any(module.training for module in teacher.modules())
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher(torch.rand(4, 3, 64, 64))
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


def check_loaded(network: DdpmStModel, weights: dict[str, torch.Tensor]) -> None:
    """The teacher holds the weights."""
    state = network.teacher.extractor.feature_extractor.state_dict()
    assert any(name.startswith("layer3.") for name in state)
    for name, value in state.items():
        if value.is_floating_point():
            assert torch.equal(value, weights[name]), name
    assert bool(network.teacher.has_weights)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load_weights(
    prefix: str,
    suffix: str,
    network: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """Weights of the whole backbone fit, with prefixes of wrappers and keys too many."""
    assert not bool(network.teacher.has_weights)
    state = {prefix + name: value for name, value in whole_weights.items()}
    state[prefix + "something_else"] = torch.ones(3)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    network.teacher.load_weights(path)
    check_loaded(network, whole_weights)


def test_load_nested_weights(network: DdpmStModel, whole_weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A checkpoint of a training script holds them under ``state_dict``; batch counters may be missing."""
    state = {name: value for name, value in whole_weights.items() if not name.endswith("num_batches_tracked")}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "weights.pth")
    network.teacher.load_weights(str(tmp_path / "weights.pth"))
    check_loaded(network, whole_weights)


def test_missing_file(network: DdpmStModel, tmp_path: Path) -> None:
    """The message names the file and the argument."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*teacher_weights"):
        network.teacher.load_weights(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="teacher_weights"):
        network.teacher.load_weights(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"this is no weight file", b"PK\x03\x04 broken archive"])
def test_unreadable_file(suffix: str, content: bytes, tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights{suffix}.*state dict"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cut_file(suffix: str, whole_weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A download that broke off is named."""
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(whole_weights, path)
    path.write_bytes(path.read_bytes()[:-10_000])
    with pytest.raises(ValueError, match=rf"weights{suffix}.*state dict"):
        read_weights(path)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), nn.Linear(1, 1), {"conv1.weight": "text"}, {"state_dict": 3}]
)
def test_file_with_something_else(content: Any, network: DdpmStModel, tmp_path: Path) -> None:  # noqa: ANN401
    """What is no state dict of tensors is refused with the name of the file."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth"):
        network.teacher.load_weights(tmp_path / "weights.pth")
    assert not bool(network.teacher.has_weights)


@pytest.mark.parametrize("damage", ["missing", "shape", "other backbone"])
def test_weights_that_do_not_fit(
    damage: str,
    network: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """The message names file, backbone and the first tensor that does not fit; the model stays as it was."""
    state = dict(whole_weights)
    if damage == "missing":
        del state["layer2.0.conv1.weight"]
    elif damage == "shape":
        state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:5]
    else:
        state = timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    first = r"conv1\.weight" if damage == "other backbone" else r"layer2\.0\.conv1\.weight"
    with pytest.raises(ValueError, match=rf"weights\.pth.*resnet18.*{first}"):
        network.teacher.load_weights(tmp_path / "weights.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("name", "similar"), [("resnet81", "resnet18"), ("resnet5O", "resnet50")])
def test_unknown_backbone(name: str, similar: str) -> None:
    """The message names it and suggests what was meant."""
    with pytest.raises(ValueError, match=rf"'{name}'.*\b{similar}\b"):
        Teacher(name, LAYERS)


def test_backbone_like_no_other() -> None:
    """If no name is similar, the message says how to list the names."""
    with pytest.raises(ValueError, match=r"'qqqq'.*list_models"):
        build_extractor("qqqq", LAYERS)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_transformer_as_backbone(backbone: str) -> None:
    """The message names the backbone and says what to choose."""
    with pytest.raises(ValueError, match=rf"{backbone}.*CNN"):
        build_model(backbone, LAYERS)


@pytest.mark.parametrize("layers", [("layer9",), ("layer1", "layer9")])
def test_missing_layer(layers: tuple[str, ...]) -> None:
    """The message names backbone and layer."""
    with pytest.raises(ValueError, match=r"resnet18.*layer9"):
        build_model("resnet18", layers)


@pytest.mark.parametrize("error", [OSError("no route"), ConnectionError("refused"), TimeoutError("slow")])
def test_hub_out_of_reach(error: OSError, network: DdpmStModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the backbone and the way out; the model does not take random weights for good ones."""

    def fail(*_: Any, **__: Any) -> None:  # noqa: ANN401
        raise error

    monkeypatch.setattr(teacher, "TimmFeatureExtractor", fail)
    with pytest.raises(ConnectionError, match=r"'resnet18'.*teacher_weights"):
        network.teacher.load_weights()
    assert not bool(network.teacher.has_weights)


def test_hub_switched_off(network: DdpmStModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE and an empty cache it is the same message."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"'resnet18'.*teacher_weights"):
        network.teacher.load_weights()


def test_hub_is_not_asked_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the model asks for nothing."""

    def fail(*_: Any, **__: Any) -> None:  # noqa: ANN401
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    build_model("resnet18", LAYERS[:1])


def test_weights_from_the_hub(
    network: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Downloaded weights reach the teacher."""
    original = teacher.TimmFeatureExtractor

    def hub(backbone: str, layers: list[str], pre_trained: bool) -> nn.Module:
        extractor = original(backbone, layers, pre_trained=False)
        if pre_trained:
            extractor.feature_extractor.load_state_dict(whole_weights, strict=False)
        return extractor

    monkeypatch.setattr(teacher, "TimmFeatureExtractor", hub)
    network.teacher.load_weights()
    check_loaded(network, whole_weights)


def test_loaded_weights_are_saved(
    network: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """Another model gets everything from the state dict, including the fact that weights are loaded."""
    torch.save(whole_weights, tmp_path / "weights.pth")
    network.teacher.load_weights(tmp_path / "weights.pth")
    other = build_model(memory_size=20).eval()
    other.load_state_dict(network.state_dict())
    check_loaded(other, whole_weights)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(images).anomaly_map, network(images).anomaly_map)


def test_only_the_teacher_changes(
    network: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """Loading weights leaves student and head alone, and the teacher frozen."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(whole_weights, tmp_path / "weights.pth")
    network.teacher.load_weights(tmp_path / "weights.pth")
    check_loaded(network, whole_weights)
    for name, value in network.state_dict().items():
        if not name.startswith("teacher."):
            assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in network.teacher.parameters())
    assert all(parameter.requires_grad for parameter in network.student.parameters())
