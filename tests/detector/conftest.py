# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Models and weights that the tests of the detector share."""

from collections.abc import Iterator

import pytest
import timm
import torch

from anomalib_ddpm_st.detector import DdpmStModel, build_model


@pytest.fixture(scope="session")
def shared_network() -> DdpmStModel:
    """A model with random weights, made once."""
    torch.manual_seed(0)
    return build_model(memory_size=20)


@pytest.fixture
def network(shared_network: DdpmStModel) -> Iterator[DdpmStModel]:
    """The shared model in evaluation mode, with its weights restored after the test."""
    state = {name: value.clone() for name, value in shared_network.state_dict().items()}
    yield shared_network.eval()
    shared_network.load_state_dict(state)
    shared_network.zero_grad()


@pytest.fixture(scope="session")
def whole_weights() -> dict[str, torch.Tensor]:
    """Weights of the whole backbone as timm names them, with classifier and ``layer4``."""
    torch.manual_seed(7)
    backbone = timm.create_model("resnet18", pretrained=False)
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 3
        for name, value in backbone.state_dict().items()
    }
