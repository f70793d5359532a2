"""Environments that crash, and signals."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from functools import partial

import cloudpickle
import gymnasium
import numpy as np
import pytest

from qam_jax.envs import EnvFailure, EnvPool, EnvsRestarted

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes cannot import tests

_BOTH = np.ones(2, bool)
_ACTIONS = np.zeros((2, 3, 1), np.float32)


class Counter(gymnasium.Env):
    """Counts its steps up to 10, from its seed."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self._seed, self._steps = seed, 0
        return self._observation(), {}

    def step(self, action):
        self._steps += 1
        return self._observation(), 1.0, self._steps == 10, False, {}

    def _observation(self):
        return np.array([float(self._seed + self._steps)])


class Faulty(Counter):
    """Does something at the fifth step of the episode of seed 20."""

    def __init__(self, fault):
        self._fault = fault

    def step(self, action):
        result = super().step(action)
        if (self._seed, self._steps) == (20, 5):
            self._fault()
        return result


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")
        self.function = lambda: None


def _raise():
    raise UnpicklableError("the arm", "fell off")


def _start_pool(env_fn, num_envs=2, max_crashes=3, **kwargs):
    return EnvPool(env_fn, 3, num_envs, max_crashes=max_crashes, **kwargs)


@pytest.fixture
def make_pool():
    pools = []

    def make(*args, **kwargs):
        pools.append(_start_pool(*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_a_mask_selects_what_is_reset(make_pool):
    pool = make_pool(Counter)
    observations, info = pool.reset([10, 20], _BOTH)
    np.testing.assert_array_equal(observations, [[10], [20]])
    np.testing.assert_array_equal(info["num_steps"], [0, 0])
    pool.step(_ACTIONS)
    observations, info = pool.reset([0, 30], ~np.array([True, False]), {30: np.zeros((2, 1))})
    np.testing.assert_array_equal(observations, [[13], [32]])
    np.testing.assert_array_equal(info["episode_length"], [3, 2])
    observations, rewards, terminated, truncated, info = pool.step(_ACTIONS)
    np.testing.assert_array_equal(observations, [[16], [35]])
    np.testing.assert_array_equal(info["observations"][..., 0], [[14, 15, 16], [33, 34, 35]])
    np.testing.assert_array_equal(rewards, [3, 3])
    assert not terminated.any() and not truncated.any()


@pytest.mark.parametrize(
    ("fault", "message"),
    [(_raise, "UnpicklableError: the arm fell off"), (partial(os.abort), "ended by SIGABRT")],
)
def test_a_crash_restarts_all_environments(make_pool, caplog, capfd, fault, message):
    pool = make_pool(partial(Faulty, fault))
    pool.reset([10, 20], _BOTH)
    pool.step(_ACTIONS)
    before = multiprocessing.active_children()
    with caplog.at_level(logging.WARNING, "qam_jax"), pytest.raises(EnvsRestarted, match=message):
        pool.step(_ACTIONS)
    assert pool.crashes == 1
    (record,) = caplog.records
    assert message in record.getMessage() and "\n" not in record.getMessage()
    assert "Traceback" not in capfd.readouterr().err
    assert not any(process.is_alive() for process in before)
    observations, _ = pool.reset([10, 30], _BOTH)
    np.testing.assert_array_equal(observations, [[10], [30]])
    np.testing.assert_array_equal(pool.step(_ACTIONS)[0], [[13], [33]])


def test_values_that_are_not_finite_are_a_crash(make_pool):
    class Nan(Counter):
        def _observation(self):
            return super()._observation() if self._steps < 2 else np.array([np.nan])

    pool = make_pool(Nan, num_envs=1)
    pool.reset([10], _BOTH[:1])
    with pytest.raises(EnvsRestarted, match=r"observation\[0\] is nan after step 2 of .* seed 10 "):
        pool.step(_ACTIONS[:1])


@pytest.mark.slow
def test_too_many_crashes_end_in_an_error_that_says_what_to_do(make_pool):
    pool = make_pool(partial(Faulty, _raise), max_crashes=2)
    pool.crashes = 1  # of the run that this one continues
    for kind in (EnvsRestarted, EnvFailure):
        pool.reset([10, 20], _BOTH)
        pool.step(_ACTIONS)
        with pytest.raises(kind) as caught:
            pool.step(_ACTIONS)
    assert pool.crashes == 3
    for part in ("3 times", "UnpicklableError: the arm fell off", "raise --max_env_crashes"):
        assert part in str(caught.value)
    assert not multiprocessing.active_children()
    with pytest.raises(EnvsRestarted):
        pool.reset([10, 20], _BOTH)  # another attempt, which has no crash left
    assert pool.crashes == 3
    pool.reset([10, 30], _BOTH)


def test_an_environment_that_cannot_be_made_is_an_error_at_once(caplog):
    with pytest.raises(EnvFailure, match="cannot be made: UnpicklableError: the arm fell off"):
        _start_pool(_raise, num_envs=1)
    with pytest.raises(EnvFailure, match=r"cannot be made: .* exit code 3"):
        _start_pool(partial(os._exit, 3), num_envs=1)
    assert not caplog.records
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_restart_that_fails_is_a_crash_as_well(make_pool, tmp_path):
    class Once(Counter):
        """Cannot be made while two markers are there; makes one, and one at its first step."""

        def __init__(self):
            if len(list(tmp_path.iterdir())) == 2:
                (tmp_path / "crashed").unlink()
                raise RuntimeError("not made")

        def step(self, action):
            marker = tmp_path / "stepped"
            if not marker.exists():
                marker.touch()
                (tmp_path / "crashed").touch()
                raise RuntimeError("not stepped")
            return super().step(action)

    pool = make_pool(Once, num_envs=1, max_crashes=5)
    pool.reset([0], _BOTH[:1])
    with pytest.raises(EnvsRestarted, match="not stepped"):
        pool.step(_ACTIONS[:1])
    assert pool.crashes == 2
    pool.reset([0], _BOTH[:1])
    pool.step(_ACTIONS[:1])


def test_one_that_hangs_is_a_crash(make_pool, monkeypatch):
    pool = make_pool(partial(Faulty, signal.pause), max_crashes=0)
    pool.reset([10, 20], _BOTH)
    pool.step(_ACTIONS)
    monkeypatch.setattr(pool, "_timeout", 0.1)
    with pytest.raises(EnvFailure, match=r"more than 0.1 seconds to execute.*--env_timeout"):
        pool.step(_ACTIONS)
    assert not multiprocessing.active_children()
    with pytest.raises(EnvFailure, match=r"failed: an.* took more than 0.1 seconds to start"):
        pool.reset([10, 20], _BOTH)


def test_waiting_for_one_that_hangs_can_be_interrupted(make_pool):
    calls = []

    def on_wait():
        calls.append(None)
        if len(calls) == hanging + 2:  # the first call is before the step
            raise KeyboardInterrupt

    hanging = 10**9
    pool = make_pool(partial(Faulty, signal.pause), on_wait=on_wait)
    pool.reset([10, 20], _BOTH)
    pool.step(_ACTIONS)
    hanging = len(calls)
    with pytest.raises(KeyboardInterrupt):
        pool.step(_ACTIONS)
    assert not multiprocessing.active_children()


class Deaf(Counter):
    """Is sent the signals that end a process while it is made."""

    def __init__(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)


def test_processes_ignore_what_a_cluster_sends(make_pool):
    pool = make_pool(Deaf)
    pool.reset([10, 20], _BOTH)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    np.testing.assert_array_equal(pool.step(_ACTIONS)[0], [[13], [23]])
    pool.close()
    assert pool.crashes == 0
    assert not multiprocessing.active_children()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        pool.step(_ACTIONS)


def test_a_call_that_a_signal_interrupts_loses_the_episodes_and_no_more(make_pool):
    pool = make_pool(partial(Faulty, partial(os.kill, os.getpid(), signal.SIGUSR1)))
    pool.reset([10, 20], _BOTH)
    pool.step(_ACTIONS)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.step(_ACTIONS)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(EnvsRestarted, match="interrupted"):
        pool.step(_ACTIONS)
    assert pool.crashes == 0
    np.testing.assert_array_equal(pool.reset([10, 30], _BOTH)[0], [[10], [30]])


_SCRIPT = """
    import os, signal
    import gymnasium, numpy as np
    from qam_jax.envs import EnvPool
    if __name__ == "__main__":
        pool = EnvPool(lambda: gymnasium.make("Pendulum-v1"), 2, 2, max_crashes=0)
        pool.reset([1, 2], np.ones(2, bool))
        print("ready", flush=True)
        {end}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "status"), [("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL), ("pass", 0)]
)
def test_processes_end_quietly_with_the_one_that_started_them(tmp_path, end, status):
    """When it is killed, and when it forgets to close them."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(_SCRIPT).format(end=end))
    # Both streams are inherited, so they are closed only once the last process has ended.
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (status, "ready\n", "")
