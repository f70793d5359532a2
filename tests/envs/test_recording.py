"""Tests of `qam_jax.envs.recording` and of its command, `experiments/record_dataset.py`."""

import contextlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import cloudpickle
import gymnasium
import numpy as np
import pytest

from qam_jax.data.npz import load_npz
from qam_jax.data.sources import load_own
from qam_jax.envs import EnvFailure, EnvPool, make_env
from qam_jax.envs.recording import load_policy, record_episodes

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes cannot import tests

_SCRIPT = Path(__file__).parents[2] / "experiments" / "record_dataset.py"


class _Line(gymnasium.Env):
    """A point on a line, which its actions move; the episode ends beyond 1."""

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place = np.zeros(1, np.float32)
        return self._place, {}

    def step(self, action):
        self._place += action  # in place: what was returned before changes too
        return self._place, 2.0, bool(self._place > 1), False, {}


def _make_line(fault=None):
    if fault:
        _Line.step = fault
    return gymnasium.wrappers.TimeLimit(_Line(), 4)


def _record(policy, *args, fault=None, **kwargs):
    pool = EnvPool(partial(_make_line, fault), 1, 1, max_crashes=0)
    with contextlib.closing(pool):
        return record_episodes(pool, policy, 1, *args, **kwargs)


def test_rows_hold_what_happened():
    steps = iter([0.5, 0.5, 9.0, 0.0, 0.25, 0.25, 0.25])  # 9 is clipped, and ends an episode
    data = _record(lambda *_: [next(steps)], 2)
    expected = {
        "observations": [[0], [0.5], [1], [0], [0], [0.25], [0.5]],
        "actions": [[0.5], [0.5], [1], [0], [0.25], [0.25], [0.25]],
        "terminals": [0, 0, 1, 0, 0, 0, 1],
        "rewards": [2] * 7,
        "masks": [1, 1, 0, 1, 1, 1, 1],
        "next_observations": [[0.5], [1], [2], [0], [0.25], [0.5], [0.75]],
    }
    assert {name: array.tolist() for name, array in data.items()} == expected


def test_an_episode_depends_on_its_number_alone():
    policy = load_policy("random", 1)
    first, both = (_record(policy, n, seed=3) for n in (1, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, both[name][: len(array)])


@pytest.mark.parametrize("action", [[0.0, 0.0], [np.nan]])
def test_actions_that_make_no_sense(action):
    with pytest.raises(ValueError, match=r"expected finite numbers of shape \(1,\)"):
        _record(lambda *_: action, 1)


def _failing(*_):
    raise KeyError("grip")


def _leaving(*_):
    sys.exit(0)


@pytest.mark.parametrize(
    ("fault", "error"), [(_failing, "KeyError: 'grip'"), (_leaving, "SystemExit: 0")]
)
def test_whose_fault_a_failure_is_is_said(fault, error):
    place = r"line \d+ of .*test_recording\.py"
    with pytest.raises(ValueError, match=rf"the policy failed: {error}, {place}, in episode 0\."):
        _record(fault, 1)
    with pytest.raises(EnvFailure, match=f"^episode 0: the environment failed: {error}"):
        _record(load_policy("random", 1), 1, fault=fault)


@pytest.mark.parametrize("name", ["mine", "no_such_one:act", "math:no_such_one", "math:pi"])
def test_policies_that_are_not_there(name):
    with pytest.raises(ValueError, match=f"the policy '{name}' cannot be imported.*PYTHONPATH"):
        load_policy(name, 1)


def test_the_command_records_what_training_reads(tmp_path):
    def run(*arguments):
        command = [sys.executable, str(_SCRIPT), "--num_episodes=2", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        return result.stdout or result.stderr.splitlines()[-1]

    assert "Wrote Pendulum-v1.npz: 2 episodes, 400 steps, mean" in run("--env_name=Pendulum-v1")
    data = load_npz(tmp_path / "Pendulum-v1.npz")
    assert data["terminals"].sum() == 2
    source = load_own(tmp_path / "Pendulum-v1.npz", make_env("Pendulum-v1"))
    assert source.dataset.num_starts == 400
    assert "exists and is kept" in run("--env_name=Pendulum-v1")
    assert "Give --env_name=<id>" in run()
