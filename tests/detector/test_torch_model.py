# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of teacher, student, head and the whole detector."""

import socket
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from anomalib_ddpm_st.detector import DdpmStModel, torch_model
from anomalib_ddpm_st.detector.torch_model import (
    BOTTLENECK_WIDTH,
    MAX_DECODER_WIDTH,
    MIN_SPREAD,
    Decoder,
    EncoderStudent,
    HeadInput,
    ResidualBlock,
    ReverseStudent,
    StudentKind,
    SymmetricStudent,
    Teacher,
    build_extractor,
    direction_product,
    distance_map,
    read_weights,
)

LAYERS = ("layer1", "layer2", "layer3")
SIZES = [(32, 32), (64, 64), (65, 97), (33, 35)]


STUDENTS = {"reverse": ReverseStudent, "encoder": EncoderStudent, "symmetric": SymmetricStudent}


@pytest.fixture(scope="module")
def shared_models() -> dict[str, DdpmStModel]:
    """A model with random weights for each kind of student, made once."""
    torch.manual_seed(0)
    return {student: DdpmStModel("resnet18", LAYERS, student=student) for student in STUDENTS}


def on_loan(model: DdpmStModel) -> Iterator[DdpmStModel]:
    """A shared model in evaluation mode, with its weights restored after the test."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    yield model.eval()
    model.load_state_dict(state)
    model.zero_grad()


@pytest.fixture
def model(shared_models: dict[str, DdpmStModel]) -> Iterator[DdpmStModel]:
    """Model with the default student."""
    yield from on_loan(shared_models["reverse"])


@pytest.fixture(params=STUDENTS)
def any_model(shared_models: dict[str, DdpmStModel], request: pytest.FixtureRequest) -> Iterator[DdpmStModel]:
    """Model with each kind of student."""
    yield from on_loan(shared_models[request.param])


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
def test_evaluation_output(any_model: DdpmStModel, size: tuple[int, int]) -> None:
    """Map and score have the shapes of anomalib and values in [0, 1]."""
    with torch.no_grad():
        output = any_model(torch.rand(2, 3, *size))
    assert output.anomaly_map.shape == (2, 1, *size)
    assert output.pred_score.shape == (2,)
    for values in (output.anomaly_map, output.pred_score):
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_training_output(any_model: DdpmStModel, size: tuple[int, int]) -> None:
    """Features of teacher and student have the same shapes, logits those of the image."""
    any_model.train()
    with torch.no_grad():
        teacher, student, logits = any_model(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert [level.shape for level in teacher] == [level.shape for level in student]
    assert [level.shape[1] for level in teacher] == any_model.teacher.out_dims
    assert logits.shape == (2, 1, *size)
    assert logits.std() > 0


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)])
def test_flat_images(any_model: DdpmStModel, images: torch.Tensor) -> None:
    """Black and white images give finite values."""
    with torch.no_grad():
        output = any_model(images)
    assert output.anomaly_map.isfinite().all()
    assert output.pred_score.isfinite().all()


def test_images_of_a_batch_do_not_mix(any_model: DdpmStModel) -> None:
    """In evaluation mode an image scores the same alone and in a batch."""
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = any_model(images), any_model(images[1:2])
    torch.testing.assert_close(together.anomaly_map[1:2], alone.anomaly_map, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.pred_score[1:2], alone.pred_score, atol=1e-4, rtol=0)


@pytest.mark.parametrize("head_input", ["product", "distance", "both"])
def test_evaluation_by_formula(head_input: HeadInput) -> None:
    """The map mixes segmentation and distance by the weight; so the score, of the highest places of each."""
    model = DdpmStModel("resnet18", LAYERS, top_k=40, head_input=head_input, memory_weight=0.0).eval()
    assert model.memory is None
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        model.distance_weight = 0.0
        segmentation = model(images).anomaly_map
        model.distance_weight = 1.0
        distance = model(images).anomaly_map
        model.distance_weight = 0.3
        output = model(images)
        teacher, student, _ = model.compare(images)
        shown, cosines = [], []
        for target, restored in zip(teacher, student, strict=True):
            product = functional.normalize(target, dim=1) * functional.normalize(restored, dim=1)
            cosine = 1 - torch.cosine_similarity(target, restored, dim=1).unsqueeze(1)
            cosines.append(functional.interpolate(cosine, size=(12, 16), mode="bilinear"))
            parts = {"product": [product * target.shape[1]], "distance": [cosine]}
            shown.append(torch.cat(parts.get(head_input, [*parts["product"], *parts["distance"]]), dim=1))
        logits = functional.interpolate(model.head(shown), size=(48, 64), mode="bilinear")
    torch.testing.assert_close(segmentation, logits.sigmoid(), atol=1e-5, rtol=0)
    coarse = torch.stack(cosines).mean(dim=0).clamp(0, 1)
    enlarged = functional.interpolate(coarse, size=(48, 64), mode="bilinear")
    torch.testing.assert_close(distance, enlarged, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.anomaly_map, 0.7 * segmentation + 0.3 * distance)
    # Forty pixels of 48 x 64 are two and a half places of 12 x 16.
    first, second = (
        part.flatten(1).sort(dim=1, descending=True).values[:, :count].mean(dim=1)
        for part, count in ((segmentation, 40), (coarse, 2))
    )
    torch.testing.assert_close(output.pred_score, 0.7 * first + 0.3 * second)
    model.score_spread.copy_(torch.tensor([0.1, 0.05]))
    with torch.no_grad():
        output = model(images)
    torch.testing.assert_close(output.pred_score, (7 * first + 6 * second) / 13)


def test_memory_has_its_share_of_the_map(model: DdpmStModel) -> None:
    """By default segmentation, distance to the student and distance to the memory count alike."""
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = model.teacher(model.teacher.normalize(images))
        model.memory.fill([[level + torch.randn_like(level) for level in features]], [features], 2)
        shares = []
        for distance_weight, memory_weight in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 1 / 3)):
            model.distance_weight, model.memory_weight = distance_weight, memory_weight
            shares.append(model(images).anomaly_map)
        memory = functional.interpolate(model.memory(features), size=(16, 16), mode="bilinear")
        memory = functional.interpolate(memory, size=(64, 64), mode="bilinear")
    model.distance_weight, model.memory_weight = 0.5, 1 / 3
    assert shares[2].max() > 0.3
    torch.testing.assert_close(shares[2], memory)
    torch.testing.assert_close(shares[3], torch.stack(shares[:3]).mean(dim=0))


def test_scores_count_by_how_far_they_stand_out() -> None:
    """A component that varies little among normal images counts for more; one without spread does not count alone."""
    model = DdpmStModel("resnet18", LAYERS, top_k=40, memory_size=20).eval()
    features = model.teacher(torch.randn(2, 3, 64, 64))
    model.memory.fill([features], [[level + torch.randn_like(level) for level in features]], 2)
    batches = list(torch.rand(3, 4, 3, 64, 64))
    with torch.no_grad():
        scores = []
        for weights in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
            model.distance_weight, model.memory_weight = weights
            scores.append(torch.cat([model(images).pred_score for images in batches]))
        model.distance_weight, model.memory_weight = 0.5, 1 / 3
        model.calibrate(batches)
        spread = torch.stack(scores, dim=1).std(dim=0, correction=0)
        torch.testing.assert_close(model.score_spread, spread.clamp_min(MIN_SPREAD))
        weights = 1 / model.score_spread
        expected = torch.stack(scores, dim=1) @ weights / weights.sum()
        torch.testing.assert_close(torch.cat([model(images).pred_score for images in batches]), expected)
        model.calibrate([batches[0][:1]])
    torch.testing.assert_close(model.score_spread, torch.full((3,), MIN_SPREAD))
    with pytest.raises(RuntimeError, match="call eval"):
        model.train().calibrate(batches)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"memory_weight": 1.5}, "memory_weight must lie in"),
        ({"distance_weight": -0.1}, "distance_weight must lie in"),
        ({"memory_size": 0}, "memory_weight=0 turns the memory off"),
    ],
)
def test_shares_and_sizes_out_of_range(arguments: dict[str, Any], match: str) -> None:
    """The sentence names the argument."""
    with pytest.raises(ValueError, match=match):
        DdpmStModel("resnet18", LAYERS, **arguments)


def test_score_with_more_pixels_asked_for_than_there_are() -> None:
    """Export probes the model at 32 x 32 pixels, whatever ``top_k`` is."""
    model = DdpmStModel("resnet18", LAYERS[:2], top_k=5000, distance_weight=0.0, memory_weight=0.0).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(output.pred_score, output.anomaly_map.mean(dim=(1, 2, 3)))


def test_distance_map_equals_cosine_similarity(any_model: DdpmStModel) -> None:
    """The products give the mean of the cosine distances that torch computes."""
    with torch.no_grad():
        teacher, student, products = any_model.compare(torch.rand(2, 3, 64, 96))
        result = distance_map(products)
    expected = torch.zeros(2, 1, 16, 24)
    for target, restored in zip(teacher, student, strict=True):
        distance = 1 - torch.cosine_similarity(target, restored, dim=1).unsqueeze(1)
        expected += functional.interpolate(distance, size=(16, 24), mode="bilinear") / len(teacher)
    torch.testing.assert_close(result, expected.clamp(0, 1), atol=1e-4, rtol=0)
    assert expected.std() > 0


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (-1.0, 1.0)])
def test_distance_map_limits(sign: float, expected: float) -> None:
    """Same direction gives zero; opposite direction, a distance of two, is limited to one."""
    direction = functional.normalize(torch.randn(1, 8, 4, 4), dim=1)
    result = distance_map([direction_product(direction, sign * direction)])
    torch.testing.assert_close(result, torch.full((1, 1, 4, 4), expected), atol=1e-5, rtol=0)


def test_student_gets_the_defects_and_teacher_the_clean_images(any_model: DdpmStModel) -> None:
    """While training, the target is the teacher's view of the clean image; student and logits see the defects."""
    clean, defects, others = (torch.rand(2, 3, 32, 32) for _ in range(3))
    any_model.train()
    with torch.no_grad():
        teacher, student, logits = any_model(defects, clean)
        expected = any_model.teacher(any_model.teacher.normalize(clean))
        for one, other in zip(teacher, expected, strict=True):
            torch.testing.assert_close(one, other)
        _, same_student, same_logits = any_model(defects, others)
        _, other_student, other_logits = any_model(others, clean)
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


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("resnet18", ["layer2"]),
        ("resnet18", ["layer2", "layer3"]),
        ("mobilenetv3_small_050", ["blocks.1", "blocks.3"]),
    ],
)
def test_other_layers_and_backbone(backbone: str, layers: list[str], student: StudentKind) -> None:
    """One layer or two, and another CNN, work as well, in use and in training."""
    model = DdpmStModel(backbone, layers, student=student).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, 64, 64))
        assert output.anomaly_map.shape == (2, 1, 64, 64)
        assert output.anomaly_map.std() > 0
        teacher, restored, _ = model.train()(torch.rand(2, 3, 64, 64))
    assert [level.shape for level in teacher] == [level.shape for level in restored]


# ---------------------------------------------------------------------------------------------------------------------
# Students


@pytest.mark.parametrize(("student", "kind"), STUDENTS.items())
def test_kinds_of_student(shared_models: dict[str, DdpmStModel], student: str, kind: type[nn.Module]) -> None:
    """Each name gives its class."""
    assert type(shared_models[student].student) is kind


def test_default_student_and_head_input() -> None:
    """The head sees products, the student runs the other way."""
    model = DdpmStModel("resnet18", LAYERS[:1])
    assert isinstance(model.student, ReverseStudent)
    assert model.head_input == "product"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": "teacher"}, "Unknown student 'teacher': choose one of reverse, encoder, symmetric"),
        ({"head_input": "sum"}, "Unknown head_input 'sum': choose one of product, distance, both"),
    ],
)
def test_unknown_kinds(arguments: dict[str, Any], message: str) -> None:
    """The message names the argument, what was given and what there is."""
    with pytest.raises(ValueError, match=message):
        DdpmStModel("resnet18", LAYERS, **arguments)


def test_what_each_student_looks_at(any_model: DdpmStModel) -> None:
    """A reverse student sees the teacher's features alone, the others the image alone."""
    student, others = any_model.student, torch.rand(2, 3, 64, 64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features, other_features = any_model.teacher(images), any_model.teacher(others)
        given = student(images, features)
        by_image = student(others, features)
        by_features = student(images, other_features)
    is_reverse = isinstance(student, ReverseStudent)
    for level, image_level, feature_level in zip(given, by_image, by_features, strict=True):
        assert torch.equal(level, image_level) == is_reverse
        assert torch.equal(level, feature_level) == (not is_reverse)


def test_reverse_student_passes_a_bottleneck(model: DdpmStModel) -> None:
    """Every level reaches the decoder, and by nothing but a bottleneck of half of the coarsest resolution."""
    shapes: list[torch.Size] = []
    hook = model.student.bottleneck.register_forward_hook(lambda *call: shapes.append(call[-1].shape))
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = model.teacher(images)
        restored = model.student(images, features)
        for level in range(3):
            changed = [value.clone() for value in features]
            changed[level] = changed[level].flip(-1)
            for before, after in zip(restored, model.student(images, changed), strict=True):
                assert not torch.allclose(before, after, atol=1e-6), level
    hook.remove()
    assert shapes == [(2, BOTTLENECK_WIDTH, 2, 3)] * 4
    hook = model.student.bottleneck.register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    with torch.no_grad():
        blocked = model.student(images, features)
        others = model.student(images, [value.flip(-1) * 2 for value in features])
    hook.remove()
    assert all(starmap(torch.equal, zip(blocked, others, strict=True)))


def test_encoder_student_passes_a_bottleneck(shared_models: dict[str, DdpmStModel]) -> None:
    """The decoder sees the coarsest level of the encoder at half of its resolution, and nothing else."""
    student = shared_models["encoder"].eval().student
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = shared_models["encoder"].teacher(images)
        hidden = student.bottleneck(next(iter(student.encoder(images).values())))
        assert hidden.shape == (2, BOTTLENECK_WIDTH, 2, 3)
        expected = student.decoder(hidden, [level.shape[-2:] for level in features])
        for level, restored in zip(student(images, features), expected, strict=True):
            torch.testing.assert_close(level, restored)
    assert list(student.encoder.layers) == [LAYERS[-1]]


def test_symmetric_student_is_the_architecture_of_the_teacher(shared_models: dict[str, DdpmStModel]) -> None:
    """The same tensors, with other values."""
    model = shared_models["symmetric"]
    teacher = model.teacher.extractor.feature_extractor.state_dict()
    student = model.student.encoder.feature_extractor.state_dict()
    assert {name: value.shape for name, value in teacher.items()} == {
        name: value.shape for name, value in student.items()
    }
    assert not torch.equal(teacher["layer1.0.conv1.weight"], student["layer1.0.conv1.weight"])
    assert {name.split(".")[0] for name, _ in model.student.named_parameters()} == {"encoder"}


def test_symmetric_student_with_the_weights_of_the_teacher(shared_models: dict[str, DdpmStModel]) -> None:
    """Then its features are the teacher's and the distance is zero."""
    for model in on_loan(shared_models["symmetric"]):
        weights = model.teacher.extractor.feature_extractor.state_dict()
        model.student.encoder.feature_extractor.load_state_dict(weights)
        with torch.no_grad():
            teacher, student, products = model.compare(torch.rand(2, 3, 64, 64))
        for target, restored, product in zip(teacher, student, products, strict=True):
            torch.testing.assert_close(restored, target)
            present = target.norm(dim=1) > 1e-3
            assert present.any()
            similarity = product.mean(dim=1)[present]
            torch.testing.assert_close(similarity, torch.ones_like(similarity), atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [3, 16])
def test_residual_block(width: int) -> None:
    """The skip goes around both convolutions and ends in a ReLU."""
    block = ResidualBlock(width).eval()
    hidden = torch.randn(2, width, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(block(hidden), (hidden + block.layers(hidden)).relu())
        block.layers[-1].weight.zero_()
        torch.testing.assert_close(block(hidden), hidden.relu())


def test_decoder() -> None:
    """Levels come back from fine to coarse in the sizes asked for; none is wider inside than the limit."""
    dims = [8, 12, MAX_DECODER_WIDTH + 44]
    decoder = Decoder(20, dims).eval()
    sizes = [torch.Size((17, 21)), torch.Size((9, 11)), torch.Size((5, 6))]
    hidden = torch.rand(2, 20, 3, 3)
    with torch.no_grad():
        restored = decoder(hidden, sizes)
    assert [level.shape for level in restored] == [(2, dim, *size) for dim, size in zip(dims, sizes, strict=True)]
    assert [output.in_channels for output in decoder.outputs] == [8, 12, MAX_DECODER_WIDTH]
    # Coarse to fine: what the coarsest level adds reaches all of them, what the finest adds itself alone.
    for level, reached in ((2, [True, True, True]), (1, [True, True, False]), (0, [True, False, False])):
        hook = decoder.blocks[level].register_forward_hook(lambda *call: call[-1] + 1)
        with torch.no_grad():
            changed = decoder(hidden, sizes)
        hook.remove()
        differs = [not torch.equal(before, after) for before, after in zip(restored, changed, strict=True)]
        assert differs == reached, level


def test_decoder_enlarges_after_reducing() -> None:
    """The order does not matter for the result, only for the cost."""
    decoder = Decoder(6, [4]).eval()
    hidden = torch.rand(1, 6, 3, 4)
    with torch.no_grad():
        enlarged = decoder.reduce[0](functional.interpolate(hidden, size=(6, 9), mode="bilinear"))
        expected = decoder.outputs[0](decoder.blocks[0](decoder.norms[0](enlarged)))
        (restored,) = decoder(hidden, [torch.Size((6, 9))])
    torch.testing.assert_close(restored, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_input", ["product", "distance", "both"])
def test_discrepancy(head_input: HeadInput) -> None:
    """Products, cosine distances, or the one beside the other, and a head that takes them."""
    model = DdpmStModel("resnet18", LAYERS[:2], head_input=head_input).eval()
    products = [torch.randn(2, 64, 8, 8), torch.randn(2, 128, 4, 4)]
    shown = model.discrepancy(products)
    for product, level in zip(products, shown, strict=True):
        distance = 1 - product.sum(dim=1, keepdim=True) / product.shape[1]
        expected = {"product": product, "distance": distance}.get(head_input, torch.cat([product, distance], dim=1))
        torch.testing.assert_close(level, expected)
    with torch.no_grad():
        assert model.head(shown).shape == (2, 1, 8, 8)


# ---------------------------------------------------------------------------------------------------------------------
# What learns and what does not


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Batch normalisations of a module."""
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


def test_modes(any_model: DdpmStModel) -> None:
    """Training mode reaches neither the teacher nor the batch normalisation of a pre-trained encoder."""
    any_model.train()
    assert any_model.training
    assert not any(module.training for module in any_model.teacher.modules())
    frozen = batch_norms(any_model.student.encoder) if isinstance(any_model.student, EncoderStudent) else []
    assert not any(norm.training for norm in frozen)
    learning = [norm for norm in batch_norms(any_model.student) if norm not in frozen]
    for norms in (learning, batch_norms(any_model.head)):
        assert norms or isinstance(any_model.student, SymmetricStudent)
        assert all(norm.training for norm in norms)
    any_model.eval()
    assert not any(module.training for module in any_model.modules())


def test_frozen_statistics(any_model: DdpmStModel) -> None:
    """A training step moves no running mean of teacher and pre-trained encoder, but all others."""
    any_model.train()
    state = {name: value.clone() for name, value in any_model.state_dict().items() if name.endswith("running_mean")}
    with torch.no_grad():
        any_model(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    frozen = ("teacher.", "student.encoder.") if isinstance(any_model.student, EncoderStudent) else ("teacher.",)
    assert any(name.startswith("student.") and not name.startswith(frozen) for name in state)
    for name, before in state.items():
        assert torch.equal(any_model.state_dict()[name], before) == name.startswith(frozen), name


def test_gradients(any_model: DdpmStModel) -> None:
    """Gradients reach every part of student and head, and nothing of the teacher."""
    with torch.no_grad():
        for norm in batch_norms(any_model):
            norm.weight.fill_(1.0)  # timm starts some at zero, which would hide the convolutions before them
    any_model.train()
    teacher, student, logits = any_model(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert not any(level.requires_grad for level in teacher)
    loss = logits.square().mean()
    for target, restored in zip(teacher, student, strict=True):
        loss -= torch.cosine_similarity(target, restored, dim=1).mean()
    loss.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in any_model.teacher.parameters())
    for part in (any_model.student, any_model.head):
        without = [key for key, value in part.named_parameters() if value.grad is None or not value.grad.any()]
        assert not without, without


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def check_loaded(model: DdpmStModel, weights: dict[str, torch.Tensor]) -> None:
    """The teacher holds the weights, and so does the encoder of an encoder student."""
    networks = [model.teacher.extractor.feature_extractor]
    if isinstance(model.student, EncoderStudent):
        networks.append(model.student.encoder.feature_extractor)
    for network in networks:
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


def test_load_weights_of_any_student(
    any_model: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """Only the teacher and the encoder of an encoder student change, and the teacher stays frozen."""
    before = {name: value.clone() for name, value in any_model.state_dict().items()}
    torch.save(whole_weights, tmp_path / "weights.pth")
    any_model.load_teacher_weights(tmp_path / "weights.pth")
    check_loaded(any_model, whole_weights)
    loaded = ("teacher.", "student.encoder.") if isinstance(any_model.student, EncoderStudent) else ("teacher.",)
    for name, value in any_model.state_dict().items():
        if not name.startswith(loaded):
            assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in any_model.teacher.parameters())
    assert all(parameter.requires_grad for parameter in any_model.student.parameters())


def test_encoder_of_another_backbone(tmp_path: Path) -> None:
    """The encoder, which ends at the coarsest layer, gives the teacher's coarsest features before training."""
    weights = timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    model = DdpmStModel("mobilenetv3_small_050", ["blocks.1", "blocks.3"], student="encoder").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = next(iter(model.student.encoder(images).values()))
        assert not torch.allclose(before, model.teacher(images)[-1], atol=1e-4)
        model.load_teacher_weights(tmp_path / "weights.pth")
        after = next(iter(model.student.encoder(images).values()))
        torch.testing.assert_close(after, model.teacher(images)[-1])


def test_loaded_weights_are_saved(
    any_model: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    """Another model takes everything from the state dict, also that the weights are there."""
    torch.save(whole_weights, tmp_path / "weights.pth")
    any_model.load_teacher_weights(tmp_path / "weights.pth")
    student = next(name for name, kind in STUDENTS.items() if isinstance(any_model.student, kind))
    other = DdpmStModel("resnet18", LAYERS, student=student).eval()
    other.load_state_dict(any_model.state_dict())
    check_loaded(other, whole_weights)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(images).anomaly_map, any_model(images).anomaly_map)


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
    any_model: DdpmStModel,
    whole_weights: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the hub gives reaches the teacher, and the encoder of an encoder student."""
    original = torch_model.TimmFeatureExtractor

    def hub(backbone: str, layers: list[str], pre_trained: bool, requires_grad: bool) -> nn.Module:
        extractor = original(backbone, layers, pre_trained=False, requires_grad=requires_grad)
        if pre_trained:
            extractor.feature_extractor.load_state_dict(whole_weights, strict=False)
        return extractor

    monkeypatch.setattr(torch_model, "TimmFeatureExtractor", hub)
    any_model.load_teacher_weights()
    check_loaded(any_model, whole_weights)


@pytest.mark.parametrize(
    ("part", "most"),
    [("teacher", 1.84e9), ("student", 0.77e9), ("head", 0.387e9), ("memory", 0.27e9), (None, 3.26e9)],
)
def test_multiplications(part: str | None, most: float) -> None:
    """What each part costs for an image of 256 x 256 pixels; all of them less than the two ResNet-18 of STFPM."""
    model = DdpmStModel("resnet18").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 256, 256))
    counts = counter.get_flop_counts()
    name = f"DdpmStModel.{part}" if part else "DdpmStModel"
    multiplications = sum(counts[name].values()) / 2
    assert 0.98 * most < multiplications <= most
    assert sum(counts["DdpmStModel"].values()) < 0.9 * 2 * sum(counts["DdpmStModel.teacher"].values())
