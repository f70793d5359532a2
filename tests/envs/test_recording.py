"""Tests of `qam_jax.envs.recording` and of its command, `experiments/record_dataset.py`."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from qam_jax.data.npz import load_npz
from qam_jax.data.sources import load_own
from qam_jax.envs import EnvFailure, make_env
from qam_jax.envs.recording import load_policy, record_episodes

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


@pytest.fixture(name="env")
def _env():
    return gymnasium.wrappers.TimeLimit(_Line(), 4)


def test_rows_hold_what_happened(env):
    steps = iter([0.5, 0.5, 9.0, 0.0, 0.25, 0.25, 0.25])  # 9 is clipped, and ends an episode
    data = record_episodes(env, lambda *_: [next(steps)], 2)
    expected = {
        "observations": [[0], [0.5], [1], [0], [0], [0.25], [0.5]],
        "actions": [[0.5], [0.5], [1], [0], [0.25], [0.25], [0.25]],
        "terminals": [0, 0, 1, 0, 0, 0, 1],
        "rewards": [2] * 7,
        "masks": [1, 1, 0, 1, 1, 1, 1],
        "next_observations": [[0.5], [1], [2], [0], [0.25], [0.5], [0.75]],
    }
    assert {name: array.tolist() for name, array in data.items()} == expected


def test_an_episode_depends_on_its_number_alone(env):
    policy = load_policy("random", 1)
    first, both = (record_episodes(env, policy, n, seed=3) for n in (1, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, both[name][: len(array)])


@pytest.mark.parametrize("action", [[0.0, 0.0], [np.nan]])
def test_actions_that_make_no_sense(env, action):
    with pytest.raises(ValueError, match=r"expected finite numbers of shape \(1,\)"):
        record_episodes(env, lambda *_: action, 1)


def _failing(*_):
    raise KeyError("grip")


def test_whose_fault_a_failure_is_is_said(env, monkeypatch):
    with pytest.raises(ValueError, match=r"the policy failed: KeyError: 'grip', in episode 0\."):
        record_episodes(env, _failing, 1)
    monkeypatch.setattr(_Line, "step", _failing)
    with pytest.raises(EnvFailure, match=r"failed in episode 0 .*: KeyError: 'grip'"):
        record_episodes(env, load_policy("random", 1), 1)


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
