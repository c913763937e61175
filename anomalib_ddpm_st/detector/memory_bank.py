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

from .layers import resize

DEFAULT_SIZE = 1024
MAX_CANDIDATES = 60_000
NORMAL_QUANTILE = 0.995
SCALED_NORMAL = 0.5
MIN_DISTANCE = 1e-3


class DirectionCoreset(KCenterGreedy):
    """Greedy coreset of unit vectors that needs a constant amount of memory.

    For each vector that it keeps, anomalib's class subtracts that vector from all the others. Small tensors that stay
    alive fragment the heap, so that 20,000 vectors need some 20 GB. Cosine distances give the same order, and the
    product with all vectors fits into one buffer.
    """

    _ones: torch.Tensor
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
            self._ones = self.features.new_ones(self.n_observations)
            self._distances = torch.empty_like(self._ones)
        torch.addmv(self._ones, self.features, self.features[cluster_center], alpha=-1, out=self._distances)
        torch.minimum(self.min_distances, self._distances[:, None], out=self.min_distances)


class MemoryBank(nn.Module):
    """Distance of the teacher's features to the nearest of a set of normal ones, as in PatchCore (Roth et al., 2022).

    A student that reconstructs features can reconstruct a defect too, above all one unlike those it was trained with.
    The memory bank can only return normal features. Each level of the teacher has its own: the directions of features,
    averaged over 3 x 3 positions, of a greedy coreset of normal images. Until it is filled, all distances are zero.

    Args:
        dims (Sequence[int]): Number of channels of each level, from fine to coarse.
        size (int): Number of features of each level. Defaults to ``1024``.

    Raises:
        ValueError: If the size is not positive.
    """

    def __init__(self, dims: Sequence[int], size: int = DEFAULT_SIZE) -> None:
        super().__init__()
        check_integer("memory_size", size, 1)
        self.size = size
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.tensor(0.0))
        # Not anomalib's BufferListMixin, which keeps the number of levels in one place for all models of a process.
        for level, dim in enumerate(dims):
            self.register_buffer(f"level{level}", torch.zeros(size, dim))

    @property
    def levels(self) -> list[torch.Tensor]:
        """Normal features of each level, of shape ``(size, C_l)``."""
        return [values for name, values in self.named_buffers() if name.startswith("level")]

    @property
    def is_filled(self) -> bool:
        """Whether the bank holds features."""
        return bool(self.scale > 0)

    def describe(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Directions of features, averaged over 3 x 3 positions; the finest level at half its resolution.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of each level, of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            list[torch.Tensor]: Unit vectors of shape ``(B, C_l, h, w)`` for each level.
        """
        return [
            functional.normalize(
                functional.avg_pool2d(level, 3, 1 if index else 2, padding=1, count_include_pad=False),
                dim=1,
            )
            for index, level in enumerate(features)
        ]

    def distances(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean over levels of the cosine distance to the nearest normal feature.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of each level, of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            torch.Tensor: Distances of shape ``(B, 1, h, w)``, at the resolution of the finest description.
        """
        described = self.describe(features)
        size = described[0].shape[-2:]
        maps = []
        for vectors, normal in zip(described, self.levels, strict=True):
            # One minus the similarity in a single operation, which accumulates in 32 bit even if it computes in 16.
            distances = functional.conv2d(vectors, -normal[:, :, None, None], normal.new_ones(self.size))
            distances = distances.amin(dim=1, keepdim=True)
            maps.append(resize(distances, size))
        return torch.stack(maps).mean(dim=0)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Distances on the scale that was set when the bank was filled.

        Args:
            features (Sequence[torch.Tensor]): Teacher's features of each level, of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            torch.Tensor: Map of shape ``(B, 1, h, w)`` with values in [0, 1]; 0.5 is the value that 0.5 % of the
            pixels of normal images exceed.
        """
        return (self.distances(features) * self.scale).clamp(0, 1)

    @torch.no_grad()
    def fill(
        self,
        normal: Iterable[Sequence[torch.Tensor]],
        varied: Iterable[Sequence[torch.Tensor]],
        num_images: int,
    ) -> None:
        """Choose the features to keep and set the scale of the distances.

        Args:
            normal (Iterable[Sequence[torch.Tensor]]): Teacher's features of batches of normal images. If there are
                fewer features than the bank holds, it holds some of them repeatedly.
            varied (Iterable[Sequence[torch.Tensor]]): Features of normal images that differ slightly from those, as
                new ones would; their distances set the scale.
            num_images (int): Number of images in ``normal``, at least one.
        """
        per_image = math.ceil(MAX_CANDIDATES / num_images)
        candidates: list[list[torch.Tensor]] = [[] for _ in self.levels]
        for features in normal:
            for kept, batch in zip(candidates, self.describe(features), strict=True):
                vectors = batch.permute(0, 2, 3, 1).flatten(0, 2).float()
                chosen = torch.randperm(len(vectors), device=vectors.device)[: per_image * len(batch)]
                kept.append(vectors[chosen])
        for values, kept in zip(self.levels, candidates, strict=True):
            vectors = torch.cat(kept)
            if len(vectors) > self.size:
                # A three-dimensional input keeps anomalib from projecting the features randomly.
                sampler = DirectionCoreset(vectors[:, None], (self.size + 0.5) / len(vectors))
                vectors = sampler.sample_coreset()[:, 0]
            values.copy_(vectors[torch.arange(self.size, device=vectors.device) % len(vectors)])
        known = torch.cat([self.distances(features).flatten() for features in varied])
        typical = known.float().quantile(NORMAL_QUANTILE).clamp_min(MIN_DISTANCE)
        self.scale.copy_(SCALED_NORMAL / typical)
