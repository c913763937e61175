# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Joint loss of student and segmentation head."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


def cosine_loss(teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over levels of the mean cosine distance of feature vectors.

    Args:
        teacher (Sequence[torch.Tensor]): Features of the clean image, each of shape ``(B, C, H, W)``.
        student (Sequence[torch.Tensor]): Features reconstructed from the image with defects, of the same shapes.

    Returns:
        torch.Tensor: Scalar in [0, 2 * number of levels].
    """
    distances = [
        1 - functional.cosine_similarity(target.float(), restored.float(), dim=1).mean()
        for target, restored in zip(teacher, student, strict=True)
    ]
    return torch.stack(distances).sum()


def focal_loss(logits: torch.Tensor, masks: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Binary focal loss (Lin et al., 2017) without a class weight.

    The value equals that of ``torchvision.ops.sigmoid_focal_loss`` with ``alpha=-1`` to the last bit, but not the
    gradient, which rounds differently: replacing it would change every trained model slightly.

    Args:
        logits (torch.Tensor): Logits of any shape.
        masks (torch.Tensor): Targets of the same shape, 0 or 1.
        gamma (float): Focusing parameter. Defaults to ``2.0``.

    Returns:
        torch.Tensor: Scalar.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy).mean()


class DdpmStLoss(nn.Module):
    r"""Cosine loss of the student plus focal loss and L1 loss of the segmentation, Equation (4).

    With the teacher's features :math:`T_l(x)` of the clean image, the student's features :math:`S_l(y)` of the image
    with defects, the segmentation :math:`p` and its mask :math:`m`:

    .. math::
        L = \sum_l \overline{1 - \cos(T_l(x), S_l(y))}
            + \lambda \, (\overline{FL_{\gamma=2}(p, m)} + \overline{|p - m|})

    The abstract of arXiv:2604.19240 names a cosine loss and a pixel-wise segmentation loss; focal plus L1 loss follows
    Zhang et al. (2023), without a class weight.

    Args:
        segmentation_weight (float): Weight :math:`\lambda` of the segmentation loss. Defaults to ``1.0``.

    Example:
        >>> import torch
        >>> loss = DdpmStLoss()
        >>> features = [torch.rand(2, 8, 4, 4)]
        >>> masks = torch.zeros(2, 1, 16, 16)
        >>> round(abs(loss(features, features, masks - 100, masks).item()), 4)
        0.0
    """

    def __init__(self, segmentation_weight: float = 1.0) -> None:
        super().__init__()
        self.segmentation_weight = segmentation_weight

    def forward(
        self,
        teacher: Sequence[torch.Tensor],
        student: Sequence[torch.Tensor],
        logits: torch.Tensor,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the joint loss.

        Args:
            teacher (Sequence[torch.Tensor]): Teacher's features of the clean images, each ``(B, C, H, W)``.
            student (Sequence[torch.Tensor]): Student's features of the images with defects, of the same shapes.
            logits (torch.Tensor): Logits of the segmentation, of shape ``(B, 1, H, W)``.
            masks (torch.Tensor): Masks of the defects, 0 or 1, of shape ``(B, 1, H, W)``.

        Returns:
            torch.Tensor: Scalar.
        """
        logits = logits.float()
        segmentation = focal_loss(logits, masks) + functional.l1_loss(logits.sigmoid(), masks)
        return cosine_loss(teacher, student) + self.segmentation_weight * segmentation
