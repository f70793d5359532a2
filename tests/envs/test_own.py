"""Environments that are not OGBench's."""

import logging
import sys
import threading
from functools import partial

import gymnasium
import numpy as np
import pytest

from qam_jax.envs import EnvFailure, EnvPool, make_env, make_env_within, make_film_env
from qam_jax.envs.make import _warn_endless

_MODULE = """
import sys

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Mass(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-2, 3, (1,), np.float32)

    def __init__(self, render_mode=None, observations="box", actions="box"):
        self.render_mode, self._observations = render_mode, observations
        if observations == "dict":
            self.observation_space = Dict(
                place=Box(-9, 9, (1,)), goal=Dict(a=Box(-9, 9, (2, 1)), b=Box(-9, 9, ()))
            )
        elif observations == "discrete":
            self.observation_space = Discrete(3)
        elif observations == "image":
            self.observation_space = Box(0, 255, (4, 4, 3), np.uint8)
        elif observations == "mixed":
            self.observation_space = Dict(place=Box(-9, 9, (1,)), mode=Discrete(3))
        if actions == "discrete":
            self.action_space = Discrete(3)
        elif actions == "unbounded":
            self.action_space = Box(-2, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self.received = float(self.np_random.uniform()), []
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.received.append(float(action[0]))
        self._place += self.received[-1]
        return self._observe(), -abs(self._place), False, False, {}

    def render(self):
        return np.full((32, 32, 3), 99, np.uint8)

    def _observe(self):
        if self._observations == "dict":
            goal = {"a": np.array([[7.0], [8.0]]), "b": np.array(6.0)}
            return {"place": np.array([self._place]), "goal": goal}
        return np.array([self._place, 1.0])


class Blind(Mass):
    metadata = {"render_modes": []}

    def render(self):
        return None


gymnasium.register("Mass-v0", Mass, max_episode_steps=12)
gymnasium.register("EndlessMass-v0", Mass)
gymnasium.register("BlindMass-v0", Blind, max_episode_steps=12)
gymnasium.register("NoMass-v0", lambda: 1 / 0)
gymnasium.register("ExitMass-v0", lambda: sys.exit("no licence"))
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_masses.py").write_text(_MODULE)
    (folder / "own_broken.py").write_text("import no_such_module_at_all")
    (folder / "own_exit.py").write_text("import sys\nsys.exit(0)")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))  # processes get the same path
        yield
    sys.modules.pop("own_masses", None)
    for name in ("Mass-v0", "EndlessMass-v0", "BlindMass-v0"):
        gymnasium.registry.pop(name, None)


def test_processes_import_the_module_that_registers_an_environment():
    pool = EnvPool(partial(make_env, "Mass-v0", "own_masses"), 5, 2, max_crashes=0)
    try:
        pool.reset([1, 2], np.ones(2, bool))
        _, _, _, truncated, info = pool.step(np.zeros((2, 5, 1), np.float32))
        # The middle of [-2, 3] is 0.5, five times.
        moved = info["observations"][:, 4, 0] - info["observations"][:, 0, 0]
        np.testing.assert_allclose(moved, 4 * 0.5, rtol=1e-5)
        assert np.isnan(info["success"]).all()
        assert not truncated.any()
        for _ in range(2):
            _, _, terminated, truncated, info = pool.step(np.ones((2, 5, 1), np.float32))
        assert truncated.all() and not terminated.any()
        np.testing.assert_array_equal(info["num_steps"], [2, 2])
        np.testing.assert_array_equal(info["episode_length"], [12, 12])
    finally:
        pool.close()


def test_actions_are_rescaled_into_the_environments_bounds():
    env = make_env("own_masses:Mass-v0")
    np.testing.assert_array_equal([env.action_space.low, env.action_space.high], [[-1], [1]])
    env.reset(seed=0)
    for action in (-1, -0.5, 0, 0.2, 1, 1.0001):  # the last one: a policy's rounding
        env.step(np.array([action], np.float32))
    np.testing.assert_allclose(env.unwrapped.received, [-2, -0.75, 0.5, 1, 3, 3], atol=1e-6)


def test_a_dict_of_boxes_becomes_one_vector():
    env = make_env("Mass-v0", "own_masses", observations="dict")
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (4,)
    assert {6.0, 7.0, 8.0} < set(observation.tolist())


@pytest.mark.parametrize("observations", ["discrete", "image", "mixed"])
def test_other_observations_are_refused(observations):
    with pytest.raises(ValueError, match=r"'Mass-v0' has the observation space .*expected a 1-D"):
        make_env("Mass-v0", "own_masses", observations=observations)


@pytest.mark.parametrize("actions", ["discrete", "unbounded"])
def test_other_actions_are_refused(actions):
    with pytest.raises(ValueError, match=r"'Mass-v0' has the action space .*with finite bounds"):
        make_env("Mass-v0", "own_masses", actions=actions)


def test_an_unknown_name_says_what_names_there_are():
    make_env("Mass-v0", "own_masses")
    with pytest.raises(
        ValueError, match=r"neither an OGBench.*--env_module=.*Close names: Mass-v0"
    ):
        make_env("Maß-v0")
    with pytest.raises(ValueError, match="that 'own_masses' registers"):
        make_env("Mass-v7", "own_masses")


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(ValueError, match="--env_module=no_such_one cannot be imported"):
        make_env("Mass-v0", "no_such_one")
    with pytest.raises(ValueError, match=r"own_broken.*ModuleNotFoundError.*no_such_module_at_all"):
        make_env("own_broken:Mass-v0")
    with pytest.raises(ValueError, match=r"own_exit cannot be imported \(SystemExit: 0, line 2 of"):
        make_env("Mass-v0", "own_exit")


def test_an_environment_without_time_limit_is_mentioned_once(caplog):
    _warn_endless.cache_clear()
    with caplog.at_level(logging.WARNING, "qam_jax.envs"):
        for _ in range(2):
            make_env("EndlessMass-v0", "own_masses")
            make_env("Mass-v0", "own_masses")
    assert [record.args for record in caplog.records] == [("EndlessMass-v0",)]


def test_an_environment_that_cannot_be_made_is_named():
    with pytest.raises(ValueError, match="'NoMass-v0' cannot be made: ZeroDivisionError: division"):
        make_env("NoMass-v0", "own_masses")
    with pytest.raises(
        ValueError, match="'ExitMass-v0' cannot be made: SystemExit: no licence, li"
    ):
        make_env_within(60, "ExitMass-v0", "own_masses")


def test_an_environment_that_hangs_while_it_is_made_is_named(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr("qam_jax.envs.make.make_env", lambda *_: release.wait())
    try:
        with pytest.raises(EnvFailure, match=r"'Pendulum-v1' cannot be made within 0 seconds"):
            make_env_within(0, "Pendulum-v1")
    finally:
        release.set()


def test_an_environment_that_fails_when_it_is_closed_spoils_nothing(monkeypatch):
    env = make_env("Mass-v0", "own_masses")
    monkeypatch.setattr(type(env.unwrapped), "close", lambda _: 1 / 0)
    env.close()


def test_films_of_an_environment_that_renders(tmp_path):
    env = make_film_env("Mass-v0", tmp_path, "own_masses")
    env.reset(seed=5)
    while not env.step(np.zeros(1, np.float32))[3]:
        pass
    assert (tmp_path / "episode_5.mp4").stat().st_size > 0
    with pytest.raises(ValueError, match=r"'BlindMass-v0' cannot be filmed: .* gave NoneType"):
        make_film_env("BlindMass-v0", tmp_path, "own_masses")
    with pytest.raises(ValueError, match=r"'NoMass-v0' cannot be filmed: .*'render_mode'"):
        make_film_env("NoMass-v0", tmp_path, "own_masses")
