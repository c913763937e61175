# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The alternate stack on which signal handlers run."""

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack(new: SignalStack | None = None) -> SignalStack:
    """Get, and optionally set, the alternate signal stack of this thread (``sigaltstack(2)``, Linux only).

    Args:
        new (SignalStack | None): New stack. Defaults to ``None``, which keeps the current one.

    Returns:
        SignalStack: Previous stack; all zeros on systems other than Linux.

    Raises:
        OSError: If the kernel refuses the new stack.
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
    """Restore this thread's alternate signal stack on exit.

    OpenVINO's CPU plugin sets its own stack and restores the previous one when it ends. If two plugins end in the order
    in which they started, as in NNCF's accuracy control, the second restores the stack of the first, whose memory is
    already freed. The next signal that Python handles, such as the end of a ``DataLoader`` worker, can then kill the
    process without an error message (OpenVINO 2026.4). Does nothing on systems other than Linux.
    """
    before = signal_stack()
    try:
        yield
    finally:
        signal_stack(before)
