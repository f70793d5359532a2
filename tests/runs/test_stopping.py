"""Signals: a first one, a second one, and a main thread that cannot handle them."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from qam_jax.runs.stopping import EXIT_CODE, Stopped, StopRequest, stop_signals

_BOTH = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", _BOTH)
def test_a_signal_is_obeyed_where_the_run_asks(number):
    with pytest.raises(Stopped, match=number.name), stop_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.signal_name == number.name
        stop.check()


def test_a_block_with_something_to_save_is_not_interrupted():
    reached = False
    with pytest.raises(Stopped), stop_signals(at_once=True) as stop:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            reached = True
        raise AssertionError("it goes on after the block")
    assert reached and stop.at_once


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in _BOTH]
    threads = threading.active_count()
    with stop_signals(), stop_signals(at_once=True):
        assert [signal.getsignal(number) for number in _BOTH] != before
    assert [signal.getsignal(number) for number in _BOTH] == before
    assert threading.active_count() == threads


def test_another_thread_cannot_be_asked():
    requests = []

    def run():
        with stop_signals() as stop:
            requests.append(stop)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert isinstance(requests[0], StopRequest)


# Without signals in the main thread a call of C goes on for ever, as a compiler does for minutes.
_IN_A_CALL = """
import ctypes, signal
from qam_jax.runs import stopping
stopping._GRACE_SECONDS = 0.1
try:
    with stopping.stop_signals(at_once=True) as stop, {block}:
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping._SIGNALS)
        print("ready", flush=True)
        while True:
            ctypes.CDLL(None).pause()
except stopping.Stopped as stopped:  # where the signal comes before the call
    stopping._exit(str(stopped))
"""


def _start(block):
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_A_CALL.format(block=block)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", _BOTH)
def test_with_nothing_to_save_a_call_is_cut_short(number):
    process = _start("stopping.contextlib.nullcontext()")
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == EXIT_CODE
    assert errors == f"\nStopped by {number.name}. The same command continues.\n"


def test_amid_a_call_a_signal_is_answered_and_a_second_one_ends_it():
    process = _start("stop.deferred()")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    line = "SIGTERM: stopping in good order, within seconds; once more to end at once.\n"
    assert process.stderr.readline() == line
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == EXIT_CODE
    # A main thread that was busy finds both at once, the one with the lower number first.
    assert re.fullmatch(r"\nStopped by SIG(INT|TERM)\. The same command continues\.\n", errors)
