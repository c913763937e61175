# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Split-conformal thresholds: how many good parts will count as defective, from good images that trained nothing.

If new good parts are exchangeable with ``n`` held-out ones, the ``k``-th smallest of ``n`` scores is exceeded with
probability ``(n + 1 - k) / (n + 1)`` at most (Vovk et al., Algorithmic Learning in a Random World, 2005). Given the
held-out images, the rate follows the distribution Beta(n + 1 - k, k), if scores are continuous (Vovk, 2012).
"""

import math
from dataclasses import dataclass

import torch
from scipy.stats import beta

CONFIDENCE = 0.95
# Rounding errors must not change a rank.
TOLERANCE = 1e-9


def check_rate(false_alarm_rate: float) -> None:
    """Check a false-alarm rate.

    Args:
        false_alarm_rate (float): Rate.

    Raises:
        ValueError: If it is not above 0 and below 1.
    """
    if not 0 < false_alarm_rate < 1:
        msg = f"false_alarm_rate must be above 0 and below 1, but is {false_alarm_rate}: 0.01 means 1 %."
        raise ValueError(msg)


def images_needed(false_alarm_rate: float) -> int:
    """Number of held-out good images that a false-alarm rate needs.

    Args:
        false_alarm_rate (float): Rate, in (0, 1).

    Returns:
        int: Smallest number that allows it: 99 for 1 %, 999 for 0.1 %.
    """
    return math.ceil(1 / false_alarm_rate - TOLERANCE) - 1


@dataclass(frozen=True)
class FalseAlarmPromise:
    """What a conformal threshold promises.

    Attributes:
        count (int): Number ``n`` of held-out good images, at least one.
        rank (int): Rank ``k`` of the score that is the threshold, 1 for the smallest.
    """

    count: int
    rank: int

    @property
    def rate(self) -> float:
        """Largest expected false-alarm rate, on average over held-out sets of this size."""
        return (self.count + 1 - self.rank) / (self.count + 1)

    @property
    def upper_rate(self) -> float:
        """False-alarm rate that is not exceeded with 95 % confidence, given the held-out images."""
        return float(beta.ppf(CONFIDENCE, self.count + 1 - self.rank, self.rank))

    def __str__(self) -> str:
        """The promise in words."""
        return (
            f"on average at most {100 * self.rate:.2g} % of good parts count as defective, and with "
            f"{100 * CONFIDENCE:.0f} % confidence at most {100 * self.upper_rate:.2g} %"
        )


def promise_for(count: int, false_alarm_rate: float) -> FalseAlarmPromise:
    """Find the rank of the threshold for a false-alarm rate.

    Args:
        count (int): Number of held-out good images, at least one.
        false_alarm_rate (float): Rate that is asked for, in (0, 1).

    Returns:
        FalseAlarmPromise: Rank ``ceil((n + 1) (1 - rate))``, the highest score if there are too few images for it.
    """
    rank = math.ceil((count + 1) * (1 - false_alarm_rate) - TOLERANCE)
    return FalseAlarmPromise(count, max(1, min(rank, count)))


def conformal_threshold(scores: torch.Tensor, false_alarm_rate: float) -> torch.Tensor:
    """Threshold that a new good score exceeds with at most this probability, if there are enough scores for it.

    Args:
        scores (torch.Tensor): Scores of held-out good images, of shape ``(N,)``, at least one.
        false_alarm_rate (float): Rate, in (0, 1).

    Returns:
        torch.Tensor: One of the scores, a scalar.
    """
    rank = promise_for(len(scores), false_alarm_rate).rank
    return scores.sort().values[rank - 1]


def p_values(scores: torch.Tensor, calibration: torch.Tensor) -> torch.Tensor:
    """Conformal p-values of scores: how unusual they would be for a good part.

    Args:
        scores (torch.Tensor): Scores of any shape.
        calibration (torch.Tensor): Scores of held-out good images, of shape ``(N,)``.

    Returns:
        torch.Tensor: One plus the number of calibration scores that are at least as high, over ``N + 1``; in (0, 1],
        of the shape of ``scores``. Of new good parts, at most a fraction ``a`` has a p-value of ``a`` or less.
    """
    ordered = calibration.sort().values
    below = torch.searchsorted(ordered, scores.contiguous(), right=False)
    return (1 + len(ordered) - below) / (len(ordered) + 1)
