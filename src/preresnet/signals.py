"""Signals that end a run: noted, so that the run saves first, and held back from the processes that it starts.

A terminal, ``timeout`` and a batch system send a signal to every process of a group at once. The run alone decides when
it ends; a process that reads images for it ends with it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAME_S = 2.0  # `timeout` signals a process and then its group: two signals this close are one


class Signals:
    """Notes Ctrl-C, SIGTERM and SIGHUP in ``received`` instead of ending the process; `nohup` is respected.

    A process that was signalled usually ends right behind this: until it has, a signal that belongs to the first is
    still taken for it, and a later one does what it would have done without this.

    Args:
        stop: is called with False at the first signal, and with True at one that comes later. By default a later one
            does what it would have done without this.
    """

    def __init__(self, stop: Callable[[bool], None] | None = None) -> None:
        self.received = 0
        self._stop = stop
        self._since = 0.0
        self._left = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere, whoever called handles signals
            for number in ENDING:
                if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        again = bool(self.received)
        if again and time.monotonic() - self._since < SAME_S:
            return
        if again and (self._left or self._stop is None):
            self._restore()
            os.kill(os.getpid(), number)
            return
        self.received, self._since = number, time.monotonic()
        if self._stop is not None:
            self._stop(again)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._left = True
        if not self.received:
            self._restore()


@contextmanager
def held_back() -> Iterator[None]:
    """Processes that are started inside inherit that these signals wait, from their first moment."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        resource_tracker.ensure_running()  # it comes with the first process, and stops holding back what we hold back
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_alone() -> None:
    """Called in a process that was started in `held_back`: only the process that started it can end it."""
    if hasattr(signal, "sigwaitinfo"):  # Linux, which says who sent a signal
        threading.Thread(target=_wait_for_parent, daemon=True).start()
        return
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    take_no_interrupts()


def take_no_interrupts() -> None:
    """Called in a process that was started in `held_back`: Ctrl-C and SIGHUP are for its parent; SIGTERM ends it."""
    for number in ENDING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _wait_for_parent() -> None:
    while True:
        found = signal.sigwaitinfo(ENDING)
        if found.si_signo == signal.SIGTERM and found.si_pid == os.getppid():
            os._exit(0)
