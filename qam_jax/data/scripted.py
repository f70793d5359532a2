"""Episodes of OGBench's scripted policies in its simulators (arXiv 2410.20092).

The `ogbench` package ships the simulators and the manipulation oracles. This module holds the loops
around them, with the noise of the recipes. An episode depends on its seed only, and not on earlier
episodes.
"""

import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Episode = dict[str, np.ndarray]  # field -> [steps, ...]
Cell = tuple[int, int]  # row and column in a maze

_STITCH_DISTANCE = 4  # cells between the start and the goal of a `stitch` episode
_PLAN_NOISE_SMOOTHING = 0.5
_MARKOV_MIN_NORM = 0.4
_MARKOV_NOISE_SCALE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # for x, y, z, yaw, gripper
_MAX_ATTEMPTS = 100
# Fields of the compiled model that the environments change while they run, apart from colours.
_MUTABLE_MODEL_FIELDS = ("geom_pos", "site_pos", "dof_damping")


class Recipe(NamedTuple):
    """Settings by which one dataset is made.

    `noise` is the standard deviation of the action noise in mazes, and the scale of the plan noise
    for `play`. Otherwise it is the upper end of the uniform law of an episode's noise level.
    """

    name: str  # of the dataset
    env_id: str  # gymnasium's id of the simulator
    kind: str  # navigate or stitch (mazes), play or noisy (manipulation); or Meta-World's quality
    num_episodes: int  # in the training file; the validation file has a tenth as many
    episode_length: int  # rows of every episode; the largest number of them in Meta-World
    noise: float
    p_random_action: float = 0.0  # probability of a uniform action in place of the oracle's
    p_stack: tuple[float, float] = (0.5, 0.5)  # uniform law of the probability to stack cubes


class Simulator(NamedTuple):
    """An environment, and the mutable fields of its model as they were before any episode."""

    env: Any
    model_fields: dict[str, np.ndarray]


@functools.lru_cache(maxsize=1)
def make_simulator(recipe: Recipe) -> Simulator:
    """Builds the simulator of a recipe, which takes seconds; the last one made is kept."""
    import gymnasium  # here, because these are slow to import and few processes need them
    import ogbench  # noqa: F401 - registers the environments

    mode = {} if _is_maze(recipe) else {"mode": "data_collection"}
    env = gymnasium.make(
        recipe.env_id,
        terminate_at_goal=False,
        max_episode_steps=recipe.episode_length,
        disable_env_checker=True,
        **mode,
    )
    # The first reset compiles the model, which leaves other traces than a later one.
    seed_sources(env, [0])
    env.reset()
    fields = {name: getattr(env.unwrapped.model, name).copy() for name in _MUTABLE_MODEL_FIELDS}
    return Simulator(env, fields)


def make_episode(simulator: Simulator, recipe: Recipe, seed: int, index: int) -> Episode:
    """Makes one episode, which depends on the recipe, the base seed and the index only.

    Returns `observations`, `actions`, `qpos` and `qvel` [episode_length, ...] float32, `terminals`
    [episode_length] bool and, where the environment has buttons, `button_states`
    [episode_length, buttons] int64. All but `actions` are values before the action.

    Raises RuntimeError if the episode has the wrong length, or the physics are unstable in every
    attempt.
    """
    run = _maze_episode if _is_maze(recipe) else _manipulation_episode
    for attempt in range(_MAX_ATTEMPTS):
        for name, values in simulator.model_fields.items():
            getattr(simulator.env.unwrapped.model, name)[:] = values
        rng = seed_sources(simulator.env, [seed, index, attempt])
        episode = run(simulator.env, recipe, rng)
        length = len(episode["terminals"])
        if length != recipe.episode_length:
            raise RuntimeError(f"it took {length} steps, expected {recipe.episode_length}")
        if not recipe.env_id.startswith("scene") or _is_healthy_scene(episode["qpos"]):
            return episode
    raise RuntimeError(f"the physics were unstable in each of {_MAX_ATTEMPTS} attempts")


def _is_maze(recipe: Recipe) -> bool:
    return recipe.kind in ("navigate", "stitch")


def seed_sources(env: Any, entropy: list[int]) -> np.random.Generator:
    """Seeds every source that an episode draws from; returns a generator for the loop."""
    loop, environment, space, oracles = np.random.SeedSequence(entropy).spawn(4)
    np.random.seed(oracles.generate_state(4))  # noqa: NPY002 - OGBench draws from the global state
    env.unwrapped.np_random = np.random.default_rng(environment)
    env.action_space.seed(int(space.generate_state(1)[0]))
    return np.random.default_rng(loop)


class _Recorder:
    """Steps an environment, and keeps the steps of one episode."""

    def __init__(self, env: Any, observation: np.ndarray):
        self._env, self.observation = env, observation
        self.steps: list[dict[str, Any]] = []
        self.done = False

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """Clips and executes an action; returns the environment's info."""
        step = {"observations": self.observation, "actions": np.clip(action, -1.0, 1.0)}
        self.observation, _, terminated, truncated, info = self._env.step(step["actions"])
        step["terminals"] = self.done = terminated or truncated
        states = ("qpos", "qvel", "button_states")
        step |= {name: info[f"prev_{name}"] for name in states if f"prev_{name}" in info}
        self.steps.append(step)
        return info

    def episode(self) -> Episode:
        dtypes = {"terminals": np.bool_, "button_states": np.int64}
        return {
            field: np.array([step[field] for step in self.steps], dtypes.get(field, np.float32))
            for field in self.steps[0]
        }


def _maze_episode(env: Any, recipe: Recipe, rng: np.random.Generator) -> Episode:
    """Follows shortest paths with Gaussian action noise; `navigate` goes on from goal to goal."""
    maze = env.unwrapped
    start, goal = _draw_start_and_goal(maze, recipe.kind, rng)
    ob, _ = env.reset(options={"task_info": {"init_ij": start, "goal_ij": goal}})
    recorder = _Recorder(env, ob)
    subgoals = _subgoals(maze)
    noise = rng.normal(0.0, recipe.noise, (recipe.episode_length, 2))
    with _quick_free_motion():
        while not recorder.done:
            xy = maze.get_xy()
            direction = subgoals(maze.xy_to_ij(xy)) - xy
            direction = direction / (np.linalg.norm(direction) + 1e-6)
            info = recorder.step(direction + noise[len(recorder.steps)])
            if info["success"] and recipe.kind == "navigate":
                maze.set_goal(goal_ij=_draw(_vertex_cells(maze.maze_map), rng))
                subgoals = _subgoals(maze)
    return recorder.episode()


@contextlib.contextmanager
def _quick_free_motion() -> Iterator[None]:
    """Leaves out the physics of the steps in which the point mass touches no wall.

    Each action puts the point mass at a place, at rest and with no force on it. Unless it touches
    a wall there, integrating changes no bit of its state, yet takes most of the time of a step.
    """
    import mujoco
    from ogbench.locomaze import point

    def step(model: mujoco.MjModel, data: mujoco.MjData, nstep: int) -> None:
        mujoco.mj_fwdPosition(model, data)
        if data.nefc:  # there are contact forces
            mujoco.mj_step(model, data, nstep=nstep)
        else:
            data.qacc_warmstart[:] = 0.0  # as integrating would have left it

    point.mujoco = types.SimpleNamespace(mj_step=step)
    try:
        yield
    finally:
        point.mujoco = mujoco


def _draw_start_and_goal(maze: Any, kind: str, rng: np.random.Generator) -> tuple[Cell, Cell]:
    start = _draw(np.argwhere(maze.maze_map == 0), rng)
    if kind == "navigate":
        return start, _draw(_vertex_cells(maze.maze_map), rng)
    start_xy = maze.ij_to_xy(start)
    _, distances = maze.get_oracle_subgoal(start_xy, start_xy)  # of all cells to the start
    candidates = np.argwhere(distances == _STITCH_DISTANCE)
    return start, _draw(candidates, rng) if len(candidates) else start


def _draw(cells: np.ndarray, rng: np.random.Generator) -> Cell:
    i, j = cells[rng.integers(len(cells))]
    return int(i), int(j)


def _vertex_cells(maze_map: np.ndarray) -> np.ndarray:
    """Free cells [n, 2] that are no hallway, that is no straight stretch of a path."""
    free = maze_map == 0
    vertical = free[:-2, 1:-1].astype(int) + free[2:, 1:-1]  # free neighbours above and below
    horizontal = free[1:-1, :-2].astype(int) + free[1:-1, 2:]
    hallway = np.abs(vertical - horizontal) == 2
    return np.argwhere(free[1:-1, 1:-1] & ~hallway) + 1  # the outermost cells are walls


def _subgoals(maze: Any) -> Callable[[Cell], np.ndarray]:
    """Coordinates [2] to head for from each cell, towards the maze's present goal."""
    goal_xy = maze.cur_goal_xy
    return functools.cache(lambda cell: maze.get_oracle_subgoal(maze.ij_to_xy(cell), goal_xy)[0])


def _manipulation_episode(env: Any, recipe: Recipe, rng: np.random.Generator) -> Episode:
    """Lets the scripted oracles bring one object after the other to a random target."""
    p_stack = rng.uniform(*recipe.p_stack)
    noise_scale = rng.uniform(0.0, recipe.noise) * _MARKOV_NOISE_SCALE
    oracles = _make_oracles(env, recipe)
    ob, info = env.reset()
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(ob, info)
    recorder = _Recorder(env, ob)
    while not recorder.done:
        if rng.uniform() < recipe.p_random_action:
            action = rng.uniform(-1.0, 1.0, len(noise_scale))
        else:
            action = oracle.select_action(recorder.observation, info)
            if recipe.kind == "noisy":
                action = action + rng.normal(0.0, noise_scale)
        info = recorder.step(action)
        if oracle.done:
            target_ob, target_info = env.unwrapped.set_new_target(p_stack=p_stack)
            oracle = oracles[target_info["privileged/target_task"]]
            oracle.reset(target_ob, target_info)
    return recorder.episode()


def _make_oracles(env: Any, recipe: Recipe) -> dict[str, Any]:
    """Oracle for each task of the environment: `plan` for play, otherwise `markov`."""
    style, common, max_step = "markov", {"min_norm": _MARKOV_MIN_NORM}, {"max_step": 100}
    if recipe.kind == "play":
        style, max_step = "plan", {}
        common = {"noise": recipe.noise, "noise_smoothing": _PLAN_NOISE_SMOOTHING}
    options: dict[str, dict[str, dict[str, Any]]] = {
        "cube": {"cube": {}},
        "puzzle": {"button": {"gripper_always_closed": True}},
        "scene": {"cube": max_step, "button": {}, "drawer": {}, "window": {}},
    }
    oracles = {}
    for task, special in options[recipe.env_id.split("-")[0]].items():
        module = importlib.import_module(f"ogbench.manipspace.oracles.{style}.{task}_{style}")
        oracle_class = getattr(module, f"{task.title()}{style.title()}Oracle")
        oracles[task] = oracle_class(env=env, **common, **special)
    return oracles


def _is_healthy_scene(qpos: np.ndarray) -> bool:
    """Whether the cube stayed in the scene: a drawer locked in mid-motion may throw it out."""
    y, z = qpos[:, 15], qpos[:, 16]
    return not np.any((y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08))))
