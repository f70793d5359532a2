import gymnasium
import numpy as np
import pytest

from qam_jax.data.normalization import Normalization
from qam_jax.envs import OpenLoopChunks, OwnRandomState, make_env

_ENV_NAME = "pointmaze-medium-navigate-singletask-v0"
_SLOW_ENV = pytest.param("cube-single-play-singletask-task2-v0", marks=pytest.mark.slow)


class Countdown(gymnasium.Env):
    """Ends after `length` steps; draws from the global random state, as OGBench's mazes do."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length):
        self._length, self.actions = length, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left, self.actions = self._length, []
        return self._observation(), {}

    def step(self, action):
        self._left -= 1
        self.actions.append(float(action[0]))
        info = {"success": float(self._left == 0), "xy": np.array([self._left, 0.5])}
        return self._observation(), -1.0, self._left == 0, False, info

    def _observation(self):
        return np.array([self._left, np.random.rand()])  # noqa: NPY002


def test_chunks_run_open_loop_and_stop_at_the_end():
    env = OpenLoopChunks(Countdown(5), 3)
    assert env.action_space.shape == (3, 1)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.array([[0.1], [0.2], [0.3]]))
    assert (reward, terminated, info["success"]) == (-3, False, 0)
    np.testing.assert_array_equal(info["positions"], [[4, 0.5], [3, 0.5], [2, 0.5]])
    observation, reward, terminated, _, info = env.step(np.array([[0.4], [0.5], [0.6]]))
    assert (reward, terminated, info["success"]) == (-2, True, 1)
    assert (info["episode_return"], info["episode_length"]) == (-5, 5)
    np.testing.assert_array_equal(info["positions"], [[1, 0.5], [0, 0.5], [np.nan, np.nan]])
    np.testing.assert_allclose(env.unwrapped.actions, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    again, reward, terminated, _, info = env.step(np.array([[0.7], [0.8], [0.9]]))
    assert (reward, terminated, info["episode_length"]) == (0, True, 5)  # waits for its reset
    np.testing.assert_array_equal(again, observation)


def test_random_state_is_each_environments_own():
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.RandomState(7).rand()
    first, second = OwnRandomState(Countdown(9)), OwnRandomState(Countdown(9))
    alone = [first.reset(seed=3)[0]] + [first.step([0.0])[0] for _ in range(4)]
    first.reset(seed=3)
    second.reset(seed=8)
    interleaved = []
    for _ in range(4):
        interleaved.append(first.step([0.0])[0])
        second.step([0.0])
    np.testing.assert_array_equal(alone[1:], interleaved)
    assert np.random.rand() == expected  # noqa: NPY002 - the caller's state is untouched


@pytest.mark.parametrize("env_name", [_ENV_NAME, _SLOW_ENV])
def test_a_seed_fixes_an_episode(env_name):
    """Also after other episodes, and in another object."""

    def episode(env, seed):
        rng = np.random.default_rng(0)
        observations = [env.reset(seed=seed)[0]]
        for _ in range(10):
            action = rng.uniform(-1, 1, env.action_space.shape)
            observations.append(env.step(action)[0])
        return np.array(observations)

    env = make_env(env_name)
    first = episode(env, 5)
    assert not np.array_equal(episode(env, 6), first)
    np.testing.assert_array_equal(episode(env, 5), first)
    np.testing.assert_array_equal(episode(make_env(env_name), 5), first)


def test_unknown_environments_are_named_with_close_ones():
    with pytest.raises(ValueError, match=r"no 'cube-quintuple-singletask-v0'.*Close names: cube-"):
        make_env("cube-quintuple-play-singletask-v0")
    with pytest.raises(ValueError, match=r"has images as observations, which are not supported"):
        make_env("visual-cube-single-play-singletask-v0")
    with pytest.raises(ValueError, match=r"--env_module=<package>.*cube-double-play-singletask"):
        make_env("cube-double-pla-singletask-v0")


def test_chunks_report_every_step():
    env = OpenLoopChunks(Countdown(5), 3)
    first, info = env.reset(seed=0)
    assert first.dtype == np.float32
    assert (info["num_steps"], info["observations"].shape) == (0, (3, 2))
    env.step(np.zeros((3, 1)))
    observation, _, _, _, info = env.step(np.zeros((3, 1)))
    assert info["num_steps"] == 2
    assert info["observations"].dtype == info["rewards"].dtype == np.float32
    np.testing.assert_array_equal(info["observations"][:, 0], [1, 0, 0])
    np.testing.assert_array_equal(info["observations"][1:], [observation] * 2)
    np.testing.assert_array_equal(info["rewards"], [-1, -1, 0])
    assert env.step(np.zeros((3, 1)))[4]["num_steps"] == 0


def test_chunks_before_the_first_reset_do_nothing():
    observation, reward, terminated, _, info = OpenLoopChunks(Countdown(5), 3).step([[0.0]] * 3)
    assert (list(observation), reward, terminated, info["num_steps"]) == ([0, 0], 0, True, 0)


class Scripted(gymnasium.Env):
    """Gives the observations, rewards and infos that it is told to, step by step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, steps, first=(0.0, 0.0)):
        self._steps, self._first = steps, first

    def reset(self, *, seed=None, options=None):
        self._left = list(self._steps)
        return np.array(self._first), {}

    def step(self, action):
        observation, reward, info = self._left.pop(0)
        return np.array(observation), reward, False, not self._left, info


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ([{}, {}, {}], np.nan),
        ([{"success": False}] * 3, 0.0),
        ([{"success": 0.0}, {"success": 1.0}, {"success": 0.0}], 1.0),
        ([{"is_success": 0.0}, {"is_success": True}, {}], 1.0),
        ([{}, {}, {"is_success": 0.0}], 0.0),
    ],
)
def test_success_at_any_step_counts(infos, expected):
    env = OpenLoopChunks(Scripted([((0, 0), 0.0, info) for info in infos]), 2)
    assert np.isnan(env.reset(seed=0)[1]["success"])
    env.step(np.zeros((2, 1)))
    np.testing.assert_equal(env.step(np.zeros((2, 1)))[4]["success"], expected)


def test_what_is_not_finite_is_named():
    fine = ((0.0, 0.0), 0.0, {})
    env = OpenLoopChunks(Scripted([fine, fine, ((0.0, np.nan), 0.0, {})]), 2)
    env.reset(seed=7)
    env.step(np.zeros((2, 1)))
    message = r"observation\[1\] is nan after step 3 of the episode of seed 7 in 'Scripted'"
    with pytest.raises(ValueError, match=message):
        env.step(np.zeros((2, 1)))
    env = OpenLoopChunks(Scripted([((0.0, 0.0), -np.inf, {})]), 2)
    env.reset(seed=7)
    with pytest.raises(ValueError, match="reward is -inf after step 1 "):
        env.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"observation\[0\] is inf after the reset"):
        OpenLoopChunks(Scripted([fine], first=(1e300, 0.0)), 2).reset(seed=7)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ((0.0,), r"observation has the shape \(1,\) .*after step 1.*expected .*\(2,\)"),
        ([[0.0, 1.0]], r"the shape \(1, 2\)"),
        (("a", "b"), r"the type <U1"),
        ((None, None), r"the type object"),
    ],
)
def test_an_observation_has_to_be_of_its_space(observation, message):
    env = OpenLoopChunks(Scripted([(observation, 0.0, {})]), 1)
    env.reset(seed=7)
    with pytest.raises(ValueError, match=message):
        env.step(np.zeros((1, 1)))


@pytest.mark.parametrize("env_name", [_ENV_NAME, _SLOW_ENV])
def test_replay_takes_an_episode_back_to_where_it_was(env_name):
    env = OpenLoopChunks(make_env(env_name), 5)
    shape = (4, *env.action_space.shape)
    chunks = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    env.reset(seed=3)
    for chunk in chunks[:3]:
        expected, _, _, _, expected_info = env.step(chunk)
    expected_next = env.step(chunks[3])[0]
    other = OpenLoopChunks(make_env(env_name), 5)
    other.reset(seed=4)
    replay = {3: chunks[:3].reshape(15, -1), 4: np.zeros((1, shape[-1]))}
    observation, info = other.reset(seed=3, options={"replay": replay})
    np.testing.assert_array_equal(observation, expected)
    for name in ("success", "episode_return", "episode_length"):
        assert info[name] == expected_info[name]
    assert info["num_steps"] == 0
    np.testing.assert_array_equal(other.step(chunks[3])[0], expected_next)


def test_a_normalized_environment_takes_and_gives_what_the_agent_knows():
    values = np.array([0.5, -0.5, 2], np.float32), np.array([0.1, 2, 4], np.float32)
    normalization = Normalization(*values, np.float32([0.2]), np.float32([0.9]))
    plain, normalized = make_env("Pendulum-v1"), make_env("Pendulum-v1", "", normalization)
    assert normalized.spec.id == "Pendulum-v1"
    assert normalized.observation_space.shape == (3,)
    first, expected = normalized.reset(seed=3)[0], plain.reset(seed=3)[0]
    np.testing.assert_array_equal(first, (expected - values[0]) / values[1])
    for action in (-1.0, 0.0, 0.5, 1.0):
        found = normalized.step(np.float32([action]))
        expected = plain.step(np.float32([min(0.2 + 0.9 * action, 1)]))
        np.testing.assert_allclose(found[0], (expected[0] - values[0]) / values[1], rtol=1e-5)
        assert found[1] == pytest.approx(expected[1])


def test_options_reach_the_environment_without_ours():
    seen = []

    class Spy(Countdown):
        def reset(self, *, seed=None, options=None):
            seen.append(options)
            return super().reset(seed=seed)

    env = OpenLoopChunks(Spy(5), 2)
    env.reset(seed=0, options={"replay": {0: np.zeros((2, 1))}, "goal": 1})
    env.reset(seed=0, options={"replay": {}})
    assert seen == [{"goal": 1}, None]
