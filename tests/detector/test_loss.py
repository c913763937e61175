# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the losses against values computed by hand and against torchvision."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from anomalib_ddpm_st.detector import DdpmStLoss
from anomalib_ddpm_st.detector.loss import cosine_loss, focal_loss


def vectors(*columns: tuple[float, ...]) -> torch.Tensor:
    """Features of one image with one row, of shape ``(1, C, 1, W)``."""
    return torch.tensor(columns).T[None, :, None, :]


def test_cosine_loss_by_hand() -> None:
    """Equal, orthogonal, opposite and at 45 degrees; levels add up and pixels are averaged."""
    teacher = vectors((1.0, 0.0), (2.0, 0.0), (0.0, 3.0), (1.0, 1.0))
    student = vectors((5.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0))
    expected = (0 + 1 + 2 + 1 - math.sqrt(0.5)) / 4
    assert cosine_loss([teacher], [student]).item() == pytest.approx(expected, abs=1e-6)
    opposite = vectors((1.0, 2.0))
    assert cosine_loss([teacher, opposite], [student, -opposite]).item() == pytest.approx(expected + 2, abs=1e-6)


def test_cosine_loss_averages_within_a_level() -> None:
    """A large level counts as much as a small one."""
    small, large = torch.ones(2, 3, 1, 1), torch.ones(2, 5, 8, 8)
    assert cosine_loss([small, large], [-small, large]).item() == pytest.approx(2)
    assert cosine_loss([small, large], [small, -large]).item() == pytest.approx(2)


def test_cosine_loss_needs_the_same_levels() -> None:
    """A missing level is not passed over."""
    level = torch.ones(1, 2, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        cosine_loss([level, level], [level])


@pytest.mark.parametrize(
    ("logit", "target", "gamma", "expected"),
    [
        (0.0, 1.0, 2.0, 0.25 * math.log(2)),
        (0.0, 0.0, 2.0, 0.25 * math.log(2)),
        (math.log(3), 1.0, 2.0, 0.25**2 * -math.log(0.75)),
        (math.log(3), 0.0, 2.0, 0.75**2 * -math.log(0.25)),
        (math.log(3), 0.0, 0.0, -math.log(0.25)),
        (math.log(3), 1.0, 1.0, 0.25 * -math.log(0.75)),
    ],
)
def test_focal_loss_by_hand(logit: float, target: float, gamma: float, expected: float) -> None:
    """``(1 - p)^gamma * -log p`` of the true class."""
    result = focal_loss(torch.tensor([logit]), torch.tensor([target]), gamma)
    assert result.item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_equals_torchvision() -> None:
    """Without class weight it is the loss of torchvision."""
    logits = torch.randn(2, 1, 8, 8) * 4
    masks = (torch.rand(2, 1, 8, 8) < 0.3).float()
    expected = sigmoid_focal_loss(logits, masks, alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, masks), expected)


def test_focal_loss_of_extreme_logits() -> None:
    """Neither value nor gradient overflows."""
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(100)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_joint_loss_by_hand(weight: float) -> None:
    """Cosine plus weight times (focal plus L1)."""
    teacher, student = vectors((1.0, 0.0)), vectors((0.0, 1.0))
    logits = torch.tensor([math.log(3), math.log(3)]).reshape(1, 1, 1, 2)
    masks = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    focal = (0.25**2 * -math.log(0.75) + 0.75**2 * -math.log(0.25)) / 2
    l1 = (0.25 + 0.75) / 2
    result = DdpmStLoss(segmentation_weight=weight)([teacher], [student], logits, masks)
    assert result.item() == pytest.approx(1 + weight * (focal + l1), rel=1e-5)


def test_perfect_prediction_has_no_loss() -> None:
    """Restored features and a sure, right segmentation cost nothing."""
    features = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    masks = (torch.rand(2, 1, 16, 16) < 0.5).float()
    loss = DdpmStLoss()(features, [level * 3 for level in features], (masks * 2 - 1) * 100, masks)
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_half_precision() -> None:
    """Features and logits in ``bfloat16`` give a finite loss in ``float32``."""
    features = [torch.randn(1, 4, 8, 8).bfloat16()]
    loss = DdpmStLoss()(features, features, torch.randn(1, 1, 8, 8).bfloat16(), torch.zeros(1, 1, 8, 8))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
