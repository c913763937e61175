# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Ranks, promises and p-values of split-conformal thresholds."""

import numpy as np
import pytest
import torch

from anomalib_ddpm_st.detector.conformal import conformal_threshold, images_needed, p_values, promise_for


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.005, 199), (0.001, 999)])
def test_images_needed(rate: float, needed: int) -> None:
    """Enough for the highest score to keep the rate, and one fewer is not."""
    assert images_needed(rate) == needed
    assert promise_for(needed, rate).rate <= rate + 1e-12
    if needed > 1:
        assert promise_for(needed - 1, rate).rate > rate


@pytest.mark.parametrize(
    ("count", "rate", "rank", "upper"),
    # The highest of 40, 60, 99 and 299 scores, and the second highest.
    [
        (40, 0.02, 40, 0.072),
        (60, 0.01, 60, 0.049),
        (99, 0.01, 99, 0.030),
        (299, 0.003, 299, 0.010),
        (199, 0.01, 198, 0.0236),
    ],
)
def test_promise(count: int, rate: float, rank: int, upper: float) -> None:
    promise = promise_for(count, rate)
    assert promise.rank == rank
    assert promise.rate == pytest.approx((count + 1 - rank) / (count + 1))
    assert promise.upper_rate == pytest.approx(upper, abs=5e-4)


def test_threshold_is_a_score() -> None:
    scores = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3, 0.6, 0.9, 0.7, 0.8])
    ranks = [int((scores <= conformal_threshold(scores, rate)).sum()) for rate in (0.1, 0.2, 0.01, 0.999)]
    assert ranks == [9, 8, 9, 1]


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_coverage(rate: float) -> None:
    """On average over held-out sets the rate is kept, and nearly used up; 5 % of them exceed the upper bound."""
    draws = np.random.default_rng(0)
    count = images_needed(rate) + 7
    rates = []
    for _ in range(2000):
        threshold = float(conformal_threshold(torch.from_numpy(draws.random(count)), rate))
        rates.append(1 - threshold)  # of uniform scores
    promise = promise_for(count, rate)
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(promise.rate, abs=4 * error)
    assert promise.rate <= rate
    assert np.mean(np.array(rates) > promise.upper_rate) == pytest.approx(0.05, abs=0.02)


def test_p_values() -> None:
    calibration = torch.tensor([0.3, 0.1, 0.2, 0.2])
    scores = torch.tensor([[0.0, 0.1, 0.15], [0.2, 0.3, 0.4]])
    torch.testing.assert_close(p_values(scores, calibration), torch.tensor([[1, 1, 0.8], [0.8, 0.4, 0.2]]))


def test_p_values_agree_with_the_threshold() -> None:
    """What exceeds the threshold of a rate has a p-value of at most that rate, and nothing else has."""
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0))
    new = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    for rate in (0.02, 0.1, 0.25):
        exceeds = new > conformal_threshold(scores, rate)
        assert torch.equal(exceeds, p_values(new, scores) <= rate)
