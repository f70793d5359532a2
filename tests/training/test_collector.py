import collections
import sys

import cloudpickle
import gymnasium
import numpy as np
import pytest

from qam_jax.data.replay import EpisodeSoFar
from qam_jax.envs import EnvPool
from qam_jax.training.collector import Collector, random_policy

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes cannot import tests


class Walk(gymnasium.Env):
    """Walks by its actions from a seeded start; terminates beyond 2, is truncated after 8 steps.

    The reward is the place, made 0 where it is negative.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._steps = self._start(), 0
        return np.array([self._place, 0.0]), {}

    def step(self, action):
        self._place += float(action[0])
        self._steps += 1
        done = self._place > 2
        observation = np.array([self._place, self._steps])
        return observation, max(0.0, self._place), done, self._steps == 8, {"success": done}

    def _start(self):
        return self.np_random.uniform(-1, 1)


class Unsteady(Walk):
    """Forgets its seed; starts too far from the end to reach it in one chunk."""

    def _start(self):
        return np.random.default_rng().uniform(-3, -2)


class Fragile(Walk):
    """Breaks at an action that no policy gives."""

    def step(self, action):
        if action[0] < -5:
            raise RuntimeError("the simulator broke")
        return super().step(action)


def _policy(observations, episodes, chunks):
    """Depends on the episode and the chunk, as a sampled policy does."""
    actions = [
        np.random.default_rng([episode, chunk]).uniform(-0.4, 0.9, size=(3, 1))
        for episode, chunk in zip(episodes, chunks, strict=True)
    ]
    return np.array(actions, np.float32)


@pytest.fixture(name="pools", scope="module")
def _pools():
    """Environments by their kind, number and use in a test; several tests may share them."""
    pools = {}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(name="collect")
def _collect(pools):
    """Makes collectors, each in environments that no other one of the test uses."""
    used = collections.Counter()

    def make(env=Walk, num_envs=1, **arguments):
        key = env, num_envs, used[env, num_envs]
        used[env, num_envs] += 1
        if key not in pools:
            pools[key] = EnvPool(env, 3, num_envs, max_crashes=2)
        return Collector(pools[key], 0, **arguments)

    return make


def _gather(collector, num_rounds, policy=_policy):
    """The transitions of each episode, and the episodes that ended."""
    episodes, finished = {}, {}
    for _ in range(num_rounds):
        experience = collector.gather(policy)
        finished |= experience.finished
        for row, episode in enumerate(experience.episodes):
            episodes.setdefault(int(episode), []).append(
                np.concatenate([np.atleast_1d(a[row]) for a in _arrays(experience)])
            )
    return {number: np.array(rows) for number, rows in episodes.items()}, finished


def _arrays(experience):
    data = experience.transitions
    return data.observations, data.actions, data.rewards, data.masks, data.next_observations


_OBSERVATION, _ACTION, _REWARD, _MASK, _NEXT = slice(0, 2), 2, 3, 4, slice(5, 7)


def test_episodes_are_the_same_however_many_environments_gather_them(collect):
    alone, finished = _gather(collect(num_envs=1), 40)
    many, finished_of_many = _gather(collect(num_envs=3), 14)
    common = finished.keys() & finished_of_many.keys()
    assert len(common) > 8
    for episode in common:
        np.testing.assert_array_equal(alone[episode], many[episode])
        assert finished[episode][:3] == finished_of_many[episode][:3]
    assert len({tuple(rows[0, _OBSERVATION]) for rows in alone.values()}) == len(alone)


def test_rewards_are_scaled_after_they_are_sparse(collect):
    plain, episodes = _gather(collect(), 12)
    for sparse in (False, True):
        shaped = {"sparse": sparse, "reward_scale": 0.5, "reward_bias": 3.0}
        scaled, same_episodes = _gather(collect(**shaped), 12)
        for number, rows in plain.items():
            rewards = -(rows[:, _REWARD] != 0).astype(float) if sparse else rows[:, _REWARD]
            np.testing.assert_allclose(scaled[number][:, _REWARD], 0.5 * rewards + 3, rtol=1e-6)
            np.testing.assert_array_equal(scaled[number][:, _MASK], rows[:, _MASK])
        for number, episode in episodes.items():
            assert same_episodes[number].episode_return == episode.episode_return


def test_transitions_say_what_happened(collect):
    episodes, finished = _gather(collect(), 40)
    endings = set()
    for number, episode in finished.items():
        rows = episodes[number]
        assert len(rows) == episode.length <= 8
        np.testing.assert_array_equal(rows[1:, _OBSERVATION], rows[:-1, _NEXT])
        np.testing.assert_allclose(rows[:, 0] + rows[:, _ACTION], rows[:, 5], rtol=1e-5)
        np.testing.assert_allclose(rows[:, _REWARD].sum(), episode.episode_return, rtol=1e-5)
        np.testing.assert_array_equal(rows[:-1, _MASK], 1)
        terminated = rows[-1, 5] > 2
        assert rows[-1, _MASK] == 1 - terminated  # a truncated episode has value beyond its end
        assert episode.success == terminated
        assert terminated or episode.length == 8
        endings.add(terminated)
    assert endings == {True, False}


def test_sparse_rewards(collect):
    episodes, _ = _gather(collect(sparse=True), 10)
    plain, _ = _gather(collect(), 10)
    rewards = np.concatenate([rows[:, _REWARD] for rows in episodes.values()])
    expected = np.concatenate([rows[:, _REWARD] for rows in plain.values()])
    np.testing.assert_array_equal(rewards, np.where(expected != 0, -1, 0))
    assert set(rewards) == {-1, 0}


def _continued(collect, env, num_rounds):
    """A collector, and another that goes on from what the first saved."""
    first = collect(env, num_envs=2)
    episodes, finished = _gather(first, num_rounds)
    so_far = {
        number: EpisodeSoFar(rows[:, _ACTION : _ACTION + 1], rows[-1, _NEXT])
        for number, rows in episodes.items()
        if number not in finished
    }
    second = collect(env, num_envs=2)
    second.restore(first.save(), so_far)
    return first, second


@pytest.mark.parametrize("num_rounds", [0, 1, 5])
def test_a_continued_collector_goes_on_with_the_episodes_in_progress(collect, num_rounds):
    first, second = _continued(collect, Walk, num_rounds)
    expected, given = _gather(first, 6), _gather(second, 6)
    assert expected[0].keys() == given[0].keys()
    for episode, rows in expected[0].items():
        np.testing.assert_array_equal(given[0][episode], rows)
    assert [e[:3] for e in expected[1].values()] == [e[:3] for e in given[1].values()]


def test_a_simulator_that_does_not_come_back_starts_new_episodes(collect, caplog):
    _, second = _continued(collect, Unsteady, 1)
    assert "2 of 2 environments did not come back" in caplog.text
    episodes, _ = _gather(second, 1)
    assert set(episodes) == {2, 3}
    assert all(rows[0, 1] == 0 for rows in episodes.values())


def test_a_crash_gives_up_the_episodes_in_progress_and_goes_on(collect):
    collector, calls = collect(Fragile, num_envs=2), []

    def fatal_once(observations, episodes, chunks):
        calls.append(list(episodes))
        actions = _policy(observations, episodes, chunks)
        if len(calls) == 2:
            actions[0] = -9
        return actions

    episodes, _ = _gather(collector, 4, fatal_once)
    assert collector.pool.crashes == collector.save()["crashes"] == 1
    assert calls[:3] == [[0, 1], [0, 1], [2, 3]]  # new numbers, so no window spans the gap
    assert [len(episodes[number]) for number in (0, 1)] == [3, 3]


def test_random_actions_are_uniform_and_the_episodes_own():
    policy = random_policy(0, (5, 2))
    episodes = np.arange(400)
    actions = policy(None, episodes, np.zeros(400, int))
    assert actions.shape == (400, 5, 2)
    assert np.abs(actions).max() <= 1
    assert abs(actions.std() - 1 / np.sqrt(3)) < 0.02
    np.testing.assert_array_equal(policy(None, episodes[7:8], np.zeros(1, int))[0], actions[7])
    assert not np.array_equal(policy(None, episodes[7:8], np.ones(1, int))[0], actions[7])
