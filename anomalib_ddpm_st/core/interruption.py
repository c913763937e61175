# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Trainings that end after the current step when they are interrupted."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Lets Ctrl-C and SIGTERM end training after the current step, and a second one at once.

    Lightning alone would leave an optimiser in the middle of a step, ignore Ctrl-C from then on, and report success
    after SIGTERM. On several devices, and outside of the main thread, signals are left to it.

    Attributes:
        signal_number (int | None): Signal that ends training. ``None`` if there was none.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""
        del pl_module
        if threading.current_thread() is threading.main_thread() and trainer.world_size == 1:
            # A shell lets jobs in the background ignore Ctrl-C.
            heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in heeded}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, and end training at the second one."""
        del frame
        if os.getpid() != self._process:
            # A worker of a data loader, which inherits this handler. The terminal sends Ctrl-C to it, too.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        os.write(2, b"\nStopping after this step, with a checkpoint. Once more stops at once, without one.\n")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object, **kwargs: object) -> None:
        """Stop if there was a signal."""
        del pl_module, args, kwargs
        if self.signal_number is not None:
            trainer.should_stop = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back after an error or an interruption, too, for which Lightning calls no ``teardown``."""
        del trainer, pl_module, exception
        self.give_back_signals()

    def give_back_signals(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
