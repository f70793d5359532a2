"""The executor in simulated time, and in a thread; a policy of numbers shows whose rows act."""

import concurrent.futures
import contextlib
import itertools
import threading

import numpy as np
import pytest

from qam_jax.deploy import executor
from qam_jax.deploy.executor import ChunkExecutor, soft_mask


def _infer(observation, *_):
    """A chunk of 5: ten times the step of its observation, plus the row."""
    return 10.0 * observation + np.arange(5.0)[:, None]


def _run(steps, infer=_infer, **settings):
    with contextlib.closing(ChunkExecutor(infer, **settings)) as chunks:
        return [int(chunks.act(np.array([step]))[0]) for step in range(steps)]


def test_without_a_delay_every_mode_executes_the_chunks_as_they_are():
    for mode in executor.MODES:
        assert _run(7, mode=mode, delay=0) == [0, 1, 2, 3, 4, 50, 51]
        assert _run(5, mode=mode, delay=0, execution_horizon=2) == [0, 1, 20, 21, 40]


def test_the_old_chunk_goes_on_and_the_new_one_begins_at_the_row_of_its_step():
    assert _run(11, mode="held", delay=2) == [0, 1, 2, 3, 4, 32, 33, 34, 62, 63, 64]
    early = _run(8, mode="held", delay=1, execution_horizon=2)
    assert early == [0, 1, 2, 21, 22, 41, 42, 61]


def test_the_last_action_is_held_where_a_chunk_runs_out():
    assert _run(9, mode="held", delay=4, execution_horizon=4) == [0, 1, 2, 3, 4, 4, 4, 4, 44]
    late = _run(9, mode="held", delay=7, execution_horizon=1)  # longer than a chunk
    assert late == [0, 1, 2, 3, 4, 4, 4, 4, 14]


def test_synchronous_waits_and_acts_late():
    assert _run(9, mode="synchronous", delay=2) == [0, 1, 2, 3, 4, 4, 4, 50, 51]
    early = _run(6, mode="synchronous", delay=1, execution_horizon=2)
    assert early == [0, 1, 1, 20, 21, 21]
    still = _run(9, mode="synchronous", delay=2, idle_action=np.array([-1]))
    assert still == [0, 1, 2, 3, 4, -1, -1, 50, 51]


def test_real_time_tells_what_will_be_executed_and_what_the_old_chunk_has():
    calls = []

    def infer(observation, *known):
        calls.append((int(observation[0]), *known))
        return _infer(observation)

    settings = {"delay": 2, "execution_horizon": 2, "mode": "real_time"}
    actions = _run(7, infer, **settings)
    assert actions == _run(7, **settings | {"mode": "held"}) == [0, 1, 2, 3, 22, 23, 42]
    calls = calls[:4]  # the next one need not have run
    assert [call[0] for call in calls] == [0, 0, 2, 4]
    assert len(calls[0]) == 1
    np.testing.assert_array_equal(calls[1][2], np.zeros(5))  # compiled, and nothing is known
    np.testing.assert_array_equal(calls[2][1][:, 0], [2, 3, 4, 4, 4])
    np.testing.assert_array_equal(calls[3][1][:, 0], [22, 23, 24, 24, 24])
    for _, _, weights in calls[2:]:
        np.testing.assert_array_equal(weights, soft_mask(5, 2, 3))


def test_weights_by_hand():
    shares = np.array([3, 2, 1]) / 4  # overlap 5, delay 2
    expected = [1, 1, *(shares * (np.exp(shares) - 1) / (np.e - 1))]
    np.testing.assert_allclose(soft_mask(5, 2, 5), expected, rtol=1e-6)
    np.testing.assert_array_equal(soft_mask(4, 3, 1), [1, 1, 1, 0])  # held rows are known, too
    np.testing.assert_array_equal(soft_mask(3, 0, 0), [0, 0, 0])


class _Controlled(concurrent.futures.Executor):
    """A thread whose calls, but the first, end when the test says so."""

    def __init__(self):
        self.calls = []

    def submit(self, call, *inputs):
        future = concurrent.futures.Future()
        if not self.calls:
            future.set_result(call(*inputs))
        self.calls.append((future, call, inputs))
        return future

    def end_last(self):
        future, call, inputs = self.calls[-1]
        future.set_result(call(*inputs))


def test_in_real_time_the_delay_is_measured_and_the_first_is_not_counted(monkeypatch):
    thread = _Controlled()
    monkeypatch.setattr(executor.concurrent.futures, "ThreadPoolExecutor", lambda *_: thread)
    chunks = ChunkExecutor(_infer, mode="held", expected_delay=1)
    observation, steps = np.zeros(1), itertools.count()

    def act():
        observation[0] = next(steps)  # in place
        return int(chunks.act(observation)[0])

    assert [act() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert (chunks.execution_horizon, chunks.expected_delay) == (4, 1)
    assert [act(), act()] == [4, 4]
    assert len(thread.calls) == 2  # one at a time
    thread.end_last()  # of the inference of step 4, at step 7
    assert [act(), act()] == [43, 44]
    assert (chunks.execution_horizon, chunks.expected_delay) == (2, 3)
    assert len(thread.calls) == 3
    thread.end_last()
    chunks.reset()  # what was in progress belongs to the episode before
    thread.calls.clear()
    assert act() == 90


def test_a_real_thread_executes_the_policy():
    may_end = threading.Event()

    def infer(observation):
        if observation[0] > 0:
            may_end.wait()
        return _infer(observation)

    with contextlib.closing(ChunkExecutor(infer, mode="held", execution_horizon=2)) as chunks:
        assert [chunks.act(np.full(1, step))[0] for step in range(3)] == [0, 1, 2]
        may_end.set()
        chunks._pending.result()
        assert chunks.act(np.full(1, 3))[0] == 21


def test_errors_of_the_policy_reach_the_control_loop():
    def infer(observation):
        if observation[0] == 4:
            raise ValueError("no such observation")
        return _infer(observation)

    with contextlib.closing(ChunkExecutor(infer, mode="held", delay=1)) as chunks:
        for step in range(5):
            chunks.act(np.array([step]))
        with pytest.raises(ValueError, match="no such observation"):
            chunks.act(np.array([5]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "late"}, "one of synchronous, held, real_time, got 'late'"),
        ({"execution_horizon": 0}, "execution_horizon must be at least 1"),
        ({"delay": -1}, "at least 0 steps, got -1"),
        ({"execution_horizon": 6}, "execution_horizon = 6 is longer than a chunk of 5"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        _run(1, **{"mode": "held", **settings})


@pytest.mark.parametrize("chunk", [{"actions": np.zeros((2, 1))}, np.zeros(2), np.zeros((0, 1))])
def test_what_is_no_chunk_is_named(chunk):
    executor = ChunkExecutor(lambda _: chunk, mode="held", delay=0)
    with pytest.raises(
        ValueError, match=r"infer must return a chunk of actions, an array \[H, A\]"
    ):
        executor.act(np.zeros(1))
