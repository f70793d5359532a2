"""Tests of `qam_jax.data.inspection`, on data whose answers are known."""

import re

import jax
import numpy as np
import pytest

from qam_jax.data.dataset import layout
from qam_jax.data.inspection import inspect, verdict


def _data(lengths=(4, 2), **columns):
    """Episodes of so many transitions; the first one completes its task at its last step."""
    ends = np.cumsum(np.add(lengths, 1)) - 1
    num_rows = ends[-1] + 1
    terminals = np.zeros(num_rows)
    terminals[ends] = 1
    rng = np.random.default_rng(0)
    masks, rewards = np.ones(num_rows), np.full(num_rows, -1.0)
    masks[ends[0] - 1] = rewards[ends[0] - 1] = 0
    data = {
        "observations": rng.normal(size=(num_rows, 3)),
        "actions": rng.uniform(-0.9, 0.9, (num_rows, 2)),
        "terminals": terminals,
        "rewards": rewards,
        "masks": masks,
    }
    return {**data, **columns}


def _inspect(horizon_length=2, discount=0.99, **columns):
    return inspect(layout(_data(**columns)), horizon_length, discount)


def test_episodes_and_rewards():
    found = _inspect()
    np.testing.assert_array_equal(found.lengths, [4, 2])
    np.testing.assert_array_equal(found.returns, [-3, -2])
    np.testing.assert_array_equal(found.completed, [True, False])
    np.testing.assert_array_equal(found.rewards, [-1, 0])
    np.testing.assert_allclose(found.reward_shares, [5 / 6, 1 / 6])
    assert verdict(found) == [
        "33% of the windows of 2 rows end after their episode, and train no critic: choose a "
        "shorter --config.horizon_length."
    ]


@pytest.mark.parametrize(
    ("horizon", "cut", "completed", "short"),
    # of the starts 0 to 3 and 0 to 1: windows that fit begin at 0 to 4 - H and at 0 to 2 - H
    [(1, 0, 1, 0), (2, 2, 1, 0), (3, 4, 1, 1), (4, 5, 1, 1)],
)
def test_windows(horizon, cut, completed, short):
    windows = _inspect(horizon).windows
    assert windows.cut == pytest.approx(cut / 6)
    assert windows.completed == pytest.approx(completed / 6)
    assert windows.short_episodes == short


@pytest.mark.parametrize(
    ("rewards", "discount", "bounds"),
    [([-1, 0], 0.99, (-100, 0)), ([0, 2], 0.5, (0, 4)), ([1, 2], 0.9, (1, 20)),
     ([-1, 0], 1.0, (-np.inf, 0))],
)  # fmt: skip
def test_bounds_of_values(rewards, discount, bounds):
    column = np.resize(rewards, 8).astype(float)
    np.testing.assert_allclose(_inspect(2, discount, rewards=column).windows.values, bounds)


def test_a_reward_that_completes_the_task_is_the_last_one():
    rewards = np.zeros(8)
    rewards[3] = 1  # where the first episode completes its task
    assert _inspect(2, 0.99, rewards=rewards).windows.values == (0, 1)
    goes_on = _inspect(2, 0.99, rewards=rewards, masks=np.ones(8))
    np.testing.assert_allclose(goes_on.windows.values, (0, 100))


def test_dimensions():
    observations = np.zeros((8, 4))
    observations[:, 1] = observations[:, 3] = np.arange(8)
    actions = np.full((8, 2), 0.995)
    actions[:, 1] = [-1, 1, 1, 0, 7, 0, 0, 7]  # rows 4 and 7 hold final observations only
    found = _inspect(observations=observations, actions=actions)
    np.testing.assert_array_equal(found.observations.same_as, [0, 1, 0, 1])
    np.testing.assert_array_equal(found.observations.constant, [True, False, True, False])
    np.testing.assert_array_equal(found.observations.high, [0, 7, 0, 7])
    assert found.observations.mean[1] == 3.5
    np.testing.assert_allclose(found.at_limits, [1, 0.5])
    np.testing.assert_allclose(found.clipped, [0, 0.5])


def test_padding_of_shards_is_left_out():
    dataset = layout(_data())
    pad = {
        name: np.concatenate([array, array[:1].repeat(5, axis=0)])
        for name, array in vars(dataset).items()
        if name != "num_starts"
    }
    padded = inspect(dataset.replace(**pad), 2, 0.99)
    jax.tree.map(np.testing.assert_array_equal, padded, inspect(dataset, 2, 0.99))
    with pytest.raises(ValueError, match="no transition"):
        inspect(dataset.replace(num_starts=np.int32(0)), 2, 0.99)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({}, "Nothing stands in the way"),
        ({"masks": np.ones(8), "rewards": -np.ones(8)}, "No episode has a success, and every rew"),
        ({"masks": np.ones(8)}, "No episode completes the task .* from -1 to 0"),
        ({"rewards": np.zeros(8)}, "Every reward is 0"),
        ({"actions": np.ones((8, 2))}, "All actions are within 1% of -1 or 1"),
        ({"actions": np.resize([1, 0.5, -1], (8, 2))}, "58% of the actions are within"),
        ({"actions": np.resize([0.5, 0.2, 0.3], (8, 2)) * [0, 1]}, "Constant actions: dimension 0"),
        ({"actions": np.resize([0.01, 0.02, 0.03], (8, 2))}, "No action is beyond 0.03"),
        ({"observations": np.arange(24).reshape(8, 3) * [1, 1e3, 1]}, "--normalize_observations"),
        ({"observations": np.arange(24).reshape(8, 3) * [0, 0.1, 0]}, "ns: dimensions 0, 2. They"),
    ],
)
def test_verdicts(columns, sentence):
    found = verdict(_inspect(1, **columns))
    assert any(re.search(sentence, each) for each in found), found


@pytest.mark.parametrize(
    ("horizon", "sentence"),
    [(3, "1 of 2 episodes are shorter than a chunk of 3"), (5, "No window that counts")],
)
def test_verdicts_on_windows(horizon, sentence):
    assert any(sentence in each for each in verdict(_inspect(horizon)))
