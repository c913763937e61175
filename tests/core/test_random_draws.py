# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of random draws."""

import math

import torch

from anomalib_ddpm_st.core.random_draws import log_uniform, uniform


def test_uniform_covers_its_range(generator: torch.Generator) -> None:
    """Evenly, from the lower bound on, below the upper one."""
    values = uniform((4000,), -2, 6, generator)
    assert values.min() >= -2
    assert values.max() < 6
    assert torch.histc(values, 4, -2, 6).sub(1000).abs().max() < 150


def test_log_uniform_covers_orders_of_magnitude(generator: torch.Generator) -> None:
    """Each of them equally often."""
    values = log_uniform((4000,), 0.01, 100, generator)
    assert torch.histc(values.log10(), 4, -2, 2).sub(1000).abs().max() < 150
    assert values.log().mean().abs() < 0.2
    assert math.isclose(values.min().item(), 0.01, rel_tol=0.05)


def test_generator_decides() -> None:
    """The global random state is not touched."""
    state = torch.get_rng_state()
    first, second = (uniform((3, 2), 0, 1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(uniform((3, 2), 0, 1), uniform((3, 2), 0, 1))


def test_formulas() -> None:
    """One draw of ``torch.rand`` is scaled, of ``log_uniform`` in the logarithm; equal bounds are allowed."""
    draws = torch.rand(5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(uniform((5,), 2.0, 6.0, torch.Generator().manual_seed(7)), 2 + 4 * draws)
    expected = (math.log(2) + (math.log(6) - math.log(2)) * draws).exp()
    assert torch.equal(log_uniform((5,), 2.0, 6.0, torch.Generator().manual_seed(7)), expected)
    assert torch.equal(uniform((2, 0, 3), 1.0, 1.0), torch.ones(2, 0, 3))
    torch.testing.assert_close(log_uniform((), 3.0, 3.0), torch.tensor(3.0))


def test_device(generator: torch.Generator) -> None:
    """The result is moved to the device, which need not be that of the generator."""
    for draw in (uniform, log_uniform):
        assert draw((2,), 1.0, 2.0, generator).device.type == "cpu"
        assert draw((2,), 1.0, 2.0, generator, torch.device("meta")).device.type == "meta"
