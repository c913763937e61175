# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of which flips and quarter turns a category allows, and of small changes of training images."""

import pytest
import torch
from torch.nn import functional

from anomalib_ddpm_st.core.geometry import flip_rotate
from anomalib_ddpm_st.detector import augmentation
from anomalib_ddpm_st.detector.augmentation import (
    MAX_DISTANCE,
    SYMMETRIES,
    allowed_symmetries,
    change_light,
    jitter_pair,
)

IDENTITY = SYMMETRIES[0]


def pixels(batch: torch.Tensor) -> list[torch.Tensor]:
    """Features that are fast to compute: the pixels, at two resolutions."""
    return [functional.avg_pool2d(batch, 2), functional.avg_pool2d(batch, 4)]


def rows(*elements: tuple[int, int, int]) -> torch.Tensor:
    """Elements as a boolean tensor."""
    return torch.tensor(elements, dtype=torch.bool)


def as_bytes(images: torch.Tensor, noise: float = 0.03) -> torch.Tensor:
    """Images in [0, 1] with a little noise, as ``uint8``."""
    return ((images + noise * torch.randn_like(images)).clamp(0, 1) * 255).round().to(torch.uint8)


def part(size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    """A part that looks different after every flip and turn: an L of two bars of other lengths and brightness."""
    height, width = size
    image = torch.full((3, *size), 0.1)
    image[:, height // 8 : height * 7 // 8, width // 8 : width // 4] = 0.9
    image[:, height * 3 // 4 : height * 7 // 8, width // 8 : width * 5 // 8] = 0.6
    return image


def allowed_elements(images: torch.Tensor, **arguments: float) -> set[tuple[int, ...]]:
    """Elements that are allowed, as a set."""
    allowed, _ = allowed_symmetries(images, pixels, **arguments)
    assert allowed.dtype == torch.bool
    assert tuple(allowed[0].int().tolist()) == IDENTITY
    return {tuple(row) for row in allowed.int().tolist()}


# ---------------------------------------------------------------------------------------------------------------------
# Symmetries


def test_symmetries_of_the_square() -> None:
    """Eight elements: the identity first, then the flips, then those that transpose; each gives another image."""
    assert SYMMETRIES[0] == (0, 0, 0)
    assert all(not element[0] for element in SYMMETRIES[:4])
    image = torch.rand(1, 3, 5, 5)
    turned = flip_rotate(image.expand(8, -1, -1, -1), rows(*SYMMETRIES))
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8
    poses = [torch.rot90(pose, times, (-2, -1)) for pose in (image[0], image[0].flip(-1)) for times in range(4)]
    assert {tuple(one.flatten().tolist()) for one in turned} == {tuple(one.flatten().tolist()) for one in poses}


# ---------------------------------------------------------------------------------------------------------------------
# What is allowed


def test_parts_in_every_pose() -> None:
    """If orientations vary, rotated images look normal."""
    elements = rows(*SYMMETRIES)[torch.arange(40) % 8]
    images = flip_rotate(part().expand(40, -1, -1, -1), elements)
    assert allowed_elements(as_bytes(images)) == set(SYMMETRIES)


def test_parts_in_one_pose() -> None:
    """If every part is mounted the same way, a rotated one is a defect."""
    images = as_bytes(part().expand(20, -1, -1, -1))
    allowed, distances = allowed_symmetries(images, pixels)
    assert allowed.tolist() == [[False, False, False]]
    assert distances[0] == 0
    assert min(distances[1:]) > 2


@pytest.mark.parametrize("element", SYMMETRIES[1:])
def test_parts_in_two_poses(element: tuple[int, int, int]) -> None:
    """Parts in two poses allow the element that leads from one pose to the other, and nothing else."""
    elements = torch.where((torch.arange(30) % 2 == 0)[:, None], rows(IDENTITY), rows(element))
    spot = torch.full((3, 32, 32), 0.1)
    spot[:, :8, 8:16] = 0.9  # no two poses overlap: all are equally far from each other
    images = as_bytes(flip_rotate(spot.expand(30, -1, -1, -1), elements))
    quarter = {(1, 0, 1), (1, 1, 0)}
    if element in quarter:
        # Back by the opposite quarter turn: each of the two fits one half of the parts alone.
        assert allowed_elements(images) - quarter == {IDENTITY}
    else:
        assert allowed_elements(images) == {IDENTITY, element}


def test_variants_of_a_part() -> None:
    """Two variants of a part, always in one pose, do not make rotated ones look normal."""
    other = part().clone()
    other[:, :, 20:32] = 0.9
    variants = torch.where((torch.arange(30) % 2 == 0)[:, None, None, None], part(), other)
    assert allowed_elements(as_bytes(variants)) == {IDENTITY}


def test_parts_that_are_symmetric() -> None:
    """A part that is its own mirror image may be mirrored, although every part lies the same way."""
    image = torch.full((3, 32, 32), 0.1)
    image[:, 4:12, 6:26] = 0.9
    image[:, 12:28, 14:18] = 0.6
    images = as_bytes(image * (1 + 0.1 * torch.rand(20, 1, 1, 1)))
    assert allowed_elements(images) == {IDENTITY, (0, 0, 1)}


def test_surfaces() -> None:
    """A surface that looks the same in all directions may be rotated."""
    images = functional.interpolate(torch.rand(30, 3, 8, 8), (32, 32), mode="bilinear")
    assert allowed_elements(as_bytes(images)) == set(SYMMETRIES)


def test_images_that_are_not_square() -> None:
    """They are never transposed: the distance is infinite; flips are judged as usual."""
    elements = rows(*SYMMETRIES[:4])[torch.arange(32) % 4]
    images = as_bytes(flip_rotate(part((24, 40)).expand(32, -1, -1, -1), elements))
    allowed, distances = allowed_symmetries(images, pixels)
    assert [tuple(row) for row in allowed.int().tolist()] == list(SYMMETRIES[:4])
    assert all(distance < float("inf") for distance in distances[:4])
    assert distances[4:] == [float("inf")] * 4


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images(count: int) -> None:
    """Two images say nothing: only the identity is allowed, and no features are computed."""
    images = as_bytes(torch.full((count, 3, 16, 16), 0.5))
    allowed, distances = allowed_symmetries(images, lambda _: pytest.fail("features were computed"))
    assert allowed.tolist() == [[False, False, False]]
    assert distances == [0.0] + [float("inf")] * 7


def test_distances_by_formula() -> None:
    """Median distance to the nearest other image, 0 for untransformed images, 1 for two typical normal images."""
    images = as_bytes(part() * torch.rand(7, 1, 1, 1))
    _, distances = allowed_symmetries(images, pixels)

    def embed(batch: torch.Tensor) -> torch.Tensor:
        levels = [functional.adaptive_avg_pool2d(level, 4).flatten(1) for level in pixels(batch.float() / 255)]
        return torch.cat([level / level.norm(dim=1, keepdim=True) for level in levels], dim=1)

    def to_others(queries: torch.Tensor) -> list[list[float]]:
        known = embed(images)
        return [
            [float((query - other).norm()) for index, other in enumerate(known) if index != own]
            for own, query in enumerate(embed(queries))
        ]

    usual = torch.tensor([min(row) for row in to_others(images)]).median()
    typical = torch.tensor(to_others(images)).quantile(0.25)
    for element, distance in zip(SYMMETRIES, distances, strict=True):
        turned = flip_rotate(images, rows(*[element] * 7))
        nearest = torch.tensor([min(row) for row in to_others(turned)]).median()
        assert distance == pytest.approx(float((nearest - usual) / (typical - usual)), rel=1e-2, abs=1e-2)


def test_max_distance_decides() -> None:
    """An element is allowed up to the largest distance, and no further."""
    elements = rows(*SYMMETRIES)[torch.arange(24) % 8]
    images = as_bytes(flip_rotate(part().expand(24, -1, -1, -1), elements), noise=0.2)
    _, distances = allowed_symmetries(images, pixels)
    assert pytest.approx(0.8) == MAX_DISTANCE
    for limit in (-1.0, 0.0, sorted(distances)[4], 100.0):
        expected = {element for element, value in zip(SYMMETRIES, distances, strict=True) if value <= limit}
        allowed, same = allowed_symmetries(images, pixels, max_distance=limit)
        assert same == pytest.approx(distances)
        assert {tuple(row) for row in allowed.int().tolist()} == expected


def test_features_see_batches_of_images_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images are compared by a few, spread over the whole set, in small batches of values in [0, 1]."""
    monkeypatch.setattr(augmentation, "MAX_REFERENCES", 9)
    monkeypatch.setattr(augmentation, "MAX_QUERIES", 3)
    monkeypatch.setattr(augmentation, "BATCH_SIZE", 4)
    # Each image is told by the brightness of its first pixel.
    images = torch.zeros(33, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 0, 0] = (torch.arange(33) * 7)[:, None].to(torch.uint8)
    images[:, :, 8, 4] = 255
    seen: list[torch.Tensor] = []

    def features(batch: torch.Tensor) -> list[torch.Tensor]:
        assert not torch.is_grad_enabled()
        assert batch.dtype == torch.float32
        assert len(batch) <= 4
        seen.append(batch)
        return pixels(batch)

    allowed_symmetries(images, features)
    shown = torch.cat(seen)
    assert shown.max() == 1
    told = (shown * 255).round().flatten(1).sort(dim=1).values[:, -4]
    assert (told[:9] / 7).int().tolist() == list(range(0, 33, 4))
    assert (told[9:] / 7).int().tolist() == [0, 16, 32] * 8


# ---------------------------------------------------------------------------------------------------------------------
# Small changes


def test_jitter_changes_all_three_alike() -> None:
    """Equal pixels stay equal, defects stay under their masks, values stay in range, half of the images do not move."""
    images = functional.interpolate(torch.rand(64, 3, 4, 4), (32, 32), mode="bilinear")
    masks = torch.zeros(64, 1, 32, 32)
    masks[:, :, 12:20, 12:20] = 1
    augmented = torch.where(masks.bool(), 1 - images, images)
    kept = images.clone()
    clean, defective, marked = jitter_pair(images, augmented, masks)
    assert torch.equal(images, kept)
    assert set(marked.unique().tolist()) == {0.0, 1.0}
    around = functional.max_pool2d(marked, 3, stride=1, padding=1).expand_as(clean).bool()
    assert torch.equal(clean[~around], defective[~around])
    for part in (clean, defective):
        assert part.min() >= 0
        assert part.max() <= 1
    stays = (marked == masks).flatten(1).all(dim=1)
    assert 0.25 < stays.float().mean() < 0.75
    change = (clean - images).abs().flatten(1).amax(dim=1)
    assert (change > 0).all()
    assert change[stays].max() <= 0.15 + 0.05 + 1e-5
    for part in (clean, defective):
        assert part[stays].shape[0] > 0


def test_jitter_keeps_grey_images_grey() -> None:
    """All channels change alike: a grey-scale camera sees no colours."""
    images = torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1)
    clean, _, _ = jitter_pair(images, images.clone(), torch.zeros(8, 1, 16, 16))
    torch.testing.assert_close(clean[:, :1].expand_as(clean), clean)


def test_jitter_in_mixed_precision() -> None:
    """Images keep their precision."""
    images = torch.rand(8, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        parts = jitter_pair(images, images.clone(), torch.zeros(8, 1, 16, 16))
    assert all(part.dtype == torch.float32 for part in parts)


def test_jitter_leaves_padding_alone() -> None:
    """Padding is the same in every image to be tested, so it is neither moved nor made brighter, nor moved inwards."""
    images = torch.zeros(8, 3, 64, 64)
    images[..., 8:-8, 12:-12] = 0.5 + 0.3 * torch.rand(8, 3, 48, 40)
    augmented = images.clone()
    augmented[..., 8:20, 12:20] = 0.9
    masks = torch.zeros(8, 1, 64, 64)
    masks[..., 8:20, 12:20] = 1
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[8:-8, 12:-12] = True
    changed, changed_augmented, changed_masks = jitter_pair(images, augmented, masks)
    for result in (changed, changed_augmented):
        assert not result[..., ~inside].any()
        assert result[..., inside].min() > 0.25
    assert not changed_masks[..., ~inside].any()
    assert (changed != images).flatten(1).any(dim=1).all()
    assert (changed_masks != masks).any()


def test_light_leaves_padding_alone() -> None:
    """Padding is added to images and not lit."""
    images = torch.full((8, 3, 64, 64), 0.3)
    images[..., 8:-8, 12:-12] = 0.5 + 0.3 * torch.rand(8, 3, 48, 40)
    changed = change_light(images)
    is_padding = images == images[..., :1, :1]
    assert torch.equal(changed[is_padding], images[is_padding])
    assert (changed != images).flatten(1).any(dim=1).all()


def test_change_of_light(generator: torch.Generator) -> None:
    """Every image in a light of its own, without a change of what it shows."""
    images = torch.rand(6, 3, 32, 40) * 0.5 + 0.2
    changed = change_light(images, generator)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    gains = (changed / images).mean(dim=(1, 2, 3))
    assert gains.unique().numel() == 6
    for image, other in zip(images, changed, strict=True):
        pair = torch.stack([image.flatten(), other.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.7
