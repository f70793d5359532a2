"""Meta-World's tasks with a sparse reward, and episodes of its scripted experts (arXiv 1910.10897).

The `metaworld` package holds the simulators, and an expert for each task. It is imported only
where a task is made. Goals and objects are at random places in every episode.
"""

import functools
from typing import Any

import gymnasium
import numpy as np

from qam_jax.data.scripted import Episode, Recipe, seed_sources

PREFIX = "metaworld-"
QUALITIES = {"expert": (0.0, 0.0), "noisy": (0.3, 0.1), "mixed": (0.3, 0.0)}
"""Fields `noise` and `p_random_action` of the recipe, by how good the data are."""
TASKS = tuple(
    """assembly basketball bin-picking box-close button-press button-press-topdown
    button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn
    disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close
    faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
    lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
    plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall
    reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close
    window-open""".split()
)

_MAX_STEPS = 200  # of an episode; the experts need 20 to 150
_NUM_EPISODES = 500  # in the training file
_STRETCH = 10  # steps in which a `mixed` episode follows the expert, or a random direction


def register() -> None:
    """Registers every task with gymnasium, as `metaworld-<task>-v3`."""
    options = {"entry_point": f"{__name__}:make_task", "max_episode_steps": _MAX_STEPS}
    for task in TASKS:
        if f"{PREFIX}{task}-v3" not in gymnasium.registry:
            gymnasium.register(f"{PREFIX}{task}-v3", kwargs={"task": task}, **options)


def make_task(task: str, render_mode: str | None = None) -> gymnasium.Env:
    """Makes a task with a sparse reward.

    Observations [39] hold the hand, the objects, both one step earlier, and the goal. Actions [4]
    move the hand and close the gripper. The places of goal and objects are drawn from NumPy's
    global random state. Raises ImportError, saying what to install, without `metaworld`.
    """
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as classes
    except ImportError as error:
        raise ImportError(
            "Meta-World is not installed, or lacks a library: pip install -e '.[metaworld]' "
            f"({error})"
        ) from error
    env = classes[f"{task}-v3-goal-observable"](seed=0, render_mode=render_mode)
    env._freeze_rand_vec = False  # other places in every episode
    return _SparseReward(env)


class _SparseReward(gymnasium.Wrapper):
    """Rewards 0 for success, which ends the episode, and -1 for any other step."""

    def step(self, action):
        observation, _, _, truncated, info = self.env.step(action)
        success = bool(info["success"])
        return observation, float(success) - 1.0, success, truncated, info


def recipes() -> list[Recipe]:
    """Recipe of each task in each of the `QUALITIES`.

    In `noisy` episodes Gaussian noise is added to the expert's actions, and some are replaced by
    uniform ones. In `mixed` episodes the expert acts for ten steps, or a random direction does.
    """
    sizes = _NUM_EPISODES, _MAX_STEPS + 1
    return [
        Recipe(f"{PREFIX}{task}-{kind}-v3", f"{PREFIX}{task}-v3", kind, *sizes, *numbers)
        for task in TASKS
        for kind, numbers in QUALITIES.items()
    ]


@functools.lru_cache(maxsize=1)
def make_simulator(recipe: Recipe) -> gymnasium.Env:
    """Builds the simulator of a recipe, which takes seconds; the last one made is kept."""
    register()
    return gymnasium.make(
        recipe.env_id, max_episode_steps=recipe.episode_length - 1, disable_env_checker=True
    )


def make_episode(env: gymnasium.Env, recipe: Recipe, seed: int, index: int) -> Episode:
    """Makes one episode, which depends on the recipe, the base seed and the index only.

    Returns `observations`, `actions`, `rewards`, `masks` and `terminals` in float32. There is one
    row more than steps: the last one holds only the final observation.
    """
    from metaworld.policies import ENV_POLICY_MAP

    rng = seed_sources(env, [seed, index])
    expert = ENV_POLICY_MAP[recipe.env_id.removeprefix(PREFIX)]()
    noise, p_expert = rng.uniform(0.0, recipe.noise), rng.uniform()
    observation, _ = env.reset()
    rows: list[tuple[Any, ...]] = []
    done = False
    while not done:
        if len(rows) % _STRETCH == 0:
            leads = recipe.kind != "mixed" or rng.uniform() < p_expert
            direction = rng.uniform(-1.0, 1.0, 4)
        action = expert.get_action(observation) if leads else direction
        if rng.uniform() < recipe.p_random_action:
            action = rng.uniform(-1.0, 1.0, 4)
        action = np.clip(action + rng.normal(0.0, noise, 4), -1.0, 1.0).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, not terminated, 0))
        observation, done = after, terminated or truncated
    rows.append((observation, np.zeros(4), 0.0, 1, 1))
    names = ("observations", "actions", "rewards", "masks", "terminals")
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return dict(zip(names, columns, strict=True))
