"""Records episodes of an environment in the project's own format; see `qam_jax.data.checks`."""

import importlib
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from qam_jax.data.checks import FIELDS
from qam_jax.envs.pool import EnvFailure, EnvPool
from qam_jax.errors import explain

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""`(observation [O], rng) -> action [A]`; the action is clipped to [-1, 1]."""


def load_policy(name: str, action_dim: int) -> Policy:
    """Finds a policy by its name.

    `random` draws uniform actions [action_dim] in [-1, 1]; `module:function` is one of your own.
    Raises ValueError if there is no such function, or its module cannot be imported.
    """
    if name == "random":
        return lambda _, rng: rng.uniform(-1, 1, action_dim)
    module, _, function = name.partition(":")
    try:
        policy = getattr(importlib.import_module(module), function)
        if not callable(policy):
            raise TypeError(f"{policy!r} is no function")
        return policy
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the policy {name!r} cannot be imported ({explain(error)}). Give "
            "random, or <module>:<function> of a function (observation, rng) -> action, with the "
            "module's folder on PYTHONPATH."
        ) from error


def record_episodes(
    pool: EnvPool, policy: Policy, action_dim: int, num_episodes: int, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Executes a policy, with a bar in a terminal; returns all `FIELDS` of the steps, in float32.

    The pool has one environment with actions [action_dim] in [-1, 1], such as
    `qam_jax.envs.make_env` makes, chunks of one action, and survives no crash. An episode depends
    on the seed and its own number alone, if the policy does.

    Raises EnvFailure, which names the episode, if the environment fails, ValueError if the policy
    fails, or its action has another shape or is not finite.
    """
    rows = []
    for episode in tqdm(range(num_episodes), unit="episode", disable=None):
        rng, done = np.random.default_rng([seed, episode]), False
        try:
            (observation,), _ = pool.reset([int(rng.integers(2**31))], np.ones(1, bool))
            while not done:
                action = _act(policy, observation, rng, action_dim, episode)
                (after,), (reward,), (terminated,), (truncated,), _ = pool.step(action[None, None])
                done = terminated or truncated
                rows.append((observation, action, done, reward, not terminated, after))
                observation = after
        except EnvFailure as error:
            raise EnvFailure(f"episode {episode}: {error}") from error
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return dict(zip(FIELDS, columns, strict=True))


def _act(
    policy: Policy, observation: np.ndarray, rng: np.random.Generator, action_dim: int, episode: int
) -> np.ndarray:
    try:
        given = policy(observation.copy(), rng)
        action = np.asarray(given, np.float32)
    except (Exception, SystemExit) as error:
        reason = f"the policy failed: {explain(error)}, in episode {episode}."
        raise ValueError(reason) from error
    if action.shape != (action_dim,) or not np.isfinite(action).all():
        raise ValueError(
            f"the policy gave the action {given}; expected finite numbers of shape {(action_dim,)},"
            f" in [-1, 1], in episode {episode}."
        )
    return action.clip(-1, 1)
