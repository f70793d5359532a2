"""Records episodes of an environment in the project's own format; see `qam_jax.data.checks`."""

import importlib
from collections.abc import Callable

import gymnasium
import numpy as np
from tqdm import tqdm

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""`(observation [O], rng) -> action [A]`; the action is clipped to [-1, 1]."""


def load_policy(name: str, action_dim: int) -> Policy:
    """Finds a policy by its name.

    Args:
      name: `random` for uniform actions in [-1, 1], or `module:function` for one of your own.
      action_dim: `A`.

    Raises:
      ValueError: if there is no such function, or its module cannot be imported.
    """
    if name == "random":
        return lambda _, rng: rng.uniform(-1, 1, action_dim)
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ValueError(
            f"the policy {name!r} cannot be imported ({type(error).__name__}: {error}). Give "
            "random, or <module>:<function> of a function (observation, rng) -> action, with the "
            "module's folder on PYTHONPATH."
        ) from error


def record_episodes(
    env: gymnasium.Env, policy: Policy, num_episodes: int, *, seed: int = 0, progress: bool = True
) -> dict[str, np.ndarray]:
    """Executes a policy, and returns all `N` steps in the order of time.

    Args:
      env: with observations [O] and actions [A] in [-1, 1], such as `qam_jax.envs.make_env` makes.
      policy: chooses the actions.
      num_episodes: how many episodes.
      seed: an episode depends on the seed and its own number alone, if the policy does.
      progress: whether to show a progress bar.

    Returns:
      All fields of `qam_jax.data.checks.FIELDS`, in float32.

    Raises:
      ValueError: if the policy's action has another shape than [A], or is not finite.
    """
    rows = []
    for episode in tqdm(range(num_episodes), unit="episode", disable=not progress):
        rng, done = np.random.default_rng([seed, episode]), False
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        while not done:
            before = np.array(observation, np.float32)
            action = _checked(policy(before, rng), env.action_space.shape)
            observation, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            after = np.array(observation, np.float32)
            rows.append((before, action, done, reward, not terminated, after))
    names = ("observations", "actions", "terminals", "rewards", "masks", "next_observations")
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return dict(zip(names, columns, strict=True))


def _checked(action: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    action = np.asarray(action, np.float32)
    if action.shape != shape or not np.isfinite(action).all():
        raise ValueError(
            f"the policy gave the action {action}; expected finite numbers of shape {shape}, in "
            "[-1, 1]."
        )
    return action.clip(-1, 1)
