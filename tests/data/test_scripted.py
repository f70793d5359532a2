"""Tests of the scripted episodes in `qam_jax.data.scripted`."""

import contextlib
import types

import numpy as np
import pytest

from qam_jax.data import generate, scripted

_MAZES = ("medium", "large", "giant", "teleport")
_MANIPULATION = [
    name for name in generate.generatable_names() if name.endswith(("play-v0", "noisy-v0"))
]


def _short(name, length):
    return generate.get_recipe(name)._replace(episode_length=length)


def _assert_equal(episode, other):
    assert episode.keys() == other.keys()
    for field in episode:
        np.testing.assert_array_equal(episode[field], other[field], err_msg=field)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("pointmaze-medium-navigate-v0", 400),
        ("pointmaze-teleport-stitch-v0", 201),
        pytest.param("cube-double-play-v0", 60, marks=pytest.mark.slow),
        pytest.param("scene-noisy-v0", 60, marks=pytest.mark.slow),
        ("puzzle-3x3-noisy-v0", 60),
    ],
)
def test_episode_does_not_depend_on_what_ran_before(name, length):
    recipe = _short(name, length)
    scripted.make_simulator.cache_clear()
    simulator = scripted.make_simulator(recipe)
    first = scripted.make_episode(simulator, recipe, seed=0, index=2)
    other = scripted.make_episode(simulator, recipe, seed=0, index=1)
    _assert_equal(first, scripted.make_episode(simulator, recipe, seed=0, index=2))
    assert not np.array_equal(first["actions"], other["actions"])

    assert np.all(np.abs(first["actions"]) <= 1.0)
    assert np.flatnonzero(first["terminals"]).tolist() == [length - 1]
    for field, values in first.items():
        expected = {"terminals": np.bool_, "button_states": np.int64}.get(field, np.float32)
        assert values.dtype == expected and len(values) == length
    assert ("button_states" in first) == name.startswith(("scene", "puzzle"))
    joints = 2 if recipe.env_id.startswith("pointmaze") else 6
    same = first["observations"][:, :joints] == first["qpos"][:, :joints]
    assert np.mean(np.all(same, axis=1)) > 0.9  # all but the steps after a teleport


@pytest.mark.parametrize("name", [f"pointmaze-{size}-navigate-v0" for size in _MAZES])
def test_skipped_physics_leave_the_data_as_they_are(name, monkeypatch):
    recipe = _short(name, 1001)._replace(noise=2.0)  # enough to run into walls
    simulator = scripted.make_simulator(recipe)
    quick = scripted.make_episode(simulator, recipe, seed=3, index=0)
    monkeypatch.setattr(scripted, "_quick_free_motion", contextlib.nullcontext)
    _assert_equal(quick, scripted.make_episode(simulator, recipe, seed=3, index=0))
    assert np.any(quick["qvel"][1:])  # walls were touched


@pytest.mark.parametrize("size", _MAZES)
def test_starts_and_goals(size):
    maze = scripted.make_simulator(_short(f"pointmaze-{size}-stitch-v0", 10)).env.unwrapped
    free = {tuple(cell) for cell in np.argwhere(maze.maze_map == 0).tolist()}

    def is_hallway(i, j):
        up, left, down, right = (
            cell in free for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1))
        )
        return (up and down and not left and not right) or (left and right and not up and not down)

    vertices = {tuple(cell) for cell in scripted._vertex_cells(maze.maze_map).tolist()}
    assert vertices == {cell for cell in free if not is_hallway(*cell)}

    rng = np.random.default_rng(0)
    draws = [scripted._draw_start_and_goal(maze, "navigate", rng) for _ in range(2000)]
    assert {start for start, _ in draws} == free and {goal for _, goal in draws} == vertices
    for start, goal in (scripted._draw_start_and_goal(maze, "stitch", rng) for _ in range(200)):
        _, distances = maze.get_oracle_subgoal(maze.ij_to_xy(start), maze.ij_to_xy(start))
        assert distances[goal] == 4 or (start == goal and not np.any(distances == 4))


def test_maze_actions_are_noisy_steps_towards_goals():
    recipe = _short("pointmaze-medium-navigate-v0", 1001)
    simulator = scripted.make_simulator(recipe)
    episode = scripted.make_episode(simulator, recipe, seed=0, index=0)
    moves = np.diff(episode["qpos"], axis=0)
    free = ~np.any(episode["qvel"][1:], axis=1)  # no wall was touched
    np.testing.assert_allclose(moves[free], 0.2 * episode["actions"][:-1][free], atol=1e-5)
    norms = np.linalg.norm(episode["actions"], axis=1)
    assert 0.8 < norms.mean() < 1.2 and norms.max() <= np.sqrt(2.0) + 1e-6
    cells = {simulator.env.unwrapped.xy_to_ij(xy) for xy in episode["qpos"]}
    assert len(cells) > 10  # it went on from goal to goal


@pytest.mark.parametrize(
    ("y", "z", "healthy"),
    [
        (0.0, 0.02, True),
        (0.28, 0.02, True),
        (0.29, 0.02, False),
        (-0.3, 0.07, True),  # in the drawer
        (-0.3, 0.05, False),
        (-0.3, 0.09, False),
        (-0.29, 0.05, True),
    ],
)
def test_scene_health(y, z, healthy):
    qpos = np.zeros((5, 25))
    qpos[:, 16] = 0.02
    qpos[3, 15:17] = y, z
    assert scripted._is_healthy_scene(qpos) == healthy


def _fake_simulator():
    model = types.SimpleNamespace(site_pos=np.ones(3))
    env = types.SimpleNamespace(
        unwrapped=types.SimpleNamespace(model=model),
        action_space=types.SimpleNamespace(seed=lambda seed: None),
    )
    return scripted.Simulator(env, {"site_pos": np.zeros(3)})


def test_unhealthy_scenes_are_made_again(monkeypatch):
    draws = []

    def run(env, recipe, rng):
        assert not np.any(env.unwrapped.model.site_pos)  # put back before each attempt
        env.unwrapped.model.site_pos[:] = 7.0
        draws.append((rng.uniform(), env.unwrapped.np_random.uniform(), np.random.rand()))  # noqa: NPY002
        qpos = np.zeros((recipe.episode_length, 25))
        qpos[:, 15] = 0.5 if len(draws) < 3 else 0.0
        return {"qpos": qpos, "terminals": np.zeros(recipe.episode_length)}

    monkeypatch.setattr(scripted, "_manipulation_episode", run)
    recipe = generate.get_recipe("scene-play-v0")
    episode = scripted.make_episode(_fake_simulator(), recipe, seed=0, index=5)
    assert not np.any(episode["qpos"][:, 15])
    assert len({draw for attempt in draws for draw in attempt}) == 9  # three seeds, three sources

    draws.clear()
    monkeypatch.setattr(scripted, "_is_healthy_scene", lambda qpos: False)
    monkeypatch.setattr(scripted, "_MAX_ATTEMPTS", 4)
    with pytest.raises(RuntimeError, match="unstable in each of 4 attempts"):
        scripted.make_episode(_fake_simulator(), recipe, seed=0, index=5)
    assert len(draws) == 4


def test_wrong_length_is_an_error(monkeypatch):
    monkeypatch.setattr(
        scripted, "_maze_episode", lambda env, recipe, rng: {"terminals": np.zeros(7)}
    )
    recipe = generate.get_recipe("pointmaze-medium-stitch-v0")
    with pytest.raises(RuntimeError, match="took 7 steps, expected 201"):
        scripted.make_episode(_fake_simulator(), recipe, seed=0, index=0)


@pytest.mark.parametrize("name", _MANIPULATION)
def test_oracles(name):
    recipe = generate.get_recipe(name)
    env = types.SimpleNamespace(unwrapped=types.SimpleNamespace(_control_timestep=0.05))
    oracles = scripted._make_oracles(env, recipe)
    style = "Plan" if recipe.kind == "play" else "Markov"
    base = name.split("-")[0]
    tasks = {"cube": ["cube"], "puzzle": ["button"]}.get(base, "cube button drawer window".split())
    assert [type(oracle).__name__ for oracle in oracles.values()] == [
        f"{task.title()}{style}Oracle" for task in tasks
    ]
    for task, oracle in oracles.items():
        if recipe.kind == "play":
            assert (oracle._noise, oracle._noise_smoothing) == (0.1, 0.5)
        else:
            assert oracle._min_norm == 0.4
        if task == "button":
            assert oracle._gripper_always_closed == (base == "puzzle")
        if task == "cube" and recipe.kind == "noisy":
            assert oracle._max_step == (100 if base == "scene" else 200)
