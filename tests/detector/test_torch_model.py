# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the whole detector: map, score, calibration and what learns."""

from typing import Any

import pytest
import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose, PoseFrame
from anomalib_ddpm_st.detector import DdpmStModel, build_model
from anomalib_ddpm_st.detector.memory_bank import MemoryBank
from anomalib_ddpm_st.detector.torch_model import MIN_SPREAD, direction_product, distance_map

LAYERS = ("layer1", "layer2", "layer3")
SIZES = [(32, 32), (64, 64), (65, 97), (33, 35)]


def variant(network: DdpmStModel, memory_bank: MemoryBank | None = None, **arguments: Any) -> DdpmStModel:  # noqa: ANN401
    """The same teacher, student and head with another memory bank, weights or ``top_k``."""
    return DdpmStModel(network.teacher, network.student, network.head, memory_bank, **arguments).eval()


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Batch normalisations of a module."""
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_output(network: DdpmStModel, size: tuple[int, int]) -> None:
    """Map and score have the shapes of anomalib and values in [0, 1]."""
    with torch.no_grad():
        output = network(torch.rand(2, 3, *size))
    assert output.anomaly_map.shape == (2, 1, *size)
    assert output.pred_score.shape == (2,)
    for values in (output.anomaly_map, output.pred_score):
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_training_output(network: DdpmStModel, size: tuple[int, int]) -> None:
    """Features of teacher and student have the same shapes, logits those of the image."""
    network.train()
    with torch.no_grad():
        teacher, student, logits = network(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert [level.shape for level in teacher] == [level.shape for level in student]
    assert [level.shape[1] for level in teacher] == network.teacher.out_dims
    assert logits.shape == (2, 1, *size)
    assert logits.std() > 0


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)])
def test_flat_images(network: DdpmStModel, images: torch.Tensor) -> None:
    """Black and white images give finite values."""
    with torch.no_grad():
        output = network(images)
    assert output.anomaly_map.isfinite().all()
    assert output.pred_score.isfinite().all()


def test_images_of_a_batch_do_not_mix(network: DdpmStModel) -> None:
    """In evaluation mode an image scores the same alone and in a batch."""
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = network(images), network(images[1:2])
    torch.testing.assert_close(together.anomaly_map[1:2], alone.anomaly_map, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.pred_score[1:2], alone.pred_score, atol=1e-4, rtol=0)


def test_distance_map_equals_cosine_similarity(network: DdpmStModel) -> None:
    """The products give the mean of the cosine distances that torch computes."""
    with torch.no_grad():
        teacher, student, products = network.compare(torch.rand(2, 3, 64, 96))
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


def test_student_gets_the_defects_and_teacher_the_clean_images(network: DdpmStModel) -> None:
    """While training, the target is the teacher's view of the clean image; student and logits see the defects."""
    clean, defects, others = (torch.rand(2, 3, 32, 32) for _ in range(3))
    network.train()
    with torch.no_grad():
        teacher, student, logits = network(defects, clean)
        expected = network.teacher(clean)
        for one, other in zip(teacher, expected, strict=True):
            torch.testing.assert_close(one, other)
        _, same_student, same_logits = network(defects, others)
        _, other_student, other_logits = network(others, clean)
    torch.testing.assert_close(student[0], same_student[0])
    torch.testing.assert_close(logits, same_logits)
    assert not torch.allclose(student[0], other_student[0])
    assert not torch.allclose(logits, other_logits)


def test_modes(network: DdpmStModel) -> None:
    """Training mode reaches student and head, but not the teacher."""
    network.train()
    assert network.training
    assert not any(module.training for module in network.teacher.modules())
    for part in (network.student, network.head):
        norms = batch_norms(part)
        assert norms
        assert all(norm.training for norm in norms)
    network.eval()
    assert not any(module.training for module in network.modules())


def test_frozen_statistics(network: DdpmStModel) -> None:
    """A training step moves every running mean except those of the teacher."""
    network.train()
    state = {name: value.clone() for name, value in network.state_dict().items() if name.endswith("running_mean")}
    with torch.no_grad():
        network(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert any(name.startswith("student.") for name in state)
    for name, before in state.items():
        assert torch.equal(network.state_dict()[name], before) == name.startswith("teacher."), name


def test_gradients(network: DdpmStModel) -> None:
    """Gradients reach every part of student and head, and nothing of the teacher."""
    with torch.no_grad():
        for norm in batch_norms(network):
            norm.weight.fill_(1.0)  # timm starts some at zero, which would hide the convolutions before them
    network.train()
    teacher, student, logits = network(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert not any(level.requires_grad for level in teacher)
    loss = logits.square().mean()
    for target, restored in zip(teacher, student, strict=True):
        loss -= torch.cosine_similarity(target, restored, dim=1).mean()
    loss.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.teacher.parameters())
    for part in (network.student, network.head):
        without = [key for key, value in part.named_parameters() if value.grad is None or not value.grad.any()]
        assert not without, without


def test_evaluation_by_formula(network: DdpmStModel) -> None:
    """Equations (5) and (6) without a memory bank: maps and scores are weighted means of the components'."""
    images = torch.rand(2, 3, 48, 64)
    model = variant(network, component_weights=(0.7, 0.3), top_k=40)
    with torch.no_grad():
        segmentation = variant(network, component_weights=(1.0, 0.0))(images).anomaly_map
        distance = variant(network, component_weights=(0.0, 1.0))(images).anomaly_map
        output = model(images)
        teacher, student, _ = model.compare(images)
        products, cosines = [], []
        for target, restored in zip(teacher, student, strict=True):
            product = functional.normalize(target, dim=1) * functional.normalize(restored, dim=1)
            products.append(product * target.shape[1])
            cosine = 1 - torch.cosine_similarity(target, restored, dim=1).unsqueeze(1)
            cosines.append(functional.interpolate(cosine, size=(12, 16), mode="bilinear"))
        logits = functional.interpolate(model.head(products), size=(48, 64), mode="bilinear")
    torch.testing.assert_close(segmentation, logits.sigmoid(), atol=1e-5, rtol=0)
    coarse = torch.stack(cosines).mean(dim=0).clamp(0, 1)
    upsampled = functional.interpolate(coarse, size=(48, 64), mode="bilinear")
    torch.testing.assert_close(distance, upsampled, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.anomaly_map, 0.7 * segmentation + 0.3 * distance)
    # Forty pixels of 48 x 64 are two and a half positions of 12 x 16.
    first, second = (
        part.flatten(1).sort(dim=1, descending=True).values[:, :count].mean(dim=1)
        for part, count in ((segmentation, 40), (coarse, 2))
    )
    torch.testing.assert_close(output.pred_score, 0.7 * first + 0.3 * second)
    model.score_spread.copy_(torch.tensor([0.1, 0.05]))
    with torch.no_grad():
        output = model(images)
    torch.testing.assert_close(output.pred_score, (7 * first + 6 * second) / 13)


def filled_bank(network: DdpmStModel) -> MemoryBank:
    """Memory bank with features that differ from those of images."""
    with torch.no_grad():
        features = network.teacher(torch.randn(2, 3, 64, 64))
    bank = MemoryBank(network.teacher.out_dims, 20)
    bank.fill([features], [[level + torch.randn_like(level) for level in features]], 2)
    return bank


def test_default_weights_of_components(network: DdpmStModel) -> None:
    """Segmentation, distance to the student and distance to the memory bank."""
    bank, images = filled_bank(network), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = [
            variant(network, bank, component_weights=weights)(images).anomaly_map
            for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        ]
        memory = functional.interpolate(bank(network.teacher(images)), size=(16, 16), mode="bilinear")
        memory = functional.interpolate(memory, size=(64, 64), mode="bilinear")
        default = variant(network, bank)(images).anomaly_map
    assert maps[2].max() > 0.3
    torch.testing.assert_close(maps[2], memory)
    torch.testing.assert_close(default, 0.5 * maps[0] + 0.1 * maps[1] + 0.4 * maps[2])
    assert variant(network).component_weights == [0.5, 0.5]


def test_scores_count_by_how_far_they_stand_out(network: DdpmStModel) -> None:
    """A component that varies little among normal images counts for more, down to the smallest spread."""
    bank, batches = filled_bank(network), list(torch.rand(3, 4, 3, 64, 64))
    model = variant(network, bank, top_k=40)
    with torch.no_grad():
        scores = []
        for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
            single = variant(network, bank, component_weights=weights, top_k=40)
            scores.append(torch.cat([single(images).pred_score for images in batches]))
        model.calibrate(batches)
        spread = torch.stack(scores, dim=1).std(dim=0, correction=0)
        torch.testing.assert_close(model.score_spread, spread.clamp_min(MIN_SPREAD))
        weights = torch.tensor([0.5, 0.1, 0.4]) / model.score_spread
        expected = torch.stack(scores, dim=1) @ weights / weights.sum()
        torch.testing.assert_close(torch.cat([model(images).pred_score for images in batches]), expected)
        model.calibrate([batches[0][:1]])
    torch.testing.assert_close(model.score_spread, torch.full((3,), MIN_SPREAD))
    with pytest.raises(RuntimeError, match="call eval"):
        model.train().calibrate(batches)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"component_weights": (1.5, 0.0)}, "component_weights must be a"),
        ({"component_weights": (-0.1, 1.0)}, "component_weights must be a"),
        ({"component_weights": (0.5, 0.2, 0.3)}, "component_weights must be 2 numbers"),
        ({"top_k": 0}, "top_k must be a whole number"),
    ],
)
def test_settings_out_of_range(arguments: dict[str, Any], match: str, network: DdpmStModel) -> None:
    """The sentence names the argument."""
    with pytest.raises(ValueError, match=match):
        variant(network, **arguments)


def test_memory_size_out_of_range() -> None:
    """The sentence names the argument."""
    with pytest.raises(ValueError, match="memory_size must be a whole number of at least 1, got 0"):
        build_model(memory_size=0)


def test_score_with_more_pixels_asked_for_than_there_are(network: DdpmStModel) -> None:
    """Export probes the model at 32 x 32 pixels, whatever ``top_k`` is."""
    with torch.no_grad():
        output = variant(network, component_weights=(1.0, 0.0), top_k=5000)(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(output.pred_score, output.anomaly_map.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("resnet18", ["layer2"]),
        ("resnet18", ["layer2", "layer3"]),
        ("mobilenetv3_small_050", ["blocks.1", "blocks.3"]),
        ("test_efficientnet", None),
        ("test_convnext", None),
        ("test_vit", None),
        ("test_vit", ["blocks.5"]),
    ],
)
def test_other_layers_and_backbone(backbone: str, layers: list[str] | None) -> None:
    """One layer or two, another CNN, and a vision transformer work in evaluation and in training."""
    model = build_model(backbone, layers, memory_size=10).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, 64, 90))
        assert output.anomaly_map.shape == (2, 1, 64, 90)
        assert output.anomaly_map.std() > 0
        teacher, restored, logits = model.train()(torch.rand(2, 3, 64, 90))
    assert [level.shape for level in teacher] == [level.shape for level in restored]
    assert logits.shape == (2, 1, 64, 90)


@pytest.mark.parametrize(
    ("backbone", "side"), [("test_resnet", 16), ("test_vit", 16), ("vit_small_patch14_dinov2", 10)]
)
def test_resolution_of_the_logits(backbone: str, side: int) -> None:
    """Places of a quarter of the image's resolution, or of half a patch of 14 pixels."""
    model = build_model(backbone, memory_size=4).eval()
    shapes: list[torch.Size] = []
    model.head.register_forward_hook(lambda *call: shapes.append(call[-1].shape))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert shapes == [(1, 1, side, side)]


def test_memory_bank_of_tokens() -> None:
    """They are compared as they are: neither averaged with their neighbours nor left out."""
    model = build_model("test_vit", memory_size=4)
    levels = model.teacher(torch.rand(1, 3, 64, 96))
    for level, described in zip(levels, model.memory_bank.describe(levels), strict=True):
        torch.testing.assert_close(described, functional.normalize(level, dim=1))


def test_models_of_different_depth_in_one_process() -> None:
    """Each has the levels of its own memory bank."""
    one, two = (build_model(layers=LAYERS[:count], memory_size=10) for count in (1, 2))
    assert len(one.memory_bank.levels) == 1
    assert len(two.memory_bank.levels) == 2


@pytest.mark.parametrize(
    ("part", "most"),
    [("teacher", 1.84e9), ("student", 0.77e9), ("head", 0.387e9), ("memory_bank", 0.275e9), (None, 3.27e9)],
)
def test_multiplications(part: str | None, most: float) -> None:
    """Cost of each part for an image of 256 x 256 pixels; all of them together less than the two ResNet-18 of STFPM."""
    model = build_model().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 256, 256))
    counts = counter.get_flop_counts()
    name = f"DdpmStModel.{part}" if part else "DdpmStModel"
    multiplications = sum(counts[name].values()) / 2
    assert 0.98 * most < multiplications <= most
    assert sum(counts["DdpmStModel"].values()) < 0.9 * 2 * sum(counts["DdpmStModel.teacher"].values())


# ---------------------------------------------------------------------------------------------------------------------
# Pose


def bolts() -> torch.Tensor:
    """Two images of a bar with a head, of shape ``(2, 3, 64, 64)``; the second is the first turned by a quarter."""
    image = torch.full((3, 64, 64), 0.8)
    image[:, 28:36, 8:52] = 0.3
    image[:, 22:42, 44:52] = 0.3
    return torch.stack([image, image.rot90(-1, (1, 2))])


def test_turned_parts_have_equal_scores(network: DdpmStModel) -> None:
    """A part scores the same in any pose, and its map is turned back to where the part lies."""
    network.set_pose(CanonicalPose(PoseFrame(32, 128)))
    with torch.no_grad():
        output = network(bolts())
    assert output.anomaly_map.shape == (2, 1, 64, 64)
    network.set_pose(None)
    with torch.no_grad():
        plain = network(bolts())

    def difference(prediction: InferenceBatch) -> tuple[float, float]:
        scores, maps = prediction.pred_score, prediction.anomaly_map
        return float((scores[0] - scores[1]).abs()), float((maps[0] - maps[1].rot90(1, (1, 2))).abs().mean())

    assert all(10 * turned < lying for turned, lying in zip(difference(output), difference(plain), strict=True))


def test_pose_in_training(network: DdpmStModel) -> None:
    """Images are turned once, before defects are put in; the network itself does not turn them again."""
    network.set_pose(CanonicalPose(PoseFrame(32, 128)))
    turned = network.align(bolts())
    assert turned.shape == (2, 3, 64, 128)
    torch.testing.assert_close(turned[0], turned[1], atol=1e-2, rtol=0)
    network.train()
    logits = network(turned, turned)[2]
    assert logits.shape == (2, 1, 64, 128)
    network.set_pose(None)
    assert torch.equal(network.align(bolts()), bolts())


@pytest.mark.parametrize("end", [None, 0, 1])
def test_pose_travels_with_the_weights(network: DdpmStModel, end: int | None) -> None:
    """Weights that are loaded into another detector bring their pose, or take its pose away."""
    frame = PoseFrame(27, 66, 1.25, end)
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    network.set_pose(CanonicalPose(frame))
    turning = {name: value.clone() for name, value in network.state_dict().items()}
    network.set_pose(None)
    network.load_state_dict(turning)
    assert network.pose is not None
    assert network.pose.frame == frame
    network.load_state_dict(plain)
    assert network.pose is None


def test_pose_in_mixed_precision(network: DdpmStModel) -> None:
    """Poses are estimated in 32 bit."""
    network.set_pose(CanonicalPose(PoseFrame(32, 128)))
    expected = network.align(bolts())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.align(bolts()), expected)
