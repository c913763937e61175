# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the health report."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from kornia.filters import gaussian_blur2d
from scipy import linalg

from anomalib_ddpm_st.synthesis.health import FEW_IMAGES, describe, frechet_distance, health_report


def features(images: torch.Tensor) -> list[torch.Tensor]:
    """Edges and brightness, instead of a teacher's features."""
    right = images.diff(dim=-1).abs()[..., :-1, :]
    down = images.diff(dim=-2).abs()[..., :-1]
    return [torch.cat([right, down], dim=1), torch.cat([images, images.square()], dim=1)]


class Sampler:
    """Stand-in for a DDPM, which blurs and darkens its images."""

    def __init__(self, sigma: float = 0.0, offset: float = 0.0) -> None:
        self.sigma, self.offset = sigma, offset
        self.starts: list[int | None] = []

    def __call__(
        self,
        images: torch.Tensor,
        start_timestep: int | None,
        generator: torch.Generator,
        **settings: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor]:
        """Sample a batch."""
        assert not settings.get("delta")
        self.starts.append(start_timestep)
        assert generator is not None
        if self.sigma:
            images = gaussian_blur2d(images, 25, (self.sigma, self.sigma))
        return ((images + self.offset).clamp(0, 1),)


def make_images(count: int) -> torch.Tensor:
    """Fine grain."""
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


def test_frechet_distance_equals_scipy() -> None:
    """The formula with a matrix square root; a set has distance 0 from itself, and a shifted set the squared shift."""
    first, second = torch.randn(200, 6), torch.randn(150, 6) @ torch.randn(6, 6) + 1
    one, two = np.cov(first.double().numpy().T), np.cov(second.double().numpy().T)
    mean = np.square(first.double().numpy().mean(0) - second.double().numpy().mean(0)).sum()
    expected = mean + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, first + 2) == pytest.approx(24, rel=1e-4)


def test_frechet_distance_of_few_vectors_is_finite() -> None:
    """Covariance matrices may be singular."""
    assert 0 <= frechet_distance(torch.randn(3, 10), torch.randn(3, 10)) < 1000


def test_describe() -> None:
    """Positions of all images, by level, whatever the batches."""
    images = torch.rand(11, 3, 32, 32)
    described = describe(images, lambda batch: [batch, batch[:, :1]])
    assert [tuple(level.shape) for level in described] == [(11 * 64, 3), (11 * 64, 1)]
    expected = images.unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean(dim=(3, 5)).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(described[0], expected)


@pytest.mark.parametrize(
    ("sampler", "verdict"),
    [(Sampler(), "good"), (Sampler(0.5), "usable"), (Sampler(4.0), "poor"), (Sampler(0.0, -0.9), "poor")],
)
def test_verdict(sampler: Any, verdict: str) -> None:  # noqa: ANN401
    """The verdict follows from the blur with the same distance; the report is plain data."""
    report = health_report(sampler, make_images(24), features)
    assert report["verdict"] == verdict
    assert json.loads(json.dumps(report)) == report
    assert report["images"] == 24
    assert "rough estimate" not in report["advice"]
    assert sampler.starts == [400, None, 400, None]
    # At 64 pixels the largest blur is 2.
    expected = min(sampler.sigma, 2.0) if sampler.offset == 0 else 2.0
    assert report["equivalent_blur"] == pytest.approx(expected, abs=0.2)


def test_same_seed_same_report() -> None:
    """Halves and samples depend on the seed alone."""
    images = make_images(10)
    state = torch.get_rng_state()
    first, second = (health_report(Sampler(1.0), images, features, seed=1) for _ in range(2))  # type: ignore[arg-type]
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("count", "verdict"), [(1, "unknown"), (3, "unknown"), (4, "good"), (FEW_IMAGES - 1, "good")])
def test_few_images(count: int, verdict: str) -> None:
    """Fewer than four images have no verdict; the advice for few images says that it is rough."""
    report = health_report(Sampler(), make_images(count), features)  # type: ignore[arg-type]
    assert report["verdict"] == verdict
    assert ("too few to compare" if verdict == "unknown" else "rough estimate") in report["advice"]
