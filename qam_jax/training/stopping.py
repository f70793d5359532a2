"""Stops a run in good order when it is asked to by a signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Stopped(Exception):
    """The run was asked to stop, and has saved what it had."""


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.signal_name = ""

    def check(self) -> None:
        """Raises Stopped if so. To be called where nothing is lost."""
        if self.signal_name:
            raise Stopped(self.signal_name)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Takes SIGTERM and SIGINT as requests to stop; the second one ends the process as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread can handle signals
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, _frame: object) -> None:
        request.signal_name = signal.Signals(number).name
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
