# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Memory bank of normal features, which catches defects that the student reconstructs."""

import math
from collections.abc import Iterable, Sequence

import torch
from anomalib.models.components import KCenterGreedy
from torch import nn
from torch.nn import functional

from anomalib_ddpm_st.core.config import check_integer
from anomalib_ddpm_st.core.plain_stderr import bars_on_plain_stderr
from anomalib_ddpm_st.core.pose import pixel_coordinates

from .layers import resize_map, without_autocast

DEFAULT_SIZE = 1024
MAX_CANDIDATES = 60_000
NORMAL_QUANTILE = 0.995
SCALED_NORMAL = 0.5
MIN_DISTANCE = 1e-3
# The levels' far places coincide in part: the mean of levels, each in units of its own, is seldom below this.
MIN_JOINED = 0.2
# The distances to so many features at once stay in the cache of one core, where their minimum is taken.
FEATURES_AT_ONCE = 256


class EuclideanCoreset(KCenterGreedy):
    """Greedy coreset that needs a constant amount of memory.

    For each vector that it keeps, anomalib's class subtracts that vector from all the others. Small tensors that stay
    alive fragment the heap, so that 20,000 vectors need some 20 GB. Half of the squared distance gives the same order,
    and the product with all vectors fits into one buffer.
    """

    _halves: torch.Tensor
    _distances: torch.Tensor

    def update_distances(self, cluster_center: int | torch.Tensor | None) -> None:
        """Update minimum distances given a single cluster centre.

        Args:
            cluster_center (int | torch.Tensor | None): Index of the centre.
        """
        if cluster_center is None:
            return
        if self.min_distances is None:
            self.min_distances = self.features.new_full((self.n_observations, 1), torch.inf)
            self._halves = self.features.square().sum(dim=1) / 2
            self._distances = torch.empty_like(self._halves)
        torch.addmv(self._halves, self.features, self.features[cluster_center], alpha=-1, out=self._distances)
        self._distances += self._halves[cluster_center]
        torch.minimum(self.min_distances, self._distances[:, None], out=self.min_distances)


class MemoryBank(nn.Module):
    r"""Distance of the teacher's features to the nearest of a set of normal ones, as in PatchCore (Roth et al., 2022).

    A student that reconstructs features can reconstruct a defect too, above all one unlike those it was trained with.
    The memory bank can only return normal features. Each level of the teacher has its own: the directions of features,
    averaged over 3 x 3 positions, of a greedy coreset of normal images. Until it is filled, all distances are zero.

    What is normal at one place of a part may be a defect at another. With a weight :math:`\lambda` of the position
    above 0, the distance of a feature :math:`f` at the place :math:`p` to the normal feature :math:`n` at :math:`q` is

    .. math::
        1 - \cos(f, n) + \tfrac{1}{2} \lambda^2 \lVert p - q \rVert^2

    with places in units of the longer side of the image.

    Args:
        dims (Sequence[int]): Number of channels of each level, from fine to coarse.
        size (int): Number of features of each level. Defaults to ``1024``.
        one_resolution (bool): All levels have the same resolution, as those of a vision transformer, whose features
            are taken as they are: each has seen the whole image. Defaults to ``False``.

    Raises:
        ValueError: If the size is not positive.
    """

    def __init__(self, dims: Sequence[int], size: int = DEFAULT_SIZE, one_resolution: bool = False) -> None:
        super().__init__()
        check_integer("memory_size", size, 1)
        self.size = size
        self.one_resolution = one_resolution
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.zeros(len(dims)))
        self.position_weight: torch.Tensor
        self.register_buffer("position_weight", torch.tensor(0.0))
        # Not anomalib's BufferListMixin, which keeps the number of levels in one place for all models of a process.
        for level, dim in enumerate(dims):
            self.register_buffer(f"level{level}", torch.zeros(size, dim))
            self.register_buffer(f"places{level}", torch.zeros(size, 2))

    @property
    def levels(self) -> list[torch.Tensor]:
        """Normal features of each level, of shape ``(size, C_l)``."""
        return [values for name, values in self.named_buffers() if name.startswith("level")]

    @property
    def places(self) -> list[torch.Tensor]:
        """Places of the features of each level, times the weight of the position, of shape ``(size, 2)``."""
        return [values for name, values in self.named_buffers() if name.startswith("places")]

    @property
    def is_filled(self) -> bool:
        """Whether the bank holds features."""
        return bool((self.scale > 0).any())

    def describe(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Directions of features, averaged over 3 x 3 positions; the finest level at half its resolution.

        Levels that all have one resolution are neither averaged nor halved.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of each level, of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            list[torch.Tensor]: Unit vectors of shape ``(B, C_l, h, w)`` for each level.
        """
        if self.one_resolution:
            return [functional.normalize(level, dim=1) for level in features]
        return [
            functional.normalize(
                functional.avg_pool2d(level, 3, 1 if index else 2, padding=1, count_include_pad=False),
                dim=1,
            )
            for index, level in enumerate(features)
        ]

    def _place(self, vectors: torch.Tensor) -> torch.Tensor:
        """Places of vectors of shape ``(B, C, h, w)``, times the weight of the position, of shape ``(1, 2, h, w)``."""
        height, width = vectors.shape[-2:]
        columns, rows = pixel_coordinates(height, width, self.position_weight)
        half = self.position_weight / (2 * torch.sym_max(height, width))
        grid = torch.broadcast_tensors(rows * (half * height), columns * (half * width))
        return torch.stack(grid, dim=1)

    def level_distances(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Distance to the nearest normal feature for each level.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of each level, of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            list[torch.Tensor]: Distances of shape ``(B, 1, h, w)`` for each level.
        """
        maps = []
        # The sums of large numbers that make a small distance need 32 bits.
        with without_autocast(features[0].device):
            for vectors, normal, normal_places in zip(self.describe(features), self.levels, self.places, strict=True):
                places = self._place(vectors)
                # Places are two further channels, which costs hardly anything. In an export, len() would be a constant.
                joined = torch.cat([vectors, places.expand(vectors.shape[0], -1, -1, -1)], dim=1).to(normal.dtype)
                weight = torch.cat([normal, normal_places], dim=1)[:, :, None, None]
                bias = 1 + normal_places.square().sum(dim=1) / 2
                # Not split(), which warns in an export.
                parts = [slice(start, start + FEATURES_AT_ONCE) for start in range(0, self.size, FEATURES_AT_ONCE)]
                nearest = torch.cat(
                    [functional.conv2d(joined, -weight[part], bias[part]).amin(dim=1, keepdim=True) for part in parts],
                    dim=1,
                )
                maps.append(nearest.amin(dim=1, keepdim=True) + places.square().sum(dim=1, keepdim=True) / 2)
        return maps

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean over levels of the distances, on the scales that were set when the bank was filled.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of each level, of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            torch.Tensor: Map of shape ``(B, 1, h, w)`` with values in [0, 1], at the resolution of the finest
            description; 0.5 is the value that 0.5 % of the pixels of normal images exceed.
        """
        return self.scaled_distances(features).clamp(0, 1)

    def scaled_distances(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """As :meth:`forward`, without the upper limit.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of each level, of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            torch.Tensor: Map of shape ``(B, 1, h, w)``.
        """
        return self._join(self.level_distances(features), self.scale)

    @staticmethod
    def _join(distances: Sequence[torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
        """Mean of scaled distances of shape ``(B, 1, h, w)``, at the resolution of the finest level."""
        finest, *coarser = [level * scale[index] for index, level in enumerate(distances)]
        return torch.stack([finest, *(resize_map(level, finest.shape[-2:]) for level in coarser)]).mean(dim=0)

    @torch.no_grad()
    def fill(
        self,
        normal: Iterable[Sequence[torch.Tensor]],
        varied: Iterable[Sequence[torch.Tensor]],
        num_images: int,
        position_weight: float = 0.0,
    ) -> None:
        """Choose the features to keep and set the scale of the distances.

        Each level is divided by its own distances of normal images, so that none drowns the others.

        Args:
            normal (Iterable[Sequence[torch.Tensor]]): Teacher's features of batches of normal images. If there are
                fewer features than the bank holds, it holds some of them repeatedly.
            varied (Iterable[Sequence[torch.Tensor]]): Features of normal images that differ slightly from those, as
                new ones would; their distances set the scale.
            num_images (int): Number of images in ``normal``, at least one.
            position_weight (float): Weight of the position, at least 0. Defaults to ``0.0``.
        """
        self.position_weight.fill_(position_weight)
        per_image = math.ceil(MAX_CANDIDATES / num_images)
        candidates: list[list[torch.Tensor]] = [[] for _ in self.levels]
        for features in normal:
            for kept, batch in zip(candidates, self.describe(features), strict=True):
                joined = torch.cat([batch, self._place(batch).expand(len(batch), -1, -1, -1)], dim=1)
                vectors = joined.permute(0, 2, 3, 1).flatten(0, 2).float()
                chosen = torch.randperm(len(vectors), device=vectors.device)[: per_image * len(batch)]
                kept.append(vectors[chosen])
        for values, places, kept in zip(self.levels, self.places, candidates, strict=True):
            vectors = torch.cat(kept)
            if len(vectors) > self.size:
                # A three-dimensional input keeps anomalib from projecting the features randomly.
                sampler = EuclideanCoreset(vectors[:, None], (self.size + 0.5) / len(vectors))
                with bars_on_plain_stderr():
                    vectors = sampler.sample_coreset()[:, 0]
            vectors = vectors[torch.arange(self.size, device=vectors.device) % len(vectors)]
            values.copy_(vectors[:, :-2])
            places.copy_(vectors[:, -2:])
        known = [self.level_distances(features) for features in varied]
        levels = torch.stack([_typical([part[level] for part in known]) for level in range(len(known[0]))])
        self.scale.copy_(1 / levels.clamp_min(MIN_DISTANCE))
        joined = _typical([self._join(part, self.scale) for part in known])
        self.scale.mul_(SCALED_NORMAL / joined.clamp_min(MIN_JOINED))


def _typical(distances: Sequence[torch.Tensor]) -> torch.Tensor:
    """Distance that few places of normal images exceed."""
    return torch.cat([part.flatten() for part in distances]).float().quantile(NORMAL_QUANTILE)
