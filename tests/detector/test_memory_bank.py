# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the memory of normal features."""

import pytest
import torch
from anomalib.models.components import KCenterGreedy
from torch.nn import functional

from anomalib_ddpm_st.detector import memory_bank as memory_module
from anomalib_ddpm_st.detector.memory_bank import MIN_DISTANCE, EuclideanCoreset, MemoryBank

DIMS = (4, 6)


def features(count: int, size: int = 8) -> list[torch.Tensor]:
    """Random features of two levels."""
    return [torch.randn(count, DIMS[0], size, size), torch.randn(count, DIMS[1], size // 2, size // 2)]


def filled(size: int = 16, count: int = 3) -> tuple[MemoryBank, list[torch.Tensor]]:
    """Memory of random features, and these."""
    memory, normal = MemoryBank(DIMS, size), features(count)
    memory.fill([normal], [features(2)], count)
    return memory, normal


def test_empty_memory_tells_nothing() -> None:
    """Before it is filled, all distances are zero."""
    memory = MemoryBank(DIMS, 5)
    assert not memory.is_filled
    assert memory(features(2)).tolist() == torch.zeros(2, 1, 4, 4).tolist()


@pytest.mark.parametrize("size", [8, 7, 3])
def test_description_by_formula(size: int) -> None:
    """Mean of the places around that exist, as a direction; every second place of the finest level."""
    levels = [torch.randn(2, DIMS[0], size, size), torch.randn(2, DIMS[1], size, size)]
    for level, described, stride in zip(levels, MemoryBank(DIMS, 2).describe(levels), (2, 1), strict=True):
        places = range(0, size, stride)
        assert described.shape == (2, level.shape[1], len(places), len(places))
        for row, top in enumerate(places):
            for column, left in enumerate(places):
                around = level[:, :, max(top - 1, 0) : top + 2, max(left - 1, 0) : left + 2].mean(dim=(2, 3))
                torch.testing.assert_close(described[:, :, row, column], functional.normalize(around, dim=1))


@pytest.mark.parametrize("at_once", [5, 16, 256])
def test_distances_by_formula(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One minus the largest cosine similarity for each level; the map is the mean of the scaled levels."""
    monkeypatch.setattr(memory_module, "FEATURES_AT_ONCE", at_once)
    memory, _ = filled()
    query = features(2, 4)
    fine, coarse = (
        torch.stack([1 - (vectors.permute(1, 2, 0) @ normal.T).max(dim=-1).values for vectors in described])
        for described, normal in zip(memory.describe(query), memory.levels, strict=True)
    )
    for result, expected in zip(memory.level_distances(query), (fine, coarse), strict=True):
        torch.testing.assert_close(result[:, 0], expected)
    scaled = memory.scaled_distances(query)
    assert scaled.shape == (2, 1, 2, 2)
    torch.testing.assert_close(scaled[:, 0], (memory.scale[0] * fine + memory.scale[1] * coarse) / 2)


def test_distances_with_positions_by_formula() -> None:
    """The squared distance of the places is added, in units of the longer side, before the nearest is chosen."""
    memory = MemoryBank(DIMS[:1], 24)
    normal = torch.randn(1, 4, 8, 12)
    memory.fill([[normal]], [[normal]], 1, position_weight=3.0)
    rows, columns = torch.meshgrid(torch.arange(4) - 1.5, torch.arange(6) - 2.5, indexing="ij")
    places = torch.stack([rows, columns], dim=-1).reshape(24, 2) / 6
    assert {tuple(row) for row in (memory.places[0] / 3).mul(12).round().tolist()} == {
        tuple(row) for row in places.mul(12).round().tolist()
    }
    query = [torch.randn(2, 4, 8, 12)]
    vectors = memory.describe(query)[0].flatten(2).mT
    far = torch.cdist(places, memory.places[0] / 3).square()
    expected = (1 - vectors @ memory.levels[0].T + 9 * far / 2).amin(dim=2).reshape(2, 1, 4, 6)
    torch.testing.assert_close(memory.level_distances(query)[0], expected)


def test_what_is_normal_elsewhere_is_far() -> None:
    """Two halves that change places: the same features, but not where they belong."""
    level = torch.randn(1, 4, 1, 1).expand(1, 4, 8, 8).clone()
    level[..., 4:] *= -1
    swapped = level.flip(-1)
    for weight, far in ((0.0, False), (2.0, True)):
        memory = MemoryBank(DIMS[:1], 16)
        memory.fill([[level]], [[level]], 1, position_weight=weight)
        assert (memory.scaled_distances([swapped]).amax() > 1) == far


def test_half_precision_tells_small_distances_apart() -> None:
    """In bfloat16 the steps below one are 0.004: distances must not be taken from a rounded similarity."""
    memory = MemoryBank([128], 2000)
    normal = torch.rand(1, 128, 32, 32)
    memory.fill([[normal]], [[normal]], 1)
    query = [normal + 0.5 * torch.randn_like(normal)]
    exact = memory.level_distances(query)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = memory.level_distances(query)[0]
    assert 0.02 < exact.mean() < 0.1
    assert (rounded - exact).abs().mean() < 5e-4


def test_what_is_normal_is_near() -> None:
    """Features that the memory was filled with are at no distance, others are, opposite ones twice as far as any."""
    memory, normal = filled(size=1000)
    assert max(level.abs().max() for level in memory.level_distances(normal)) < 1e-5
    assert min(level.min() for level in memory.level_distances(features(2))) > 1e-3
    alike = torch.ones(1, 4, 8, 8), torch.ones(1, 6, 4, 4)
    memory.fill([alike], [alike], 1)
    for level in memory.level_distances([-level for level in alike]):
        torch.testing.assert_close(level, torch.full_like(level, 2.0))


def test_scale_makes_the_quantile_of_varied_images_one_half() -> None:
    """Of the pixels of images like normal ones, 0.5 % are above one half; values stay in [0, 1]."""
    memory = MemoryBank(DIMS, 8)
    varied = [features(40), features(40)]
    memory.fill([features(4)], varied, 4)
    assert memory.is_filled
    mapped = torch.cat([memory(part) for part in varied])
    torch.testing.assert_close(mapped.quantile(0.995), torch.tensor(0.5))
    memory.scale *= 100
    assert memory(varied[0]).max() == 1


def test_images_without_any_variation_give_a_finite_scale() -> None:
    """A flat surface, all of it the same: no division by zero."""
    flat = [torch.ones(2, 4, 8, 8), torch.ones(2, 6, 4, 4)]
    memory = MemoryBank(DIMS, 8)
    memory.fill([flat], [flat], 2)
    assert (memory.scale <= 5 / MIN_DISTANCE).all()
    assert memory(flat).max() < 1e-2


def test_fewer_features_than_places() -> None:
    """One tiny image: its features are held repeatedly."""
    memory, normal = MemoryBank(DIMS, 100), features(1, 4)
    memory.fill([normal], [normal], 1)
    for values, described in zip(memory.levels, memory.describe(normal), strict=True):
        own = described.permute(0, 2, 3, 1).flatten(0, 2)
        assert (torch.cdist(values, own).amin(dim=1) < 1e-3).all()
        assert (torch.cdist(own, values).amin(dim=1) < 1e-3).all()


def test_coreset_keeps_what_is_rare() -> None:
    """One place that looks unlike all others is normal too."""
    level = torch.tensor([1.0, 0, 0, 0]).reshape(1, 4, 1, 1) + 0.01 * torch.rand(5, 4, 12, 12)
    level[0, :, :3, :3] = torch.tensor([0, 0, 0, 1.0])[:, None, None]
    memory = MemoryBank(DIMS[:1], 4)
    memory.fill([[level]], [[level]], 5)
    assert (memory.levels[0] @ torch.tensor([0, 0, 0, 1.0])).max() > 0.99


def test_coreset_is_that_of_anomalib() -> None:
    """Another way to the same choice."""
    vectors = torch.randn(500, 1, 8, dtype=torch.float64)
    chosen = []
    for kind in (KCenterGreedy, EuclideanCoreset):
        torch.manual_seed(3)
        chosen.append(kind(vectors, 0.1).select_coreset_idxs())
    assert len(set(chosen[0])) == 50
    assert chosen[0] == chosen[1]


def test_coreset_needs_no_new_memory() -> None:
    """Distances are updated in place: a new tensor for each vector once filled 23 GB."""
    sampler = EuclideanCoreset(functional.normalize(torch.randn(50, 1, 8), dim=2), 0.5)
    sampler.features = sampler.embedding[:, 0]
    sampler.update_distances(None)
    assert sampler.min_distances is None
    sampler.update_distances(3)
    places = sampler.min_distances.data_ptr(), sampler._distances.data_ptr()
    first = sampler.min_distances.clone()
    torch.testing.assert_close(first[:, 0], 1 - sampler.features @ sampler.features[3])
    sampler.update_distances(torch.tensor(7))
    assert (sampler.min_distances.data_ptr(), sampler._distances.data_ptr()) == places
    expected = torch.minimum(first[:, 0], 1 - sampler.features @ sampler.features[7])
    torch.testing.assert_close(sampler.min_distances[:, 0], expected)


def test_every_image_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a limited number of features is considered, the same from each batch."""
    monkeypatch.setattr(memory_module, "MAX_CANDIDATES", 40)
    seen: list[torch.Tensor] = []

    class Sampler:
        def __init__(self, embedding: torch.Tensor, sampling_ratio: float) -> None:
            seen.append(embedding[:, 0])
            self.count = int(len(embedding) * sampling_ratio)

        def sample_coreset(self) -> torch.Tensor:
            return seen[-1][: self.count, None]

    monkeypatch.setattr(memory_module, "EuclideanCoreset", Sampler)
    batches = [[torch.full((2, 4, 16, 16), float(index))] for index in (-1, 1)]
    memory = MemoryBank(DIMS[:1], 3)
    memory.fill(batches, batches, 4)
    assert seen[0].shape == (40, 6)
    assert (seen[0][:, 0] > 0).sum() == 20
    assert memory.levels[0].shape == (3, 4)


def test_memory_is_saved_with_the_weights() -> None:
    """Another memory of the same size takes it over."""
    memory, normal = filled()
    other = MemoryBank(DIMS, 16)
    other.load_state_dict(memory.state_dict())
    assert other.is_filled
    assert torch.equal(other(normal), memory(normal))
    assert not list(memory.parameters())
