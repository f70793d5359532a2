"""The benchmark of delays, with an environment and a policy of numbers."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import real_time


class _Env:
    """Ends with success once an action is 31 or more."""

    def reset(self, *, seed):
        self.step_count, self.seed = 0, seed
        return np.zeros(1), {}

    def step(self, action):
        self.step_count += 1
        success = bool(action[0] >= 31)
        return np.full(1, self.step_count), -1.0, success, False, {"success": success}


def _policy():
    """Chunks of three: ten times the step of the observation, plus the row."""

    def act_chunk(observation, *_):
        return 10.0 * observation + np.arange(3.0)[:, None]

    return SimpleNamespace(act_chunk=act_chunk, reset=lambda: None, action_shape=(3, 1))


def test_an_episode_by_hand():
    """Actions are 0, 1, 2, 21, 22, 41: chunks start at rows 0, 1, 1."""
    result = real_time._run(_Env(), _policy(), 5, 1, None, mode="held")
    assert result.episode[:3] == (1.0, -6.0, 6)
    assert math.isclose(result.change, (1 + 1 + 19 + 1 + 19) / 5)
    waiting = real_time._run(_Env(), _policy(), 5, 1, None, mode="synchronous", idle=True)
    assert waiting.episode.length == 6  # 0, 1, 2, then 0 for one step, 30, 31
    row = real_time._row(1, "held", [result, result])
    assert row == "| 1 | held | 100% (34% to 100%) | 6 | 8.20 |"


@pytest.mark.parametrize(("text", "numbers"), [("0", [0]), ("1,3", [1, 3])])
def test_numbers(text, numbers):
    assert real_time._numbers(text) == numbers
