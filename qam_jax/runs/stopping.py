"""Stops a run in good order when it is asked to by a signal."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GRACE_SECONDS = 2.0  # for the main thread to end by itself


class Stopped(BaseException):
    """A signal asked to stop; what there was to save has been saved. It names the signal."""


class StopRequest:
    """Whether a signal has asked the run to stop.

    Attributes:
      signal_name: name of the signal; empty without one.
      at_once: whether there is nothing to save, so that a signal may end the run anywhere.
    """

    def __init__(self, *, at_once: bool = False):
        self.signal_name = ""
        self.at_once = at_once
        self._handled = threading.Event()

    def check(self) -> None:
        """Raises Stopped if so. To be called where nothing is lost."""
        if self.signal_name:
            raise Stopped(self.signal_name)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets a signal end the block only where it calls `check`, as it has something to save."""
        before, self.at_once = self.at_once, False
        try:
            yield
        finally:
            self.at_once = before
        if self.at_once:
            self.check()

    def handle(self, number: int, _frame: object = None) -> None:
        """Handles a signal, in the main thread, which has to be between two instructions."""
        ends = self.at_once or bool(self.signal_name)
        self.signal_name = signal.Signals(number).name
        self._handled.set()
        if ends:
            self.check()

    def watch(self, numbers: socket.socket) -> None:
        """Answers the numbers of signals, in a thread, also while the main thread is in a call.

        Ends the process where the main thread does not, as while it compiles a program.
        """
        asked = False
        while number := numbers.recv(1):
            if number[0] not in _SIGNALS:
                continue
            name = signal.Signals(number[0]).name
            if asked:
                numbers.settimeout(_GRACE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    if not numbers.recv(1):
                        return  # the main thread has ended it
                _exit(name)
            if not self.at_once:
                _print(f"{name}: stopping in good order, within seconds; once more to end at once.")
            elif not self._handled.wait(_GRACE_SECONDS):
                _exit(name)
            asked = True


@contextlib.contextmanager
def stop_signals(*, at_once: bool = False) -> Iterator[StopRequest]:
    """Takes SIGTERM, SIGINT and SIGHUP as requests to stop; a second one raises Stopped at once.

    With `at_once` the first signal raises Stopped at once: there is nothing to save. A process that
    then does not end within seconds is ended. SIGHUP, of a terminal that is lost, stays ignored
    under `nohup`.
    """
    request = StopRequest(at_once=at_once)
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread can handle signals
        return
    signals_end, watcher_end = socket.socketpair()
    signals_end.setblocking(False)
    watcher = threading.Thread(target=request.watch, args=(watcher_end,), daemon=True)
    watcher.start()
    no_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    taken = [each for each in _SIGNALS if each != signal.SIGHUP or not no_hangup]
    before = {number: signal.signal(number, request.handle) for number in taken}
    outer = signal.set_wakeup_fd(signals_end.fileno(), warn_on_full_buffer=False)
    try:
        yield request
    finally:
        signal.set_wakeup_fd(outer)
        for number, handler in before.items():
            signal.signal(number, handler)
        signals_end.close()
        watcher.join()
        watcher_end.close()


def _print(line: str) -> None:
    os.write(2, f"\n{line}\n".encode())  # which the main thread cannot be in the middle of


def _exit(name: str) -> None:
    _print(f"Stopped by {name}. The same command continues.")
    os._exit(EXIT_CODE)
