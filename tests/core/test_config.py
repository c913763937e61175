# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of range checks and conversions of settings."""

from collections import UserList
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from omegaconf import OmegaConf

from anomalib_ddpm_st.core.config import (
    as_config,
    check_choice,
    check_integer,
    check_integers,
    check_number,
    check_positive,
    check_range,
)


@dataclass(frozen=True)
class Example:
    """Settings to test with."""

    size: int = 3
    name: str = "a"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_integer("example.size", self.size, 1)


def test_as_config() -> None:
    """Nothing, the dataclass itself or a dictionary of some of its fields."""
    config = Example(4)
    assert as_config(Example, None) == Example()
    assert as_config(Example, config) is config
    assert as_config(Example, {"size": 5}) == Example(5)
    assert as_config(Example, {}) == Example()
    assert as_config(Example, MappingProxyType({"size": 5})) == Example(5)
    assert as_config(Example, OmegaConf.create({"size": 5})) == Example(5)


def test_as_config_names_what_is_wrong() -> None:
    """An unknown name, a bad value or another type."""
    with pytest.raises(ValueError, match="Example has no setting 'sise': choose from size, name"):
        as_config(Example, {"sise": 5})
    with pytest.raises(ValueError, match=r"example\.size must be a whole number of at least 1, got 0"):
        as_config(Example, {"size": 0})
    with pytest.raises(TypeError, match="Expected a Example or a dictionary of its fields, got int"):
        as_config(Example, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 0.5, 1, 1.0])
def test_numbers_within_bounds(value: float) -> None:
    """Bounds are included."""
    check_number("x", value, 0, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_numbers_out_of_bounds(value: Any) -> None:  # noqa: ANN401
    """NaN, text and truth values are no numbers."""
    with pytest.raises(ValueError, match="x must be a finite number between 0 and 1, got "):
        check_number("x", value, 0, 1)


@pytest.mark.parametrize("value", [0, -1e-3, float("nan"), float("inf"), "1", None, True])
def test_positive(value: Any) -> None:  # noqa: ANN401
    """Zero and infinity are refused."""
    check_positive("x", 1e-12)
    with pytest.raises(ValueError, match="x must be a finite number above 0, got "):
        check_positive("x", value)


@pytest.mark.parametrize("value", [1, 1.5, 2.0, "2", None, True, 10])
def test_integers(value: Any) -> None:  # noqa: ANN401
    """A float is no whole number, whatever its value."""
    check_integer("x", 2, 2, 9)
    check_integer("x", 9, 2, 9)
    with pytest.raises(ValueError, match="x must be a whole number between 2 and 9, got "):
        check_integer("x", value, 2, 9)


@pytest.mark.parametrize("value", [(0.2, 0.4), [0.2, 0.4], UserList([0.2, 0.4]), OmegaConf.create([0.2, 0.4])])
def test_ranges_become_tuples(value: Any) -> None:  # noqa: ANN401
    """Whatever sequence is given: anomalib passes lists of OmegaConf."""
    values = check_range("x", value, 0)
    assert type(values) is tuple
    assert values == (0.2, 0.4)
    assert check_range("x", [0, 0.5], 0, 0.5) == (0, 0.5)


@pytest.mark.parametrize(
    "value",
    [
        *((0.4, 0.2), (), (0.1,), (0.1, 0.2, 0.3), (-0.1, 0.2), ("a", "b"), (True, 2), (0.2, None)),
        *((0.2, float("nan")), (float("nan"), 0.2), (0.2, float("inf"))),
    ],
)
def test_bad_ranges(value: Any) -> None:  # noqa: ANN401
    """Descending, of another length, out of bounds or of other things."""
    with pytest.raises(ValueError, match="x must be two finite numbers in ascending order, both of at least 0, got "):
        check_range("x", value, 0)


@pytest.mark.parametrize("value", [0.3, "0.3, 0.4", None])
def test_not_a_sequence(value: Any) -> None:  # noqa: ANN401
    """Text is no list of numbers."""
    with pytest.raises(ValueError, match="x must be two finite numbers"):
        check_range("x", value, 0)


@pytest.mark.parametrize("value", [8, (), (8, 0), (8, 1.5), "8", None, [True]])
def test_lists_of_integers(value: Any) -> None:  # noqa: ANN401
    """At least one, all whole and large enough."""
    assert check_integers("x", [8, 16, 16], 1) == (8, 16, 16)
    with pytest.raises(ValueError, match="x must be a list of whole numbers of at least 1, got "):
        check_integers("x", value, 1)


def test_choices() -> None:
    """The message lists them."""
    check_choice("x", "b", ("a", "b"))
    with pytest.raises(ValueError, match="x must be one of a, b, got 'c'"):
        check_choice("x", "c", ("a", "b"))
