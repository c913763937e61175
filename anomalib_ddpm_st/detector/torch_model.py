# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Asymmetric student-teacher network with a segmentation head and a memory bank."""

import math
from collections.abc import Iterable, Sequence
from itertools import starmap
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_ddpm_st.core.canonical_pose import CanonicalPose, PoseFrame
from anomalib_ddpm_st.core.config import check_integer, check_number
from anomalib_ddpm_st.core.pose import Pose

from .head import SegmentationHead
from .layers import resize, resize_map, without_autocast
from .memory_bank import DEFAULT_SIZE, MemoryBank
from .student import Student
from .teacher import Teacher

DEFAULT_TOP_K = 100
# Of segmentation, student and memory bank; the student's map is the bluntest of the three.
DEFAULT_WEIGHTS = (0.5, 0.1, 0.4)
# Smallest spread assumed for the scores of normal images: those seen in training can be almost equal.
MIN_SPREAD = 0.02
MIN_LENGTH = 1e-12
# Pixels for one place of the finest level that most CNNs have.
FINEST_REDUCTION = 4
FRAME_NUMBERS = len(PoseFrame().as_numbers())


class NormalScores(NamedTuple):
    """Raw scores of normal images.

    Attributes:
        images (torch.Tensor): Score of each image, of shape ``(N,)``.
        highest (torch.Tensor): Highest value of each anomaly map, of shape ``(N,)``.
        lowest (torch.Tensor): Lowest value of each anomaly map, of shape ``(N,)``.
    """

    images: torch.Tensor
    highest: torch.Tensor
    lowest: torch.Tensor


class DdpmStModel(nn.Module):
    r"""Asymmetric student-teacher detector.

    Three components find defects in an image :math:`y` with the teacher's features :math:`T_l` and the student's
    features :math:`S_l` of level :math:`l`: the segmentation :math:`c_1` by the head :math:`h`, the cosine distance
    :math:`c_2` to the student and the distance :math:`c_3` to the memory bank :math:`d`, all in [0, 1]:

    .. math::
        c_1 = \sigma\!\left(h\!\left(\hat T_l \odot \hat S_l\right)\right), \quad
        c_2 = \overline{1 - \cos(T_l, S_l)}, \quad
        c_3 = d(T_l)

    The anomaly map is their weighted mean, Equation (5), and the score of an image is a weighted mean of the
    components' own scores, Equation (6):

    .. math::
        M = \sum_i w_i c_i \quad (5), \qquad
        s = \frac{\sum_i (w_i / \sigma_i) \operatorname{top}_k(c_i)}{\sum_i w_i / \sigma_i} \quad (6)

    :math:`\operatorname{top}_k` is the mean of the ``top_k`` highest pixels and :math:`\sigma_i` the standard deviation
    of a component's scores among normal images (:meth:`calibrate`), so that each component counts by how far it
    stands out from the scores of normal images. The memory bank and Equations (5) and (6) are not in the abstract of
    arXiv:2604.19240.

    Args:
        teacher (Teacher): Frozen teacher.
        student (nn.Module): Reconstructs the teacher's features of the normal image; called with the list of the
            teacher's features, returns features of the same shapes.
        head (nn.Module): Segmentation head; called with the list of products, returns logits of shape
            ``(B, 1, h_0, w_0)``.
        memory_bank (MemoryBank | None): Memory bank of normal features. ``None`` leaves the third component out.
            Defaults to ``None``.
        component_weights (Sequence[float] | None): Weights of the components in the anomaly map, which sum to 1.
            ``None`` takes 0.5, 0.1 and 0.4, or equal ones without a memory bank. Defaults to ``None``.
        top_k (int): Number of pixels whose mean is the score of a component. Defaults to ``100``.

    Raises:
        ValueError: If a weight or ``top_k`` is out of its range, or the number of weights is not that of the
            components.

    Example:
        >>> import torch
        >>> model = build_model().eval()
        >>> output = model(torch.rand(2, 3, 64, 64))
        >>> output.anomaly_map.shape, output.pred_score.shape
        (torch.Size([2, 1, 64, 64]), torch.Size([2]))
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        head: nn.Module,
        memory_bank: MemoryBank | None = None,
        component_weights: Sequence[float] | None = None,
        top_k: int = DEFAULT_TOP_K,
    ) -> None:
        super().__init__()
        count = 2 if memory_bank is None else 3
        default = DEFAULT_WEIGHTS if memory_bank is not None else (0.5, 0.5)
        weights = list(default if component_weights is None else component_weights)
        for weight in weights:
            check_number("component_weights", weight, 0, 1)
        if len(weights) != count:
            msg = f"component_weights must be {count} numbers, one for each component, got {weights}."
            raise ValueError(msg)
        check_integer("top_k", top_k, 1)
        self.top_k = top_k
        self.component_weights = weights
        self.teacher = teacher
        self.student = student
        self.head = head
        self.memory_bank = memory_bank
        self.score_spread: torch.Tensor
        self.register_buffer("score_spread", torch.ones(count))
        self.pose: CanonicalPose | None = None
        # Travels with the weights; zeros if parts are not turned.
        self.pose_frame: torch.Tensor
        self.register_buffer("pose_frame", torch.zeros(FRAME_NUMBERS))
        self.register_load_state_dict_post_hook(lambda module, _: module.read_pose())

    def set_pose(self, pose: CanonicalPose | None) -> None:
        """Turn parts to one pose, or take images as they are.

        Args:
            pose (CanonicalPose | None): Transform. ``None`` for images as they are.
        """
        numbers = torch.zeros_like(self.pose_frame) if pose is None else torch.tensor(pose.frame.as_numbers())
        self.pose_frame.copy_(numbers)
        # With the rounding of the weights, as a model that is loaded will have it.
        self.read_pose()

    def read_pose(self) -> None:
        """Take the transform from the weights."""
        numbers = self.pose_frame.tolist()
        self.pose = CanonicalPose(PoseFrame.from_numbers(numbers)) if numbers[0] else None

    def align(self, images: torch.Tensor) -> torch.Tensor:
        """Turn the parts in images to one pose, if the detector does so.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Returns:
            torch.Tensor: Images as the teacher sees them, of shape ``(B, 3, h, w)``.
        """
        return images if self.pose is None else self._turn(images, self.pose)[0]

    @staticmethod
    def _turn(images: torch.Tensor, canonical: CanonicalPose) -> tuple[torch.Tensor, Pose]:
        """Turned images, and the poses that their parts had."""
        with without_autocast(images.device):
            pose = canonical.estimate(images)
            return canonical.align(images, pose), pose

    def compare(
        self,
        images: torch.Tensor,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Run teacher and student on images and compare their features.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Returns:
            tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]: Teacher's features, student's features
            and products of their directions for each level, all of shape ``(B, C_l, h_l, w_l)``. The products are
            scaled by ``C_l``, so that their mean over channels is the cosine similarity.
        """
        teacher = self.teacher(images)
        student = self.student(teacher)
        products = list(starmap(direction_product, zip(teacher, student, strict=True)))
        return teacher, student, products

    def forward(
        self,
        images: torch.Tensor,
        clean_images: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor] | InferenceBatch:
        """Compute the inputs of the loss in training mode, and predictions in evaluation mode.

        Args:
            images (torch.Tensor): Images of shape ``(B, 3, H, W)`` with values in [0, 1]; in training with defects, and
                turned by :meth:`align` before.
            clean_images (torch.Tensor | None): In training, the same images without defects. Defaults to ``None``.

        Returns:
            tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor] | InferenceBatch: In training mode the
            teacher's features of the clean images, the student's features and the logits of shape ``(B, 1, H, W)``;
            in evaluation mode the anomaly map of shape ``(B, 1, H, W)`` and the score of shape ``(B,)``, both in
            [0, 1].
        """
        size = images.shape[-2:]
        pose = None
        if self.pose is not None and not self.training:
            images, pose = self._turn(images, self.pose)
        teacher, student, products = self.compare(images)
        logits = self._logits(products, images)
        if self.training:
            if clean_images is not None:
                teacher = self.teacher(clean_images)
            return teacher, student, logits
        components = self.components(teacher, products, logits)
        anomaly_map = self.anomaly_map(components)
        if self.pose is not None and pose is not None:
            anomaly_map = self.pose.restore(anomaly_map, pose, size)
        return InferenceBatch(pred_score=self.image_scores(components), anomaly_map=anomaly_map)

    def _logits(self, products: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Logits of the segmentation at the resolution of the images."""
        # Training interpolates, so that its gradients stay what they were.
        return (resize if self.training else resize_map)(self.head(products), images.shape[-2:])

    def components(
        self,
        teacher: Sequence[torch.Tensor],
        products: Sequence[torch.Tensor],
        logits: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Compute the maps that the anomaly map is the weighted mean of.

        Args:
            teacher (Sequence[torch.Tensor]): Teacher's features of each level.
            products (Sequence[torch.Tensor]): Products of :meth:`compare`.
            logits (torch.Tensor): Logits of the segmentation, of shape ``(B, 1, H, W)``.

        Returns:
            list[torch.Tensor]: Segmentation, of shape ``(B, 1, H, W)``, distance to the student and, if there is a
            memory bank, distance to it, both of shape ``(B, 1, h_0, w_0)``; with values in [0, 1].
        """
        maps = [logits.sigmoid(), distance_map(products)]
        if self.memory_bank is not None:
            maps.append(resize_map(self.memory_bank(teacher), maps[1].shape[-2:]))
        return maps

    def anomaly_map(self, components: Sequence[torch.Tensor]) -> torch.Tensor:
        """Weighted mean of the components, Equation (5).

        Args:
            components (Sequence[torch.Tensor]): Maps of :meth:`components`.

        Returns:
            torch.Tensor: Map of shape ``(B, 1, H, W)`` with values in [0, 1].
        """
        weighted = [weight * component for weight, component in zip(self.component_weights, components, strict=True)]
        # Upsampled once: the mean of linearly upsampled maps is the upsampled mean.
        coarse = torch.stack(weighted[1:]).sum(dim=0)
        return weighted[0] + resize_map(coarse, weighted[0].shape[-2:])

    def image_scores(self, components: Sequence[torch.Tensor]) -> torch.Tensor:
        """Weighted mean of the components' scores, Equation (6).

        Args:
            components (Sequence[torch.Tensor]): Maps of :meth:`components`.

        Returns:
            torch.Tensor: Scores of shape ``(B,)`` with values in [0, 1].
        """
        return self._weighted(self.component_scores(components))

    def _weighted(self, scores: torch.Tensor) -> torch.Tensor:
        """Weighted mean of scores of shape ``(B, number of components)``."""
        weights = scores.new_tensor(self.component_weights) / self.score_spread
        return (scores * weights / weights.sum()).sum(dim=1)

    def component_scores(self, components: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean of the highest values of each component: ``top_k`` pixels of the image, or the same area.

        Args:
            components (Sequence[torch.Tensor]): Maps of :meth:`components`, the first at the image's resolution.

        Returns:
            torch.Tensor: Scores of shape ``(B, number of components)``.
        """
        pixels = [component.flatten(1) for component in components]
        counts = [max(1, round(self.top_k * values.shape[1] / pixels[0].shape[1])) for values in pixels]
        highest = [
            values.topk(min(count, values.shape[1]), dim=1).values.mean(dim=1)
            for values, count in zip(pixels, counts, strict=True)
        ]
        return torch.stack(highest, dim=1)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[torch.Tensor]) -> NormalScores:
        """Set the spread of each component's scores from normal images.

        Args:
            batches (Iterable[torch.Tensor]): Batches of normal images of shape ``(B, 3, H, W)`` with values in [0, 1].

        Returns:
            NormalScores: Scores of these images with the new spread.

        Raises:
            RuntimeError: If the model is in training mode.
        """
        if self.training:
            msg = "Scores are calibrated in evaluation mode: call eval() first."
            raise RuntimeError(msg)
        scores, bounds = [], []
        for images in batches:
            teacher, _, products = self.compare(images)
            components = self.components(teacher, products, self._logits(products, images))
            scores.append(self.component_scores(components))
            bounds.append(torch.stack(self.anomaly_map(components).flatten(1).aminmax(dim=1), dim=1))
        self.score_spread.copy_(torch.cat(scores).std(dim=0, correction=0).clamp_min(MIN_SPREAD))
        lowest, highest = torch.cat(bounds).unbind(dim=1)
        return NormalScores(self._weighted(torch.cat(scores)), highest, lowest)


def build_model(
    backbone: str = "resnet18",
    layers: Sequence[str] | None = None,
    memory_size: int = DEFAULT_SIZE,
    top_k: int = DEFAULT_TOP_K,
) -> DdpmStModel:
    """Build the detector with random weights.

    Args:
        backbone (str): Name of the timm model that serves as teacher. Defaults to ``"resnet18"``.
        layers (Sequence[str] | None): Layers to compare, from fine to coarse. ``None`` takes those of
            :func:`~anomalib_ddpm_st.detector.extractor.default_layers`. Defaults to ``None``.
        memory_size (int): Number of normal features of each level in the memory bank. Defaults to ``1024``.
        top_k (int): Number of pixels whose mean is the score of a component. Defaults to ``100``.

    Returns:
        DdpmStModel: Detector.

    Raises:
        ValueError: If the backbone is unknown or cannot serve, a layer is unknown, or a number out of its range.
    """
    teacher = Teacher(backbone, layers)
    dims, patch = teacher.out_dims, teacher.patch_size
    # Of the powers of 2 the largest that leaves the logits coarser than those of a CNN, or as fine.
    scale = 1 if patch is None else 2 ** int(math.log2(max(1, patch // FINEST_REDUCTION)))
    is_plain = patch is not None
    return DdpmStModel(
        teacher,
        Student(dims, one_resolution=is_plain),
        SegmentationHead(dims, scale=scale),
        MemoryBank(dims, memory_size, one_resolution=is_plain),
        top_k=top_k,
    )


def direction_product(target: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """Element-wise product of the directions of two features (Zhang et al., 2023), scaled by the number of channels.

    Args:
        target (torch.Tensor): Features of shape ``(B, C, h, w)``.
        restored (torch.Tensor): Features of the same shape.

    Returns:
        torch.Tensor: Products of the same shape, whose mean over channels is the cosine similarity.
    """
    # Multiplied by the reciprocal of one channel, which costs less than dividing all channels.
    lengths = [torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp_min(MIN_LENGTH) for part in (target, restored)]
    return (target * (target.shape[1] / lengths[0])) * (restored * lengths[1].reciprocal())


def distance_map(products: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over levels of the cosine distance, limited to [0, 1], at the resolution of the finest level.

    Args:
        products (Sequence[torch.Tensor]): Products of :meth:`DdpmStModel.compare`, each of shape
            ``(B, C_l, h_l, w_l)``.

    Returns:
        torch.Tensor: Map of shape ``(B, 1, h_0, w_0)``.
    """
    size = products[0].shape[-2:]
    finest, *coarser = [1 - product.mean(dim=1, keepdim=True) for product in products]
    return torch.stack([finest, *(resize_map(level, size) for level in coarser)]).mean(dim=0).clamp(0, 1)
