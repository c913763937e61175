# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Range checks and conversions of the frozen dataclasses that hold settings.

Each setting is checked once, in ``__post_init__`` of the dataclass that defines it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

Config = TypeVar("Config")


def as_config(kind: type[Config], value: Config | Mapping[str, Any] | None) -> Config:
    """Convert what a user gives for a group of settings into its dataclass.

    Args:
        kind (type[Config]): Dataclass of the group.
        value (Config | Mapping[str, Any] | None): The dataclass itself, a mapping of some of its fields, or ``None``
            for the defaults.

    Returns:
        Config: Checked settings.

    Raises:
        TypeError: If the value is neither of these.
        ValueError: If a name is unknown or a value out of its range.
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        msg = f"Expected a {kind.__name__} or a dictionary of its fields, got {type(value).__name__}."
        raise TypeError(msg)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(known))
    if unknown:
        msg = f"{kind.__name__} has no setting '{unknown[0]}': choose from {', '.join(known)}."
        raise ValueError(msg)
    return kind(**value)


def check_number(name: str, value: Any, low: float, high: float = float("inf")) -> None:  # noqa: ANN401
    """Check that a setting is a finite number within closed bounds.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.
        low (float): Smallest value allowed.
        high (float): Largest value allowed. Defaults to no bound.

    Raises:
        ValueError: If it is not.
    """
    if not _is_number(value) or not low <= value <= high:
        msg = f"{name} must be a finite number {_bounds(low, high)}, got {value!r}."
        raise ValueError(msg)


def check_positive(name: str, value: Any) -> None:  # noqa: ANN401
    """Check that a setting is a finite number above 0, such as a learning rate.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.

    Raises:
        ValueError: If it is not.
    """
    if not _is_number(value) or not value > 0:
        msg = f"{name} must be a finite number above 0, got {value!r}."
        raise ValueError(msg)


def check_integer(name: str, value: Any, low: int, high: float = float("inf")) -> None:  # noqa: ANN401
    """Check that a setting is a whole number within closed bounds.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.
        low (int): Smallest value allowed.
        high (float): Largest value allowed. Defaults to no bound.

    Raises:
        ValueError: If it is not.
    """
    if not _is_integer(value) or not low <= value <= high:
        msg = f"{name} must be a whole number {_bounds(low, high)}, got {value!r}."
        raise ValueError(msg)


def check_range(name: str, value: Any, low: float, high: float = float("inf")) -> tuple:  # noqa: ANN401
    """Check that a setting is a range: two finite numbers in ascending order within closed bounds.

    Args:
        name (str): Name of the setting.
        value (Any): Its value, any sequence.
        low (float): Smallest value allowed.
        high (float): Largest value allowed. Defaults to no bound.

    Returns:
        tuple: The two numbers.

    Raises:
        ValueError: If it is not a range or leaves the bounds.
    """
    values = _as_tuple(value)
    if len(values) != 2 or not all(map(_is_number, values)) or not low <= values[0] <= values[1] <= high:
        msg = f"{name} must be two finite numbers in ascending order, both {_bounds(low, high)}, got {value!r}."
        raise ValueError(msg)
    return values


def check_integers(name: str, value: Any, low: int) -> tuple[int, ...]:  # noqa: ANN401
    """Check that a setting is a list of one or more whole numbers of a smallest size, such as layer widths.

    Args:
        name (str): Name of the setting.
        value (Any): Its value, any sequence.
        low (int): Smallest number allowed.

    Returns:
        tuple[int, ...]: The numbers.

    Raises:
        ValueError: If it is not.
    """
    values = _as_tuple(value)
    if not values or not all(_is_integer(part) and part >= low for part in values):
        msg = f"{name} must be a list of whole numbers {_bounds(low)}, got {value!r}."
        raise ValueError(msg)
    return values


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:  # noqa: ANN401
    """Check that a setting is one of a few names.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.
        choices (Iterable[str]): Names allowed.

    Raises:
        ValueError: If it is not.
    """
    choices = tuple(choices)
    if value not in choices:
        msg = f"{name} must be one of {', '.join(choices)}, got {value!r}."
        raise ValueError(msg)


def _is_integer(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a whole number; ``True`` and ``False`` are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a finite number; ``True`` and ``False`` are none."""
    return _is_integer(value) or (isinstance(value, float) and abs(value) < float("inf"))


def _as_tuple(value: Any) -> tuple:  # noqa: ANN401
    """Items of a list, as configs and anomalib's look-up tables give it, or of a tuple; none of anything else."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _bounds(low: float, high: float = float("inf")) -> str:
    """Bounds in words."""
    return f"of at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
