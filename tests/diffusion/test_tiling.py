# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the tiles of large images."""

from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DModel

from anomalib_ddpm_st.diffusion import DefectPipeline, build_unet, tiling
from anomalib_ddpm_st.diffusion.tiling import denoise_tiles, tile_starts
from anomalib_ddpm_st.diffusion.unet import denoise, position_encoding


@pytest.mark.parametrize("length", [1, 7, 8, 9, 14, 15, 64, 100])
def test_tiles_cover_and_overlap(length: int) -> None:
    """Tiles lie within the length, leave nothing out, and share a quarter with each neighbour."""
    starts = tile_starts(length, 8)
    covered = {place for start in starts for place in range(start, min(start + 8, length))}
    assert covered == set(range(length))
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 8)
    assert all(start + 8 - following >= 2 for start, following in pairwise(starts))
    assert len(starts) <= 1 + max(0, length - 8) / 5 + 1


def test_one_tile_is_the_whole(pipeline: DefectPipeline) -> None:
    """An image that fits into one tile is predicted whole."""
    sample = torch.randn(2, 48, 8, 12)
    with torch.no_grad():
        whole = denoise(pipeline.unet, sample, torch.tensor(400))
        tiled = denoise_tiles(pipeline.unet, sample, torch.tensor(400), 12)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_tiles_know_their_place_and_fade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile is shown with its own place, and a prediction that only depends on it comes out without seams."""
    sample, whole = torch.randn(2, 48, 20, 9), position_encoding(20, 9)
    shapes: list[tuple[int, ...]] = []

    def network(_: UNet2DModel, part: torch.Tensor, __: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        shapes.append((part.shape[-2], part.shape[-1]))
        return part + position[:, :1]

    monkeypatch.setattr(tiling, "denoise", network)
    result = denoise_tiles(build_unet((32, 32), block_out_channels=(8, 8)), sample, torch.tensor(5), 8)
    assert set(shapes) == {(8, 8)}
    assert len(shapes) == len(tile_starts(20, 8)) * len(tile_starts(9, 8))
    torch.testing.assert_close(result, sample + whole[:, :1])


def test_tiles_fade_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no step between two tiles that disagree."""
    answers = iter((0.0, 1.0))
    monkeypatch.setattr(tiling, "denoise", lambda _, part, *__: torch.full_like(part, next(answers)))
    unet = build_unet((32, 32), block_out_channels=(8, 8))
    result = denoise_tiles(unet, torch.zeros(1, 1, 16, 28), torch.tensor(5), 16)[0, 0, 5]
    assert torch.equal(result[:12], torch.zeros(12))
    assert torch.equal(result[16:], torch.ones(12))
    assert (result[12:16].diff() > 0).all()
    assert result.diff().max() < 0.5
