# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The stack that the handlers of signals run on."""

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack(new: SignalStack | None = None) -> SignalStack:
    """Alternate signal stack of this thread, see ``sigaltstack(2)``. Elsewhere than on Linux it is left alone.

    Args:
        new (SignalStack | None): What it becomes. Defaults to ``None``, as it is.

    Returns:
        SignalStack: What it was; elsewhere than on Linux all zeros.

    Raises:
        OSError: If the kernel refuses the new one.
    """
    old = SignalStack()
    if sys.platform != "linux":
        return old
    if ctypes.CDLL(None, use_errno=True).sigaltstack(None if new is None else ctypes.byref(new), ctypes.byref(old)):
        number = ctypes.get_errno()
        msg = "The signal stack cannot be set."
        raise OSError(number, msg)
    return old


@contextmanager
def preserved_signal_stack() -> Generator[None]:
    """Put this thread's alternate signal stack back as it was.

    OpenVINO's CPU plugin sets one of its own and puts the one of before back when it ends. Where two plugins end in the
    order in which they began, as under NNCF's accuracy control, the second puts back that of the first, which is freed
    by then; the next signal that Python handles, such as the end of a worker of a ``DataLoader``, can kill the process
    without a word (OpenVINO 2026.4). Elsewhere than on Linux it does nothing.
    """
    before = signal_stack()
    try:
        yield
    finally:
        signal_stack(before)
