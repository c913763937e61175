# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Weights that earlier versions saved."""

import re
from collections.abc import Mapping

import torch

# Tensors that weights of earlier versions lack: images as they lie, and memory banks that know no places.
ADDED_TENSORS = re.compile(r"(pose_frame|memory_bank\.position_weight|memory_bank\.places\d+)$")


def upgrade_weights(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Complete weights that an earlier version saved, so that they give the same predictions.

    Args:
        state (Mapping[str, torch.Tensor]): Saved tensors by name.
        own (Mapping[str, torch.Tensor]): Tensors of the model that they are for.

    Returns:
        dict[str, torch.Tensor]: Tensors for this version.
    """
    upgraded = {name: torch.zeros_like(value) for name, value in own.items() if ADDED_TENSORS.search(name)}
    upgraded.update(state)
    for name, value in upgraded.items():
        # One scale for all levels before.
        if name.endswith("memory_bank.scale") and value.ndim == 0 and name in own:
            upgraded[name] = value.expand_as(own[name])
    return upgraded
