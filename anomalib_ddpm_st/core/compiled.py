# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Names of tensors in models that ``torch.compile`` wraps."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
WRAPPER = "_orig_mod."


def match_compiled(state: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
    """Rename the tensors of a compiled model to those of a plain one, or the other way round.

    Args:
        state (Mapping[str, Value]): Tensors by name.
        names (Iterable[str]): Names in the model that the tensors are for.

    Returns:
        dict[str, Value]: The same tensors; names that the model does not have stay as they are.
    """
    own = {name.replace(WRAPPER, ""): name for name in names}
    return {own.get(name.replace(WRAPPER, ""), name): value for name, value in state.items()}
