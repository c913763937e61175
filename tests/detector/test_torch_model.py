# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of teacher, student, head and the whole detector."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from anomalib_ddpm_st.detector import DdpmStModel, torch_model
from anomalib_ddpm_st.detector.torch_model import Teacher, build_extractor, distance_map, read_weights

LAYERS = ("layer1", "layer2", "layer3")
SIZES = [(32, 32), (64, 64), (65, 97), (33, 35)]


@pytest.fixture(scope="module")
def shared_model() -> DdpmStModel:
    """Model with random weights, made once."""
    torch.manual_seed(0)
    return DdpmStModel("resnet18", LAYERS)


@pytest.fixture
def model(shared_model: DdpmStModel) -> Iterator[DdpmStModel]:
    """The shared model in evaluation mode, with its weights restored after the test."""
    state = {name: value.clone() for name, value in shared_model.state_dict().items()}
    yield shared_model.eval()
    shared_model.load_state_dict(state)
    shared_model.zero_grad()


@pytest.fixture(scope="module")
def whole_weights() -> dict[str, torch.Tensor]:
    """Weights of the whole backbone as timm names them, with classifier and ``layer4``."""
    torch.manual_seed(7)
    network = timm.create_model("resnet18", pretrained=False)
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 3
        for name, value in network.state_dict().items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Forward


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_output(model: DdpmStModel, size: tuple[int, int]) -> None:
    """Map and score have the shapes of anomalib and values in [0, 1]."""
    with torch.no_grad():
        output = model(torch.rand(2, 3, *size))
    assert output.anomaly_map.shape == (2, 1, *size)
    assert output.pred_score.shape == (2,)
    for values in (output.anomaly_map, output.pred_score):
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_training_output(model: DdpmStModel, size: tuple[int, int]) -> None:
    """Features of teacher and student have the same shapes, logits those of the image."""
    model.train()
    with torch.no_grad():
        teacher, student, logits = model(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert [level.shape for level in teacher] == [level.shape for level in student]
    assert [level.shape[1] for level in teacher] == model.teacher.out_dims
    assert logits.shape == (2, 1, *size)
    assert logits.std() > 0


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)])
def test_flat_images(model: DdpmStModel, images: torch.Tensor) -> None:
    """Black and white images give finite values."""
    with torch.no_grad():
        output = model(images)
    assert output.anomaly_map.isfinite().all()
    assert output.pred_score.isfinite().all()


def test_images_of_a_batch_do_not_mix(model: DdpmStModel) -> None:
    """In evaluation mode an image scores the same alone and in a batch."""
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    torch.testing.assert_close(together.anomaly_map[1:2], alone.anomaly_map, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.pred_score[1:2], alone.pred_score, atol=1e-4, rtol=0)


def test_evaluation_by_formula(model: DdpmStModel) -> None:
    """The map mixes segmentation and distance by the weight; the score is the mean of the largest pixels."""
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        model.distance_weight = 0.0
        segmentation = model(images).anomaly_map
        model.distance_weight = 1.0
        distance = model(images).anomaly_map
        model.distance_weight = 0.3
        output = model(images)
        logits = functional.interpolate(model.head(model.compare(images)[2]), size=(48, 64), mode="bilinear")
    model.distance_weight = 0.5
    torch.testing.assert_close(segmentation, logits.sigmoid())
    torch.testing.assert_close(output.anomaly_map, 0.7 * segmentation + 0.3 * distance)
    largest = output.anomaly_map.flatten(1).sort(dim=1, descending=True).values[:, : model.top_k]
    torch.testing.assert_close(output.pred_score, largest.mean(dim=1))


def test_score_with_more_pixels_asked_for_than_there_are() -> None:
    """Export probes the model at 32 x 32 pixels, whatever ``top_k`` is."""
    model = DdpmStModel("resnet18", LAYERS[:2], top_k=5000).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(output.pred_score, output.anomaly_map.mean(dim=(1, 2, 3)))


def test_distance_map_equals_cosine_similarity(model: DdpmStModel) -> None:
    """The products give the mean of the cosine distances that torch computes."""
    with torch.no_grad():
        teacher, student, products = model.compare(torch.rand(2, 3, 64, 96))
        result = distance_map(products, torch.Size((64, 96)))
    expected = torch.zeros(2, 1, 64, 96)
    for target, restored in zip(teacher, student, strict=True):
        distance = 1 - torch.cosine_similarity(target, restored, dim=1).unsqueeze(1)
        expected += functional.interpolate(distance, size=(64, 96), mode="bilinear") / len(teacher)
    torch.testing.assert_close(result, expected.clamp(0, 1), atol=1e-4, rtol=0)
    assert result.std() > 0


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (-1.0, 1.0)])
def test_distance_map_limits(sign: float, expected: float) -> None:
    """Same direction gives zero; opposite direction, a distance of two, is limited to one."""
    direction = functional.normalize(torch.randn(1, 8, 4, 4), dim=1)
    result = distance_map([sign * direction * direction * 8], torch.Size((8, 8)))
    torch.testing.assert_close(result, torch.full((1, 1, 8, 8), expected), atol=1e-5, rtol=0)


def test_student_gets_the_defects_and_teacher_the_clean_images(model: DdpmStModel) -> None:
    """While training, the target is the teacher's view of the clean image; student and logits see the defects."""
    clean, defects, others = (torch.rand(2, 3, 32, 32) for _ in range(3))
    model.train()
    with torch.no_grad():
        teacher, student, logits = model(defects, clean)
        expected = model.teacher(model.teacher.normalize(clean))
        for one, other in zip(teacher, expected, strict=True):
            torch.testing.assert_close(one, other)
        _, same_student, same_logits = model(defects, others)
        _, other_student, other_logits = model(others, clean)
    torch.testing.assert_close(student[0], same_student[0])
    torch.testing.assert_close(logits, same_logits)
    assert not torch.allclose(student[0], other_student[0])
    assert not torch.allclose(logits, other_logits)


def test_normalize(model: DdpmStModel) -> None:
    """Images are normalised by the statistics of the backbone."""
    images = torch.rand(2, 3, 4, 4)
    config = timm.create_model("resnet18", pretrained=False).default_cfg
    expected = images.clone()
    for channel in range(3):
        expected[:, channel] = (images[:, channel] - config["mean"][channel]) / config["std"][channel]
    torch.testing.assert_close(model.teacher.normalize(images), expected)


def test_other_layers_and_backbone() -> None:
    """Two layers, and another CNN, work as well."""
    for backbone, layers in (("resnet18", ["layer2", "layer3"]), ("mobilenetv3_small_050", ["blocks.1", "blocks.3"])):
        model = DdpmStModel(backbone, layers).eval()
        with torch.no_grad():
            output = model(torch.rand(2, 3, 64, 64))
        assert output.anomaly_map.shape == (2, 1, 64, 64)


# ---------------------------------------------------------------------------------------------------------------------
# What learns and what does not


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Batch normalisations of a module."""
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


def test_modes(model: DdpmStModel) -> None:
    """Training mode reaches neither teacher nor the encoder's batch normalisation."""
    model.train()
    assert model.training
    assert not any(module.training for module in model.teacher.modules())
    assert not any(norm.training for norm in batch_norms(model.student.encoder))
    for part in (model.student.bottleneck, model.student.blocks, model.head):
        assert batch_norms(part)
        assert all(norm.training for norm in batch_norms(part))
    model.eval()
    assert not any(module.training for module in model.modules())


def test_frozen_statistics(model: DdpmStModel) -> None:
    """A training step moves no running mean of teacher and encoder, but those of the decoder and head."""
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items() if name.endswith("running_mean")}
    with torch.no_grad():
        model(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            frozen = name.startswith(("teacher.", "student.encoder."))
            assert torch.equal(value, state[name]) == frozen, name


def test_gradients(model: DdpmStModel) -> None:
    """Gradients reach encoder, bottleneck, decoder and head, and nothing of the teacher."""
    with torch.no_grad():
        for norm in batch_norms(model):
            norm.weight.fill_(1.0)  # timm starts some at zero, which would hide the convolutions before them
    model.train()
    teacher, student, logits = model(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert not any(level.requires_grad for level in teacher)
    loss = logits.square().mean()
    for target, restored in zip(teacher, student, strict=True):
        loss -= torch.cosine_similarity(target, restored, dim=1).mean()
    loss.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.teacher.parameters())
    for name in ("encoder", "bottleneck", "blocks", "outputs"):
        part = getattr(model.student, name)
        without = [key for key, value in part.named_parameters() if value.grad is None or not value.grad.any()]
        assert not without, (name, without)
    without = [key for key, value in model.head.named_parameters() if value.grad is None or not value.grad.any()]
    assert not without, without


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def check_loaded(model: DdpmStModel, weights: dict[str, torch.Tensor]) -> None:
    """Teacher and encoder hold the weights."""
    for network in (model.teacher.extractor.feature_extractor, model.student.encoder.feature_extractor):
        state = network.state_dict()
        assert any(name.startswith("layer3.") for name in state)
        for name, value in state.items():
            if value.is_floating_point():
                assert torch.equal(value, weights[name]), name
    assert bool(model.teacher.has_weights)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load_weights(
    prefix: str,
    suffix: str,
    model: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """Weights of the whole backbone fit, with prefixes of wrappers and keys too many."""
    assert not bool(model.teacher.has_weights)
    state = {prefix + name: value for name, value in whole_weights.items()}
    state[prefix + "something_else"] = torch.ones(3)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    model.load_teacher_weights(path)
    check_loaded(model, whole_weights)


def test_load_nested_weights(model: DdpmStModel, whole_weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A checkpoint of a training script holds them under ``state_dict``; batch counters may be missing."""
    state = {name: value for name, value in whole_weights.items() if not name.endswith("num_batches_tracked")}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "weights.pth")
    model.load_teacher_weights(str(tmp_path / "weights.pth"))
    check_loaded(model, whole_weights)


def test_loaded_weights_are_saved(model: DdpmStModel, whole_weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Another model takes everything from the state dict, also that the weights are there."""
    torch.save(whole_weights, tmp_path / "weights.pth")
    model.load_teacher_weights(tmp_path / "weights.pth")
    other = DdpmStModel("resnet18", LAYERS).eval()
    other.load_state_dict(model.state_dict())
    check_loaded(other, whole_weights)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(images).anomaly_map, model(images).anomaly_map)


def test_loading_leaves_decoder_alone(
    model: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """Only teacher and encoder change, and the teacher stays frozen."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(whole_weights, tmp_path / "weights.pth")
    model.load_teacher_weights(tmp_path / "weights.pth")
    for name, value in model.state_dict().items():
        if not name.startswith(("teacher.", "student.encoder.")):
            assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    assert all(parameter.requires_grad for parameter in model.student.encoder.parameters())


def test_missing_file(model: DdpmStModel, tmp_path: Path) -> None:
    """The message names the file and the argument."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*teacher_weights"):
        model.load_teacher_weights(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="teacher_weights"):
        model.load_teacher_weights(tmp_path)


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
def test_file_with_something_else(content: Any, model: DdpmStModel, tmp_path: Path) -> None:  # ruff: ignore[any-type]
    """What is no state dict of tensors is refused with the name of the file."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth"):
        model.load_teacher_weights(tmp_path / "weights.pth")
    assert not bool(model.teacher.has_weights)


@pytest.mark.parametrize("damage", ["missing", "shape", "other backbone"])
def test_weights_that_do_not_fit(
    damage: str,
    model: DdpmStModel,
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
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    first = r"conv1\.weight" if damage == "other backbone" else r"layer2\.0\.conv1\.weight"
    with pytest.raises(ValueError, match=rf"weights\.pth.*resnet18.*{first}"):
        model.load_teacher_weights(tmp_path / "weights.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# Names and the hub


@pytest.mark.parametrize(("name", "similar"), [("resnet81", "resnet18"), ("resnet5O", "resnet50")])
def test_unknown_backbone(name: str, similar: str) -> None:
    """The message names it and suggests what was meant."""
    with pytest.raises(ValueError, match=rf"'{name}'.*\b{similar}\b"):
        Teacher(name, LAYERS)


def test_backbone_like_no_other() -> None:
    """Where nothing is similar, the message says where the names are."""
    with pytest.raises(ValueError, match=r"'qqqq'.*list_models"):
        build_extractor("qqqq", LAYERS)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_transformer_as_backbone(backbone: str) -> None:
    """The message names the backbone and says what to choose."""
    with pytest.raises(ValueError, match=rf"{backbone}.*CNN"):
        DdpmStModel(backbone, LAYERS)


@pytest.mark.parametrize("layers", [("layer9",), ("layer1", "layer9")])
def test_missing_layer(layers: tuple[str, ...]) -> None:
    """The message names backbone and layer."""
    with pytest.raises(ValueError, match=r"resnet18.*layer9"):
        DdpmStModel("resnet18", layers)


@pytest.mark.parametrize("error", [OSError("no route"), ConnectionError("refused"), TimeoutError("slow")])
def test_hub_out_of_reach(error: OSError, model: DdpmStModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the backbone and the way out; the model does not take random weights for good ones."""

    def fail(*_: Any, **__: Any) -> None:  # ruff: ignore[any-type]
        raise error

    monkeypatch.setattr(torch_model, "TimmFeatureExtractor", fail)
    with pytest.raises(ConnectionError, match=r"'resnet18'.*teacher_weights"):
        model.load_teacher_weights()
    assert not bool(model.teacher.has_weights)


def test_hub_switched_off(model: DdpmStModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE and an empty cache it is the same message."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"'resnet18'.*teacher_weights"):
        model.load_teacher_weights()


def test_hub_is_not_asked_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the model asks for nothing."""

    def fail(*_: Any, **__: Any) -> None:  # ruff: ignore[any-type]
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    DdpmStModel("resnet18", LAYERS[:1])


def test_weights_from_the_hub(
    model: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the hub gives reaches teacher and encoder."""
    original = torch_model.TimmFeatureExtractor

    def hub(backbone: str, layers: list[str], pre_trained: bool, requires_grad: bool) -> nn.Module:
        extractor = original(backbone, layers, pre_trained=False, requires_grad=requires_grad)
        if pre_trained:
            extractor.feature_extractor.load_state_dict(whole_weights, strict=False)
        return extractor

    monkeypatch.setattr(torch_model, "TimmFeatureExtractor", hub)
    model.load_teacher_weights()
    check_loaded(model, whole_weights)
