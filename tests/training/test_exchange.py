"""Messages between processes, here between threads over a service in memory."""

import concurrent.futures
import threading

import numpy as np

from qam_jax.runs.stopping import Stopped
from qam_jax.training.exchange import (
    Exchange,
    OtherProcessError,
    from_first,
    gather,
    is_first,
    pack_arrays,
    process_count,
    unpack_arrays,
)


class _Service:
    """JAX's client of the coordination service, as far as it is used; its waiting always times
    out once before the value arrives."""

    def __init__(self):
        self.values, self._changed = {}, threading.Condition()
        self._tried = set()

    def key_value_set_bytes(self, key, value):
        with self._changed:
            assert key not in self.values
            self.values[key] = value
            self._changed.notify_all()

    def key_value_delete(self, key):
        del self.values[key]

    def blocking_key_value_get_bytes(self, key, _milliseconds):
        tried = (key, threading.get_ident())
        if tried not in self._tried:
            self._tried.add(tried)
            raise RuntimeError("DEADLINE_EXCEEDED: not there yet")
        with self._changed:
            assert self._changed.wait_for(lambda: key in self.values, timeout=30)
            return self.values[key]


def _in_each(function, service=None, count=3):
    """What a function of an exchange returns or raises in each of the processes."""
    service = service or _Service()
    exchanges = [Exchange(service, index, count) for index in range(count)]
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        futures = [threads.submit(function, each) for each in exchanges]
    return [future.exception() or future.result() for future in futures]


def _share(exchange, function):
    return exchange.from_first("it", function, str.encode, bytes.decode)


def test_all_get_what_each_gave():
    service = _Service()

    def talk(exchange):
        first = exchange.gather("number", exchange.index * 10)
        return first, [exchange.gather("number", None) for _ in range(5)][-1]

    assert _in_each(talk, service) == [([0, 10, 20], [None] * 3)] * 3
    assert len(service.values) == 3  # what all have read is gone


def test_all_get_what_the_first_alone_found():
    service, calls = _Service(), []

    def talk(exchange):
        results = [_share(exchange, lambda: calls.append(exchange.index) or "found")]
        exchange.gather("end", None)
        return results

    assert _in_each(talk, service) == [["found"]] * 3
    assert calls == [0]
    assert len(service.values) == 3


def test_all_stop_where_the_first_does():
    def stop():
        raise Stopped("SIGTERM")

    ends = _in_each(lambda exchange: _share(exchange, stop))
    assert [(type(end), str(end)) for end in ends] == [(Stopped, "SIGTERM")] * 3


def test_all_hear_of_an_error_in_the_first():
    def fail():
        raise ValueError("too bad")

    first, *others = _in_each(lambda exchange: _share(exchange, fail))
    assert isinstance(first, ValueError)
    for other in others:
        assert isinstance(other, OtherProcessError)
        assert str(other) == "process 0: too bad"


def test_processes_that_lost_step_notice():
    ends = _in_each(lambda exchange: exchange.gather(f"place {exchange.index}", None), count=2)
    assert "this one is at 'place 0', process 1 at 'place 1'" in str(ends[0])
    assert "this one is at 'place 1', process 0 at 'place 0'" in str(ends[1])


def test_arrays_survive():
    arrays = {"0/a": np.arange(3), "b": np.ones((2, 0), np.float32)}
    again = unpack_arrays(pack_arrays(arrays))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_a_process_alone_talks_to_itself():
    assert (process_count(), is_first()) == (1, True)
    assert gather("number", 7) == [7]
    value = object()  # that no message could hold
    assert from_first("it", lambda: value) is value
