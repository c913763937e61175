# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the flips, turns and small changes of training images, and of which flips and turns a category allows."""

import pytest
import torch
from torch.nn import functional

from anomalib_ddpm_st.detector import augmentation
from anomalib_ddpm_st.detector.augmentation import (
    MAX_DISTANCE,
    SYMMETRIES,
    allowed_symmetries,
    mix,
    show_surface,
    turn,
    vary,
)

IDENTITY = SYMMETRIES[0]


def pixels(batch: torch.Tensor) -> list[torch.Tensor]:
    """Features that are fast to have: the pixels, at two resolutions."""
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
# Turning


def test_symmetries_of_the_square() -> None:
    """Eight elements, the identity first, the flips before what transposes; each gives another image."""
    assert SYMMETRIES[0] == (0, 0, 0)
    assert all(not element[0] for element in SYMMETRIES[:4])
    image = torch.rand(1, 3, 5, 5)
    turned = turn(image.expand(8, -1, -1, -1), rows(*SYMMETRIES))
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8
    poses = [torch.rot90(pose, times, (-2, -1)) for pose in (image[0], image[0].flip(-1)) for times in range(4)]
    assert {tuple(one.flatten().tolist()) for one in turned} == {tuple(one.flatten().tolist()) for one in poses}


def test_turn_by_its_own_element() -> None:
    """First transposed, then rows are flipped, then columns; each image by its own element."""
    images = torch.rand(8, 2, 6, 6)
    turned = turn(images, rows(*SYMMETRIES))
    for image, result, (transpose, flip_rows, flip_columns) in zip(images, turned, SYMMETRIES, strict=True):
        expected = image.transpose(-1, -2) if transpose else image
        expected = expected.flip(-2) if flip_rows else expected
        expected = expected.flip(-1) if flip_columns else expected
        assert torch.equal(result, expected)
    assert torch.equal(turn(images, rows(*[IDENTITY] * 8)), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_turn_images_that_are_not_square(dtype: torch.dtype) -> None:
    """They are flipped; what would transpose them is left out."""
    images = (torch.rand(4, 1, 3, 5) * 2).to(dtype)
    turned = turn(images, rows((0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1)))
    assert turned.dtype == dtype
    expected = [images[0].flip(-2), images[1].flip(-1), images[2], images[3].flip(-2).flip(-1)]
    assert torch.equal(turned, torch.stack(expected))


def test_image_and_mask_turn_alike() -> None:
    """What marks a pixel before marks the same pixel after."""
    images = torch.rand(8, 3, 7, 7)
    masks = (images[:, :1] > 0.7).float()
    elements = rows(*SYMMETRIES)
    assert torch.equal(turn(masks, elements), (turn(images, elements)[:, :1] > 0.7).float())


# ---------------------------------------------------------------------------------------------------------------------
# What is allowed


def test_parts_in_every_pose() -> None:
    """Where orientations vary, turned images look normal."""
    elements = rows(*SYMMETRIES)[torch.arange(40) % 8]
    images = turn(part().expand(40, -1, -1, -1), elements)
    assert allowed_elements(as_bytes(images)) == set(SYMMETRIES)


def test_parts_in_one_pose() -> None:
    """Where every part is mounted one way, a turned one is a defect."""
    images = as_bytes(part().expand(20, -1, -1, -1))
    allowed, distances = allowed_symmetries(images, pixels)
    assert allowed.tolist() == [[False, False, False]]
    assert distances[0] == 0
    assert min(distances[1:]) > 2


@pytest.mark.parametrize("element", SYMMETRIES[1:])
def test_parts_in_two_poses(element: tuple[int, int, int]) -> None:
    """Parts that lie one way or one other allow what leads from the one to the other, and nothing else."""
    elements = torch.where((torch.arange(30) % 2 == 0)[:, None], rows(IDENTITY), rows(element))
    spot = torch.full((3, 32, 32), 0.1)
    spot[:, :8, 8:16] = 0.9  # no two poses overlap: all are equally far from each other
    images = as_bytes(turn(spot.expand(30, -1, -1, -1), elements))
    quarter = {(1, 0, 1), (1, 1, 0)}
    if element in quarter:
        # Back by the opposite quarter turn: each of the two fits one half of the parts alone.
        assert allowed_elements(images) - quarter == {IDENTITY}
    else:
        assert allowed_elements(images) == {IDENTITY, element}


def test_variants_of_a_part() -> None:
    """Two variants of a part, always in one pose, do not make turned ones look near."""
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
    """A surface that is alike in all directions may be turned."""
    images = functional.interpolate(torch.rand(30, 3, 8, 8), (32, 32), mode="bilinear")
    assert allowed_elements(as_bytes(images)) == set(SYMMETRIES)


def test_images_that_are_not_square() -> None:
    """Nothing transposes them: the distance is infinite; flips are judged as ever."""
    elements = rows(*SYMMETRIES[:4])[torch.arange(32) % 4]
    images = as_bytes(turn(part((24, 40)).expand(32, -1, -1, -1), elements))
    allowed, distances = allowed_symmetries(images, pixels)
    assert [tuple(row) for row in allowed.int().tolist()] == list(SYMMETRIES[:4])
    assert all(distance < float("inf") for distance in distances[:4])
    assert distances[4:] == [float("inf")] * 4


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images(count: int) -> None:
    """Of two images nothing can be learned: the identity alone, and the features are not asked for."""
    images = as_bytes(torch.full((count, 3, 16, 16), 0.5))
    allowed, distances = allowed_symmetries(images, lambda _: pytest.fail("the features were asked for"))
    assert allowed.tolist() == [[False, False, False]]
    assert distances == [0.0] + [float("inf")] * 7


def test_distances_by_formula() -> None:
    """Median distance to the nearest other image, 0 for the images as they are, 1 for two alike normal images."""
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
        turned = turn(images, rows(*[element] * 7))
        nearest = torch.tensor([min(row) for row in to_others(turned)]).median()
        assert distance == pytest.approx(float((nearest - usual) / (typical - usual)), rel=1e-2, abs=1e-2)


def test_max_distance_decides() -> None:
    """An element is allowed up to the largest distance, and no further."""
    elements = rows(*SYMMETRIES)[torch.arange(24) % 8]
    images = as_bytes(turn(part().expand(24, -1, -1, -1), elements), noise=0.2)
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


def test_vary_nothing() -> None:
    """Strength 0 gives back what was given."""
    parts = (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16))
    assert all(after is before for after, before in zip(vary(*parts, strength=0), parts, strict=True))


def test_vary_changes_all_three_alike() -> None:
    """What was equal stays equal, the defect stays under its mask, values stay in range, some images are not moved."""
    images = functional.interpolate(torch.rand(64, 3, 4, 4), (32, 32), mode="bilinear")
    masks = torch.zeros(64, 1, 32, 32)
    masks[:, :, 12:20, 12:20] = 1
    augmented = torch.where(masks.bool(), 1 - images, images)
    kept = images.clone()
    clean, defective, marked = vary(images, augmented, masks)
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


def test_vary_keeps_grey_images_grey() -> None:
    """All channels change alike: a grey camera sees no colours."""
    images = torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1)
    clean, _, _ = vary(images, images.clone(), torch.zeros(8, 1, 16, 16))
    torch.testing.assert_close(clean[:, :1].expand_as(clean), clean)


def test_vary_in_mixed_precision() -> None:
    """Images keep their precision."""
    images = torch.rand(8, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        parts = vary(images, images.clone(), torch.zeros(8, 1, 16, 16))
    assert all(part.dtype == torch.float32 for part in parts)


# ---------------------------------------------------------------------------------------------------------------------
# Blends


def test_mix_blends_half_of_the_images_with_the_one_before() -> None:
    """Half stay as they are; the others get up to the share of the image before them, each its own."""
    images = torch.arange(400.0).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    weights = (images - mix(images, 0.3))[1:]
    assert (weights == weights[:, :1, :1, :1]).all()
    weights = weights[:, 0, 0, 0]
    assert 140 < (weights == 0).sum() < 260
    blended = weights[weights > 0]
    assert 0.12 < blended.mean() < 0.18
    assert 0.28 < blended.max() <= 0.3001
    assert blended.min() >= 0


def test_mix_leaves_its_input_and_type() -> None:
    """Images of the batch are not changed in place, those of half precision stay so."""
    images = torch.rand(8, 3, 4, 4, dtype=torch.bfloat16)
    before = images.clone()
    assert mix(images, 0.5).dtype == torch.bfloat16
    assert images.equal(before)
    assert mix(images[:1], 0.5).equal(images[:1])


def test_surfaces_and_objects_are_told_apart() -> None:
    """Grain all over is a surface; a bright part on a plain background is none, and the majority decides."""
    surfaces = as_bytes(torch.full((20, 3, 64, 64), 0.5), noise=0.1)
    objects = as_bytes(torch.stack([part((64, 64))] * 20), noise=0.01)
    assert show_surface(surfaces)
    assert not show_surface(objects)
    assert show_surface(torch.cat([surfaces, objects[:19]]))
    assert not show_surface(torch.cat([surfaces[:19], objects]))
