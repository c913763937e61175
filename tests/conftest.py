# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures shared by the tests."""

import faulthandler
import os
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from anomalib_ddpm_st.core.signal_stack import preserved_signal_stack
from anomalib_ddpm_st.diffusion import DefectPipeline, PerturbedDDPMScheduler, build_unet


@pytest.fixture(scope="session")
def stderr_descriptor(pytestconfig: pytest.Config) -> int:
    """Descriptor of standard error as it was before pytest captured it."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        return os.dup(2)


@pytest.fixture(autouse=True)
def _same_world(stderr_descriptor: int) -> Iterator[None]:
    """Seed every test and undo what Lightning and OpenVINO do to the handling of signals.

    Lightning leaves Ctrl-C ignored after an interrupted training and disables the trace of a crash in native code;
    OpenVINO can leave handlers pointing at a freed stack.
    """
    faulthandler.disable()  # enabling does nothing if it is enabled already
    faulthandler.enable(stderr_descriptor)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    handler = signal.getsignal(signal.SIGINT)
    with preserved_signal_stack():
        yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, since sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded generator on the CPU."""
    return torch.Generator().manual_seed(1)


@pytest.fixture
def normal_images() -> torch.Tensor:
    """Four images of 32 x 32 pixels, ``uint8``, each with a brightness of its own."""
    levels = torch.tensor([30, 90, 150, 210]).reshape(4, 1, 1, 1)
    return (levels + torch.randint(-20, 21, (4, 3, 32, 32))).to(torch.uint8)


@pytest.fixture
def pipeline() -> DefectPipeline:
    """Untrained pipeline for images of 32 x 32 pixels."""
    pipeline = DefectPipeline(
        build_unet((32, 32), block_out_channels=(8, 8)).eval(),
        PerturbedDDPMScheduler(prediction_type="sample"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
