# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the names of tensors in compiled models."""

import pytest

from anomalib_ddpm_st.core.compiled import match_compiled

PLAIN = {"model.head.weight": 1, "model.head.bias": 2}
COMPILED = {"model._orig_mod.head.weight": 1, "model._orig_mod.head.bias": 2}


@pytest.mark.parametrize("state", [PLAIN, COMPILED])
@pytest.mark.parametrize("target", [PLAIN, COMPILED])
def test_both_directions(state: dict[str, int], target: dict[str, int]) -> None:
    """Every tensor gets its name in the target."""
    assert match_compiled(state, target) == target


def test_unknown_names_stay() -> None:
    """So that loading reports them."""
    assert match_compiled({"model._orig_mod.other": 3}, PLAIN) == {"model._orig_mod.other": 3}
