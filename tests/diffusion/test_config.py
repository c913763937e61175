# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the settings of stage 1."""

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
from omegaconf import OmegaConf

from anomalib_ddpm_st.core.cache import content_key
from anomalib_ddpm_st.core.config import as_config
from anomalib_ddpm_st.diffusion import DiffusionConfig

NO_NUMBERS = (None, "1", [1], True, float("nan"), float("inf"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("training_steps", (0, -1, 2.5, 4.0, *NO_NUMBERS)),
        ("batch_size", (0, -1, 2.5, 4.0, *NO_NUMBERS)),
        ("learning_rate", (0, 0.0, -1e-3, "1e-3", *NO_NUMBERS)),
        ("block_out_channels", (8, "8", None, (), (8, 0), (8, -8), (8.0,), (8, True), (8, None), (8, "8"))),
        ("seed", (-1, 0.5, *NO_NUMBERS)),
    ],
)
def test_bad_settings(name: str, values: tuple) -> None:
    """The message names the setting, whatever the type of the value."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^diffusion\.{name} must be a .*, got "):
            DiffusionConfig(**{name: value})


def test_bounds() -> None:
    """The smallest values are allowed."""
    settings: dict[str, Any] = {"training_steps": 1, "batch_size": 1, "learning_rate": 1e-12, "seed": 0}
    assert asdict(DiffusionConfig(**settings, block_out_channels=(1,))) == {**settings, "block_out_channels": (1,)}


@pytest.mark.parametrize("widths", [[8, 16], (8, 16), OmegaConf.create([8, 16])])
def test_lists_become_tuples(widths: Any) -> None:  # noqa: ANN401
    """Equal settings are equal objects with one cache key, whatever kind of list a config gives."""
    config = as_config(DiffusionConfig, {"block_out_channels": widths})
    assert type(config.block_out_channels) is tuple
    assert config == DiffusionConfig(block_out_channels=(8, 16))
    assert hash(config) == hash(DiffusionConfig(block_out_channels=(8, 16)))
    assert content_key(asdict(config)) == content_key(asdict(DiffusionConfig(block_out_channels=(8, 16))))
    assert content_key(asdict(config)) != content_key(asdict(DiffusionConfig()))


def test_settings_are_frozen() -> None:
    """A checked setting cannot become an unchecked one."""
    with pytest.raises(FrozenInstanceError):
        DiffusionConfig().training_steps = 0  # type: ignore[misc]
