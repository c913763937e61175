# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the teacher: its weights, downloads and image sizes."""

import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from anomalib_ddpm_st.detector import DdpmStModel, build_model
from anomalib_ddpm_st.detector.teacher import Teacher, read_weights

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
        for level, features in zip(network.teacher(images), expected, strict=True):
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


@pytest.mark.parametrize("error", [OSError("no route"), ConnectionError("refused"), TimeoutError("slow")])
def test_hub_out_of_reach(error: OSError, network: DdpmStModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the backbone and the way out; the model does not take random weights for good ones."""
    original = timm.create_model

    def fail(*arguments: Any, pretrained: bool, **further: Any) -> nn.Module:  # noqa: ANN401
        if pretrained:
            raise error
        return original(*arguments, pretrained=False, **further)

    monkeypatch.setattr(timm, "create_model", fail)
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
    original = timm.create_model

    def hub(*arguments: Any, pretrained: bool, **further: Any) -> nn.Module:  # noqa: ANN401
        backbone = original(*arguments, pretrained=False, **further)
        if pretrained:
            backbone.load_state_dict(whole_weights, strict=False)
        return backbone

    monkeypatch.setattr(timm, "create_model", hub)
    network.teacher.load_weights()
    check_loaded(network, whole_weights)


def test_backbone_without_weights() -> None:
    """Nothing is asked of the hub; the message names backbone and argument."""
    with pytest.raises(ValueError, match=r"no weights of 'mnasnet_050'.*teacher_weights"):
        Teacher("mnasnet_050").load_weights()


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_efficientnet"])
def test_file_of_a_whole_backbone(backbone: str, tmp_path: Path) -> None:
    """Names in files are those of timm's whole model, which timm's wrappers change."""
    torch.manual_seed(7)
    whole = timm.create_model(backbone, pretrained=False).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    teacher = Teacher(backbone)
    teacher.load_weights(tmp_path / "weights.pth")
    images = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        expected = whole.forward_intermediates((images - teacher.mean) / teacher.std, intermediates_only=True)
        for level in teacher(images):
            assert any(level.shape == part.shape and torch.allclose(level, part, atol=1e-5) for part in expected)


def test_whole_patches() -> None:
    """Images whose sides are no multiples of the patch are resized to the nearest size, others are left alone."""
    teacher = Teacher("test_vit")
    seen: list[torch.Tensor] = []
    teacher.extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for size, expected in (((47, 66), (48, 64)), ((48, 64), (48, 64)), ((3, 40), (16, 48)), ((256, 56), (256, 64))):
        levels = teacher(torch.rand(2, 3, *size))
        assert seen[-1].shape[-2:] == expected
        assert {level.shape for level in levels} == {(2, 64, expected[0] // 16, expected[1] // 16)}
    images = torch.rand(1, 3, 48, 64)
    teacher(images)
    assert torch.equal(seen[-1], (images - teacher.mean) / teacher.std)


def test_cnn_sees_images_as_they_are(network: DdpmStModel) -> None:
    """Of any size."""
    seen: list[torch.Tensor] = []
    hook = network.teacher.extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.teacher(torch.rand(1, 3, 47, 66))
    hook.remove()
    assert seen[0].shape[-2:] == (47, 66)


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
