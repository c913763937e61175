# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars of tqdm next to a live display of rich."""

import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO


def plain_stderr() -> TextIO:
    """Standard error without the wrapper by which rich keeps it clear of a live display.

    In a notebook, a bar of tqdm that writes to the wrapper ends in endless recursion: the wrapper prints before it
    clears its buffer, and a display of the notebook flushes it.

    Returns:
        TextIO: Stream.
    """
    return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


@contextmanager
def bars_on_plain_stderr() -> Generator[None, None, None]:
    """Let the bars of other packages write to :func:`plain_stderr`.

    Yields:
        None: Make the bars within the context.
    """
    with redirect_stderr(plain_stderr()):
        yield
