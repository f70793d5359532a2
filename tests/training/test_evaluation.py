import contextlib
import os
import sys
from functools import partial

import cloudpickle
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import get_config, make_agent
from qam_jax.envs import EnvFailure, EnvPool
from qam_jax.training.evaluation import (
    Episode,
    Evaluator,
    describe,
    episode_seed,
    make_policy,
    run_episodes,
    summarize,
)

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


@pytest.fixture(name="envs", scope="module")
def _envs():
    """Three environments; evaluations may share them, since each drops earlier episodes."""
    envs = EnvPool(Walk, 3, 3, max_crashes=0)
    yield envs
    envs.close()


@pytest.fixture(name="expected", scope="module")
def _expected(envs):
    """Seven episodes without disturbances."""
    return run_episodes(_noisy_policy, envs, 7, 0)


def _run(num_envs, num_episodes=7, seed=0, env_fn=Walk, max_crashes=0):
    envs = EnvPool(env_fn, 3, num_envs, max_crashes=max_crashes)
    with contextlib.closing(envs):
        return run_episodes(_noisy_policy, envs, num_episodes, seed)


def _assert_same(episodes, expected):
    assert len(episodes) == len(expected)
    for first, second in zip(episodes, expected, strict=True):
        assert first[:3] == second[:3]
        np.testing.assert_array_equal(first.positions, second.positions)


def _noisy_policy(observations, episodes, chunks):
    """Depends on the episode and the chunk, as a sampled policy does."""
    actions = [
        np.random.default_rng([episode, chunk]).uniform(-0.3, 0.6, size=(3, 1))
        for episode, chunk in zip(episodes, chunks, strict=True)
    ]
    return np.array(actions, np.float32)


def test_results_do_not_depend_on_how_many_environments_run_side_by_side(envs, expected):
    _assert_same(_run(1), expected)
    assert len({episode.positions[0, 0] for episode in expected}) == 7  # a seed of its own for each
    other = run_episodes(_noisy_policy, envs, 3, seed=1)
    assert other[0].positions[0, 0] != expected[0].positions[0, 0]


def test_positions_and_lengths_are_those_of_every_step(expected):
    for episode in expected:
        np.testing.assert_array_equal(episode.positions[:, 1], np.arange(1, episode.length + 1))
        assert episode.episode_return == -episode.length
        assert episode.success == (episode.positions[-1, 0] > 2)


def test_policy_is_called_once_per_chunk_for_all_environments(envs):
    calls = []

    def policy(observations, episodes, chunks):
        calls.append((len(observations), tuple(chunks)))
        return np.zeros((len(observations), 3, 1), np.float32)

    run_episodes(policy, envs, 3, 0)
    # 20 steps in chunks of 3: 7 calls, each for all 3 environments.
    assert calls == [(3, (chunk,) * 3) for chunk in range(7)]


def test_an_agents_policy_is_fixed_by_seed_episode_and_chunk():
    config = get_config("bc")
    config.update(actor_hidden_dims=(8,), flow_steps=2, horizon_length=3)
    agent = make_agent(config)
    state = agent.init(jax.random.PRNGKey(0), jnp.zeros(1), jnp.zeros(1))
    policy = make_policy(agent)(state, jax.random.PRNGKey(5))
    observations = np.zeros((4, 1))
    actions = policy(observations, np.array([0, 1, 0, 0]), np.array([0, 0, 1, 0]))
    assert actions.shape == (4, 3, 1)
    np.testing.assert_array_equal(actions[0], actions[3])
    assert not np.array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])
    alone = policy(observations[:1], np.array([0]), np.array([1]))
    np.testing.assert_allclose(alone[0], actions[2], rtol=1e-5)
    other_policy = make_policy(agent)(state, jax.random.PRNGKey(6))
    other = other_policy(observations, np.arange(4), np.zeros(4, int))
    assert not np.array_equal(other[0], actions[0])


class Crashing(Walk):
    """Fails in the middle of an episode, as often as there are tokens in a folder."""

    def __init__(self, folder, fault):
        self._folder, self._fault = folder, fault

    def step(self, action):
        result = super().step(action)
        if self._steps == 5:
            for token in sorted(self._folder.iterdir())[:1]:
                token.unlink(missing_ok=True)
                self._fault()
        return result


def _raise():
    raise RuntimeError("lost contact")


@pytest.mark.parametrize("fault", [_raise, partial(os._exit, 1)])
def test_a_crash_does_not_change_the_results(expected, tmp_path, fault):
    for token in ("first", "second"):
        (tmp_path / token).touch()
    crashed = _run(2, env_fn=partial(Crashing, tmp_path, fault), max_crashes=5)
    assert not list(tmp_path.iterdir())
    _assert_same(crashed, expected)


def test_crashes_without_end_are_an_error(tmp_path):
    for token in range(9):
        (tmp_path / str(token)).touch()
    with pytest.raises(EnvFailure, match=r"crashed 2 times.*lost contact"):
        _run(2, env_fn=partial(Crashing, tmp_path, _raise), max_crashes=1)


def test_an_evaluation_can_be_abandoned_and_repeated(expected):
    calls = []

    def on_wait():
        calls.append(None)
        if calls[0] == "started" and len(calls) == 6:
            raise KeyboardInterrupt

    with contextlib.closing(EnvPool(Walk, 3, 3, max_crashes=0, on_wait=on_wait)) as envs:
        calls[:] = ["started"]
        with pytest.raises(KeyboardInterrupt):
            run_episodes(_noisy_policy, envs, 7, 0)
        _assert_same(run_episodes(_noisy_policy, envs, 7, 0), expected)


def test_seeds_of_episodes_do_not_depend_on_how_many_there_are():
    # Those of all published figures.
    seeds = [int(value) for value in np.random.SeedSequence(3).generate_state(50)]
    assert [episode_seed(3, episode) for episode in range(50)] == seeds


_OWN = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Slope(gymnasium.Env):
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-2, 3, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._height = self.np_random.uniform()
        return np.array([self._height, 1], np.float32), {}

    def step(self, action):
        self._height += float(action[0])
        return np.array([self._height, 1], np.float32), self._height, False, False, {}


gymnasium.register("Slope-v0", Slope, max_episode_steps=6)
"""


@pytest.fixture(name="cloning", scope="module")
def _cloning():
    config = get_config("bc")
    config.update(actor_hidden_dims=(8,), flow_steps=2, horizon_length=3)
    agent = make_agent(config)
    return agent, agent.init(jax.random.PRNGKey(0), jnp.zeros(2), jnp.zeros(1))


def test_evaluation_of_an_environment_of_ones_own(tmp_path, monkeypatch, cloning, capsys):
    (tmp_path / "own_slope.py").write_text(_OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    agent, state = cloning
    runs = []
    for num_envs in (1, 2):
        evaluator = Evaluator(
            "Slope-v0", num_episodes=3, num_envs=num_envs, env_module="own_slope", max_crashes=0
        )
        runs.append(evaluator.evaluate(agent, state))
        evaluator.close()
    returns = [[episode.episode_return for episode in run] for run in runs]
    np.testing.assert_allclose(returns[0], returns[1], rtol=1e-5)
    assert capsys.readouterr().err.count("evaluation:   0%") >= 2  # a bar for each
    assert {episode.length for episode in runs[0]} == {6}
    assert np.isnan([episode.success for episode in runs[0]]).all()


def test_a_faulty_environment_is_found_by_one_step(tmp_path, monkeypatch):
    (tmp_path / "own_mistake.py").write_text(_OWN.replace("False, False, {}", "False, {}"))
    monkeypatch.syspath_prepend(str(tmp_path))
    evaluator = Evaluator("Slope-v0", num_episodes=1, env_module="own_mistake", max_crashes=9)
    with (
        contextlib.closing(evaluator),
        pytest.raises(
            EnvFailure,
            match=r"'Slope-v0' fails .*before training: .*expected 5, got 4.*\(observation, ",
        ),
    ):
        evaluator.check(np.zeros((5, 1)))


def test_without_success_a_summary_speaks_of_the_return():
    def episodes(*successes):
        return [Episode(s, 10.0 + 4 * i, 7, np.zeros((0, 2))) for i, s in enumerate(successes)]

    silent = episodes(np.nan, np.nan)
    summary = summarize(silent)
    assert all(np.isnan(summary[name]) for name in ("success", "success_low", "success_high"))
    assert summary["return"] == 12
    assert describe(silent) == "return 12.0 (sd 2.0) of 2 episodes, length 7"
    assert summarize(episodes(1.0, np.nan))["success"] == 0.5
    assert describe(episodes(1.0, 0.0)).startswith("success 50% of 2 episodes")


def test_more_environments_than_episodes_are_refused(envs):
    with pytest.raises(ValueError, match="3 environments for 2 episodes"):
        run_episodes(_noisy_policy, envs, 2, 0)


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
