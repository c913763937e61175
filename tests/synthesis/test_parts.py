# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of parts that are displaced, turned, doubled or missing."""

from dataclasses import replace

import pytest
import torch

from anomalib_ddpm_st.synthesis.parts import P_DISPLACED, P_TURNED, PartParameters, change_parts, random_parts

SIZE = (48, 64)
DISPLACED, TURNED, MISSING = P_DISPLACED / 2, P_DISPLACED + P_TURNED / 2, 0.99


def fixed(kind: float, *, is_round: bool = False, count: int = 1) -> PartParameters:
    """A part of 16 x 20 pixels around the place of row 24 and column 32."""
    parameters = random_parts(count, 1.0)
    scores = torch.full_like(parameters.scores, 0.1)
    scores[..., 32, 32] = 1
    return replace(
        parameters,
        scores=scores,
        half_sides=torch.tensor([[8 / 48, 10 / 48]]).expand(count, -1),
        is_round=torch.full_like(parameters.is_round, is_round),
        kind=torch.full_like(parameters.kind, kind),
        shifts=torch.tensor([[0.5, 0.25]]).expand(count, -1),
    )


def everywhere(count: int = 1) -> torch.Tensor:
    """The object fills the image."""
    return torch.ones(count, 1, *SIZE, dtype=torch.bool)


def test_displaced_part_shows_another_place() -> None:
    """The part comes from half of the height and a quarter of the width away; all else stays."""
    images = torch.rand(1, 3, *SIZE)
    changed, masks = change_parts(images, everywhere(), fixed(DISPLACED))
    rows, columns = torch.nonzero(masks[0, 0], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 32, 22, 42)
    expected = images.roll((24, 16), dims=(2, 3))
    torch.testing.assert_close(changed, torch.where(masks, expected, images))


def test_turned_part_stays_where_it_is() -> None:
    """Half a turn about its own centre."""
    images = torch.rand(1, 3, *SIZE)
    changed, masks = change_parts(images, everywhere(), fixed(TURNED))
    part = images[..., 16:33, 22:43]
    torch.testing.assert_close(changed[..., 16:33, 22:43], part.flip(2, 3))
    torch.testing.assert_close(changed * ~masks, images * ~masks)


def test_missing_part_shows_what_is_around() -> None:
    """A bright part on a dark object vanishes."""
    images = torch.full((1, 3, *SIZE), 0.2)
    images[..., 18:31, 24:41] = 0.9
    changed, masks = change_parts(images, everywhere(), fixed(MISSING))
    assert masks.sum() == 17 * 21
    torch.testing.assert_close(changed, torch.full_like(images, 0.2))


def test_largest_hole_is_filled() -> None:
    """Colours reach the middle of a hole as large as holes can be, whatever lies at the border."""
    images = torch.full((1, 3, *SIZE), 0.3)
    images[..., 2:-2, 4:-4] = 1.0
    parameters = replace(fixed(MISSING), half_sides=torch.tensor([[0.45, 0.58]]))
    changed, masks = change_parts(images, everywhere(), parameters)
    assert masks[0, 0, 24, 32]
    assert changed.isfinite().all()
    assert 0.25 < changed[0, 0, 24, 32] <= 1


def test_round_part() -> None:
    """An ellipse covers less than the rectangle around it."""
    images = torch.rand(1, 3, *SIZE)
    masks = change_parts(images, everywhere(), fixed(DISPLACED, is_round=True))[1]
    assert masks.sum() == pytest.approx(torch.pi * 8 * 10, rel=0.05)


@pytest.mark.parametrize("kind", [DISPLACED, TURNED, MISSING])
def test_part_that_hardly_differs_is_no_defect(kind: float) -> None:
    """On a plain object nothing changes."""
    images = torch.full((2, 3, *SIZE), 0.5)
    changed, masks = change_parts(images, everywhere(2), fixed(kind, count=2))
    assert not masks.any()
    assert torch.equal(changed, images)


def test_centre_lies_on_the_object() -> None:
    """Wherever the scores are highest."""
    allowed = torch.zeros(20, 1, *SIZE, dtype=torch.bool)
    allowed[..., 30:36, 8:16] = True
    parameters = replace(random_parts(20, 1.0), half_sides=torch.full((20, 2), 0.05))
    masks = change_parts(torch.rand(20, 3, *SIZE), allowed, parameters)[1]
    assert masks.flatten(1).any(dim=1).all()
    assert (masks & allowed).flatten(1).any(dim=1).all()
    rows, columns = torch.nonzero(masks, as_tuple=True)[2:]
    assert rows.min() >= 26
    assert rows.max() <= 39
    assert columns.min() >= 4
    assert columns.max() <= 19


def test_every_image_has_its_own_part() -> None:
    """An image's result does not depend on the others of the batch."""
    images, parameters = torch.rand(6, 3, *SIZE), random_parts(6, 1.0)
    changed, masks = change_parts(images, everywhere(6), parameters)
    for index in range(6):
        own = PartParameters(*(value[index : index + 1] for value in vars(parameters).values()))
        alone, mask = change_parts(images[index : index + 1], everywhere(), own)
        torch.testing.assert_close(alone[0], changed[index])
        assert torch.equal(mask[0], masks[index])


def test_probability() -> None:
    """Of images that get a part, and of its kinds."""
    parameters = random_parts(4000, 0.3, torch.Generator().manual_seed(0))
    assert parameters.used.float().mean() == pytest.approx(0.3, abs=0.03)
    assert parameters.half_sides.min() >= 0.06
    assert parameters.half_sides.max() <= 0.35
    assert (parameters.half_sides < 0.145).float().mean() == pytest.approx(0.5, abs=0.03)
