import sys

import cloudpickle
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import get_config, make_agent
from qam_jax.envs import make_vector_env
from qam_jax.training.evaluation import Episode, make_policy, run_episodes, summarize

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes cannot import tests


class Walk(gymnasium.Env):
    """Walks by its actions from a seeded start; succeeds beyond 2, gives up after 20 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._steps = self.np_random.uniform(-1, 1), 0
        return np.array([self._place]), {}

    def step(self, action):
        self._place += float(action[0])
        self._steps += 1
        success = self._place > 2
        info = {"success": float(success), "xy": np.array([self._place, self._steps])}
        return np.array([self._place]), -1.0, success, self._steps == 20, info


def _run(policy, num_envs, num_episodes=7, seed=0):
    envs = make_vector_env(Walk, 3, num_envs)
    try:
        return run_episodes(policy, envs, num_episodes, seed)
    finally:
        envs.close()


def _noisy_policy(observations, episodes, chunks):
    """Depends on the episode and the chunk, as a sampled policy does."""
    actions = [
        np.random.default_rng([episode, chunk]).uniform(-0.3, 0.6, size=(3, 1))
        for episode, chunk in zip(episodes, chunks, strict=True)
    ]
    return np.array(actions, np.float32)


def test_results_do_not_depend_on_how_many_environments_run_side_by_side():
    alone, many = _run(_noisy_policy, 1), _run(_noisy_policy, 4)
    assert len(alone) == len(many) == 7
    for first, second in zip(alone, many, strict=True):
        assert first[:3] == second[:3]
        np.testing.assert_array_equal(first.positions, second.positions)
    assert len({episode.positions[0, 0] for episode in alone}) == 7  # a seed of its own for each
    assert _run(_noisy_policy, 2, seed=1)[0].positions[0, 0] != alone[0].positions[0, 0]


def test_positions_and_lengths_are_those_of_every_step():
    for episode in _run(_noisy_policy, 3):
        np.testing.assert_array_equal(episode.positions[:, 1], np.arange(1, episode.length + 1))
        assert episode.episode_return == -episode.length
        assert episode.success == (episode.positions[-1, 0] > 2)


def test_policy_is_called_once_per_chunk_for_all_environments():
    calls = []

    def policy(observations, episodes, chunks):
        calls.append((len(observations), tuple(chunks)))
        return np.zeros((len(observations), 3, 1), np.float32)

    _run(policy, 3, num_episodes=3)
    # 20 steps in chunks of 3: 7 calls, each for all 3 environments.
    assert calls == [(3, (chunk,) * 3) for chunk in range(7)]


def test_an_agents_policy_is_fixed_by_seed_episode_and_chunk():
    config = get_config("bc")
    config.update(actor_hidden_dims=(8,), flow_steps=2, horizon_length=3)
    agent = make_agent(config)
    state = agent.init(jax.random.PRNGKey(0), jnp.zeros(1), jnp.zeros(1))
    policy = make_policy(agent)(state, 5)
    observations = np.zeros((4, 1))
    actions = policy(observations, np.array([0, 1, 0, 0]), np.array([0, 0, 1, 0]))
    assert actions.shape == (4, 3, 1)
    np.testing.assert_array_equal(actions[0], actions[3])
    assert not np.array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])
    alone = policy(observations[:1], np.array([0]), np.array([1]))
    np.testing.assert_allclose(alone[0], actions[2], rtol=1e-5)
    other = make_policy(agent)(state, 6)(observations, np.arange(4), np.zeros(4, int))
    assert not np.array_equal(other[0], actions[0])


def test_more_environments_than_episodes_are_refused():
    with pytest.raises(ValueError, match="3 environments for 2 episodes"):
        _run(_noisy_policy, 3, num_episodes=2)


def test_interval_is_wilsons():
    episodes = [Episode(float(i < 45), -10.0, 10, np.zeros((0, 2))) for i in range(50)]
    summary = summarize(episodes)
    # Wilson's interval for 45 of 50, by its formula.
    z, n, p = 1.959964, 50, 0.9
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert summary["success"] == 0.9
    np.testing.assert_allclose(summary["success_low"], centre - half, rtol=1e-5)
    np.testing.assert_allclose(summary["success_high"], centre + half, rtol=1e-5)
    perfect = summarize([Episode(1.0, 0.0, 1, np.zeros((0, 2)))] * 50)
    assert perfect["success_high"] == 1.0 > perfect["success_low"] > 0.9
