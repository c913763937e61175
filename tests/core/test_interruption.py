# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of trainings that end after the current step."""

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from anomalib_ddpm_st.core.interruption import SIGNALS, StopOnSignal


@pytest.fixture
def handlers() -> Iterator[dict[int, Any]]:
    """Handlers of the signals, which are put back after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def start(world_size: int = 1) -> tuple[StopOnSignal, SimpleNamespace]:
    """Callback of a training that has started, and its Trainer."""
    stop, trainer = StopOnSignal(), SimpleNamespace(world_size=world_size, should_stop=False)
    stop.on_train_start(trainer, None)
    return stop, trainer


def current() -> dict[int, Any]:
    """Current handlers."""
    return {number: signal.getsignal(number) for number in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_ends_training_after_the_step(number: int, handlers: dict[int, Any]) -> None:
    """The second one ends it at once."""
    stop, trainer = start()
    stop.on_train_batch_end(trainer, None)
    assert not trainer.should_stop
    os.kill(os.getpid(), number)
    assert stop.signal_number == number
    assert not trainer.should_stop
    stop.on_train_batch_end(trainer, None)
    assert trainer.should_stop
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    stop.give_back_signals()
    assert current() == handlers


def test_signals_are_given_back_after_an_error(handlers: dict[int, Any]) -> None:
    """Lightning calls no teardown then."""
    stop, trainer = start()
    assert current() != handlers
    stop.on_exception(trainer, None, RuntimeError())
    assert current() == handlers


def test_several_devices_leave_signals_to_lightning(handlers: dict[int, Any]) -> None:
    """It tells all processes."""
    start(world_size=2)
    assert current() == handlers


def test_other_threads_leave_signals_alone(handlers: dict[int, Any]) -> None:
    """Python allows handlers in the main thread only."""
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert current() == handlers


def test_ignored_signals_stay_ignored(handlers: dict[int, Any]) -> None:
    """As in a job in the background of a shell."""
    del handlers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop, _ = start()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == stop._on_signal


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
@pytest.mark.usefixtures("handlers")
def test_workers_leave_interrupts_to_the_main_process(number: int, status: int) -> None:
    """A process that was forked ignores Ctrl-C, which a terminal sends to it, too, and ends on SIGTERM."""
    stop, _ = start()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), number)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    assert stop.signal_number is None
