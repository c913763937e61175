# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the settings of banks and defects."""

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest

from anomalib_ddpm_st.core.cache import content_key
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig

NOT_A_NUMBER = (None, "0.5", [0.5], True)
NOT_A_RANGE = (
    (0.5,),
    (0.1, 0.2, 0.3),
    (0.5, 0.2),
    (-0.1, 0.5),
    None,
    "01",
    ("0.1", "0.2"),
    (None, 1),
    (True, True),
    1j,
)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("size", (0, -1, 2.5, *NOT_A_NUMBER)),
        ("delta", (0.5, *NOT_A_RANGE)),
        ("start_timestep", (300, (0, 2), (900, 1000), (600, 200), (1.5, 2), (1, 2.5), (1,), (1, 2, 3), None, "12")),
        ("num_inference_steps", (0, -1, 2.5, *NOT_A_NUMBER)),
        ("detail", (0.5, (0.5, 1.2), *NOT_A_RANGE)),
        ("seed", (-1, 0.5, *NOT_A_NUMBER)),
    ],
)
def test_bad_bank_settings(name: str, values: tuple) -> None:
    """The message names the setting, whatever the type of the value."""
    for value in values:
        with pytest.raises(ValueError, match=rf"bank\.{name} must be"):
            BankConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("source", ("pictures", "noise", "none", "bank", None, 1, ["mixture"])),
        ("probability", (-0.1, 1.5, float("nan"), *NOT_A_NUMBER)),
        ("opacity", (0, 0.0, -1, 1.5, True, (0.0, 1.0), (0.5, 1.2), *NOT_A_RANGE)),
        ("contrast", (0.5, (0.0, 1.5), *NOT_A_RANGE)),
        ("foreground", ("on", None, True)),
        ("p_local", (-0.1, 1.5, *NOT_A_NUMBER)),
        ("p_filled", (-0.1, 1.5, *NOT_A_NUMBER)),
        ("p_soft", (-0.1, 1.5, *NOT_A_NUMBER)),
        ("p_parts", (-0.1, 1.5, *NOT_A_NUMBER)),
    ],
)
def test_bad_defect_settings(name: str, values: tuple) -> None:
    """The message names the setting, whatever the type of the value."""
    for value in values:
        with pytest.raises(ValueError, match=rf"defects\.{name} must be"):
            DefectConfig(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": (0, 0), "detail": (1, 1), "start_timestep": (1, 999), "num_inference_steps": 1, "size": 1},
        {"delta": [0.3, 3.0], "detail": [0.2, 0.2], "start_timestep": [5, 5]},
    ],
)
def test_bounds_of_bank_settings(settings: dict[str, Any]) -> None:
    """The ends of the ranges are allowed; lists become tuples."""
    config = BankConfig(**settings)
    for name, value in settings.items():
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(config, name) == expected


def test_bounds_of_defect_settings() -> None:
    """The ends of the ranges are allowed; lists become tuples, and a single opacity a range."""
    config = DefectConfig(probability=0, contrast=[0, 0], p_local=1, p_filled=0.0, p_soft=1.0, opacity=[1, 1])
    assert (config.contrast, config.opacity) == ((0, 0), (1, 1))
    assert DefectConfig(opacity=0.4).opacity == (0.4, 0.4)
    assert DefectConfig(contrast=(2.0, 2.0), probability=1).contrast == (2.0, 2.0)


def test_equal_settings_have_one_cache_key() -> None:
    """Lists or tuples, whole numbers or fractions."""
    first = BankConfig(delta=[1, 2], detail=[0, 1])
    second = BankConfig(delta=(1.0, 2.0))
    assert first == second
    assert content_key(asdict(first)) == content_key(asdict(second))
    assert content_key(asdict(first)) != content_key(asdict(BankConfig()))


@pytest.mark.parametrize(("source", "needs_bank"), [("diffusion", True), ("mixture", True), ("self_texture", False)])
def test_needs_bank(source: Any, needs_bank: bool) -> None:  # noqa: ANN401
    assert DefectConfig(source=source).needs_bank == needs_bank


@pytest.mark.parametrize("config", [BankConfig(), DefectConfig()])
def test_settings_are_frozen(config: Any) -> None:  # noqa: ANN401
    """A checked setting cannot become an unchecked one."""
    name = next(iter(asdict(config)))
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, 1)
