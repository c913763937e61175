# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the stack that handlers of signals run on."""

import contextlib
import ctypes
import subprocess
import sys

import pytest

from anomalib_ddpm_st.core.signal_stack import SignalStack, preserved_signal_stack, signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is called on Linux alone")
SIZE = 65536

# Two plugins that end in the order in which they began, then a signal with a handler in Python.
PLUGINS = """
import gc, signal, subprocess
import numpy as np, openvino as ov
from openvino import opset13
from anomalib_ddpm_st.core.signal_stack import preserved_signal_stack

def compiled():
    parameter = opset13.parameter([1, 4], np.float32)
    return ov.Core().compile_model(ov.Model([opset13.relu(parameter)], [parameter]), "CPU")

with preserved_signal_stack():
    first, second = compiled(), compiled()
    del first
    gc.collect()
    del second
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("handled", flush=True))
subprocess.run(["true"])
"""


def other_stack() -> tuple[SignalStack, ctypes.Array]:
    """Another stack, and its memory."""
    memory = ctypes.create_string_buffer(SIZE)
    return SignalStack(ctypes.addressof(memory), 0, SIZE), memory


@pytest.mark.parametrize("is_set", [False, True])
def test_stack_is_put_back(is_set: bool) -> None:
    """Whether there was one or none, and after an error, too."""
    with preserved_signal_stack():
        stack, memory = other_stack() if is_set else (SignalStack(None, 2, 0), None)
        signal_stack(stack)
        before = bytes(signal_stack())
        inner, inner_memory = other_stack()
        with contextlib.suppress(KeyError), preserved_signal_stack():
            signal_stack(inner)
            assert signal_stack().address == ctypes.addressof(inner_memory)
            raise KeyError
        assert bytes(signal_stack()) == before
        assert (signal_stack().address is not None) == (memory is not None)


def test_refused_stack() -> None:
    """A stack that is too small is an error of the system."""
    with pytest.raises(OSError, match="signal stack"):
        signal_stack(SignalStack(ctypes.addressof(ctypes.create_string_buffer(16)), 0, 16))


def test_signals_outlive_plugins_of_openvino() -> None:
    """Without the guard the process dies of the signal."""
    command = [sys.executable, "-c", PLUGINS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
