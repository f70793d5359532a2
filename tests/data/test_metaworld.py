"""Meta-World: tests of the simulators run where the `metaworld` extra is installed."""

import json
import sys

import numpy as np
import pytest

from qam_jax.data import generate, metaworld
from qam_jax.data.sources import load_own
from qam_jax.envs import make_env

_NAME = "metaworld-reach-mixed-v3"


@pytest.fixture(scope="module")
def simulators():
    """Skips where Meta-World is not installed: CI installs it for this file alone."""
    pytest.importorskip("metaworld", reason="the extra [metaworld] is not installed")


def test_recipes():
    recipe = generate.get_recipe(_NAME)
    assert recipe.env_id == "metaworld-reach-v3"
    assert (recipe.num_episodes, recipe.episode_length) == (500, 201)
    names = [name for name in generate.generatable_names() if name.startswith("metaworld-")]
    assert len(set(names)) == len(names) == 3 * 50


@pytest.mark.parametrize("name", ["metaworld-reach-perfect-v3", "metaworld-fly-mixed-v3"])
def test_unknown_datasets_name_those_that_exist(name):
    with pytest.raises(ValueError, match="metaworld-<task>-<expert, noisy, mixed>-v3"):
        generate.get_recipe(name)


def test_unknown_tasks_offer_close_names():
    with pytest.raises(ValueError, match=r"Close names: .*metaworld-drawer-open-v3"):
        make_env("metaworld-drawers-open-v3")


def test_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ValueError, match=r"metaworld-reach-v3.*pip install -e '.\[metaworld\]'"):
        make_env("metaworld-reach-v3")


def test_the_tasks_are_metaworlds(simulators):
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert {f"{task}-v3" for task in metaworld.TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert {f"{task}-v3" for task in metaworld.TASKS} == set(ENV_POLICY_MAP)


def test_number_of_processes_changes_nothing(simulators, tmp_path):
    for number in (1, 2):
        generate.generate_dataset(
            _NAME, tmp_path / str(number), num_episodes=4, seed=3, num_processes=number,
            progress=False,
        )  # fmt: skip
    for name in (f"{_NAME}.npz", f"{_NAME}-val.npz"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    with np.load(tmp_path / "1" / f"{_NAME}.npz") as file:
        generator = json.loads(file["generator"].item())
    assert generator["recipe"]["env_id"] == "metaworld-reach-v3" and generator["seed"] == 3
    assert sorted(generator["versions"]) == ["metaworld", "mujoco", "numpy"]


def test_the_expert_succeeds_and_the_environment_repeats_the_data(simulators, tmp_path):
    path = generate.generate_dataset(
        "metaworld-drawer-open-expert-v3", tmp_path, num_episodes=2, num_processes=1, progress=False
    )
    with make_env("metaworld-drawer-open-v3") as env:
        dataset = load_own(path, env).dataset
    ends = np.flatnonzero(np.asarray(dataset.masks) == 0)
    assert len(ends) == 2
    rewards = np.full(int(ends[0]) + 1, -1.0)
    rewards[-1] = 0
    np.testing.assert_array_equal(dataset.rewards[: len(rewards)], rewards)
    assert len(rewards) < 150 and np.abs(dataset.actions).max() <= 1


def test_episodes_depend_on_their_seed_alone(simulators):
    env = make_env("metaworld-drawer-open-v3")
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)

    def observations(seed):
        first, _ = env.reset(seed=seed)
        return np.array([first, *(env.step(action)[0] for action in actions)])

    first, other, again = (observations(seed) for seed in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (21, 39) and np.any(first != other)
    assert env.action_space.shape == (4,)
    _, reward, terminated, truncated, info = env.step(actions[0])
    assert (reward, terminated, truncated, bool(info["success"])) == (-1.0, False, False, False)
    for _ in range(200 - 22):
        assert not env.step(actions[0])[3]
    assert env.step(actions[0])[3]
