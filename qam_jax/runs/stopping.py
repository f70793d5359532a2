"""Stops a run in good order when it is asked to by a signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Stopped(BaseException):
    """A signal asked to stop; what there was to save has been saved. It names the signal."""


class StopRequest:
    """Whether a signal has asked the run to stop."""

    signal_name = ""

    def check(self) -> None:
        """Raises Stopped if so. To be called where nothing is lost."""
        if self.signal_name:
            raise Stopped(self.signal_name)


@contextlib.contextmanager
def stop_signals(*, at_once: bool = False) -> Iterator[StopRequest]:
    """Takes SIGTERM and SIGINT as requests to stop; a second one is handled as before.

    Args:
      at_once: raises Stopped where the signal finds the main thread, which has nothing to save.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread can handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _frame: object) -> None:
        request.signal_name = signal.Signals(number).name
        restore()
        if at_once:
            request.check()

    for number in before:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
