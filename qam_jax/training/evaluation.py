"""Runs a policy in several environments at once and reports how it does."""

import collections
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from qam_jax.agents import Agent, AgentState
from qam_jax.envs import find_render_backend, make_env, make_film_env, make_vector_env
from qam_jax.machine import num_usable_cpus
from qam_jax.training.keys import split_seed
from qam_jax.types import Array

Policy = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""`(observations [n, O], episodes [n], chunks [n]) -> action chunks [n, H, A]`."""


class Episode(NamedTuple):
    """One episode: whether it ended in success, its undiscounted return, its number of steps,
    and its planar positions [steps, 2], empty if the environment does not report them."""

    success: float
    episode_return: float
    length: int
    positions: np.ndarray


def make_policy(agent: Agent) -> Callable[[AgentState, int], Policy]:
    """Compiles the agent's policy once; `policy = make_policy(agent)(state, seed)`.

    The noise of a decision depends on the seed, the episode and the chunk within it alone, not on
    how many environments run side by side.
    """

    @jax.jit
    def act(state: AgentState, key: Array, observations: Array, episodes: Array, chunks: Array):
        def key_of(episode, chunk):
            return jax.random.fold_in(jax.random.fold_in(key, episode), chunk)

        keys = jax.vmap(key_of)(episodes, chunks)
        return jax.vmap(agent.sample_actions, in_axes=(None, 0, 0))(state, observations, keys)

    def bind(state: AgentState, seed: int) -> Policy:
        key = split_seed(seed).evaluation

        def policy(observations, episodes, chunks):
            observations = jnp.asarray(observations, jnp.float32)
            return np.asarray(act(state, key, observations, episodes, chunks))

        return policy

    return bind


def run_episodes(
    policy: Policy, envs: gymnasium.vector.VectorEnv, num_episodes: int, seed: int
) -> list[Episode]:
    """Runs episodes, each from a seed of its own, and returns them in order.

    The policy is called once for all environments, and only when their chunks are used up.

    Args:
      policy: see `Policy`.
      envs: from `qam_jax.envs.make_vector_env`.
      num_episodes: at least the number of environments.
      seed: episode e starts from a seed made of this one and e.

    Raises:
      ValueError: if there are more environments than episodes.
    """
    if envs.num_envs > num_episodes:
        raise ValueError(
            f"{envs.num_envs} environments for {num_episodes} episodes: use at most one each."
        )
    seeds = _seeds(seed, num_episodes)
    waiting = collections.deque(range(num_episodes))
    episodes = np.full(envs.num_envs, -1)  # which episode an environment runs; -1 is none
    chunks = np.zeros(envs.num_envs, int)
    positions: list[list[np.ndarray]] = [[] for _ in range(envs.num_envs)]
    finished: dict[int, Episode] = {}
    done = np.ones(envs.num_envs, bool)
    while len(finished) < num_episodes:
        if waiting and done.any():
            restart = np.flatnonzero(done)[: len(waiting)]
            for env in restart:
                episodes[env], chunks[env], positions[env] = waiting.popleft(), 0, []
            reset_mask = np.isin(np.arange(envs.num_envs), restart)
            env_seeds = [seeds[episode] for episode in episodes]
            observations, _ = envs.reset(seed=env_seeds, options={"reset_mask": reset_mask})
        actions = policy(observations, np.maximum(episodes, 0), chunks)
        observations, _, terminated, truncated, info = envs.step(actions)
        chunks += 1
        done = (terminated | truncated) & (episodes >= 0)
        for env in np.flatnonzero(episodes >= 0):
            positions[env].append(info["positions"][env])
        for env in np.flatnonzero(done):
            path = np.concatenate(positions[env])
            finished[int(episodes[env])] = Episode(
                success=float(info["success"][env]),
                episode_return=float(info["episode_return"][env]),
                length=int(info["episode_length"][env]),
                positions=path[~np.isnan(path).any(axis=1)],
            )
            episodes[env] = -1
    return [finished[episode] for episode in range(num_episodes)]


def summarize(episodes: list[Episode]) -> dict[str, float]:
    """Success rate with its 95% interval (Wilson), mean return and mean length.

    The interval is for binomial counts, so it is within [0, 1] even at a rate of 0 or 1.
    """
    successes = int(sum(episode.success for episode in episodes))
    interval = stats.binomtest(successes, len(episodes)).proportion_ci(method="wilson")
    return {
        "success": successes / len(episodes),
        "success_low": interval.low,
        "success_high": interval.high,
        "return": float(np.mean([episode.episode_return for episode in episodes])),
        "length": float(np.mean([episode.length for episode in episodes])),
        "episodes": len(episodes),
    }


def describe(episodes: list[Episode]) -> str:
    """A summary in words."""
    summary = summarize(episodes)
    return (
        f"success {summary['success']:.0%} of {len(episodes)} episodes (95% interval "
        f"{summary['success_low']:.0%} to {summary['success_high']:.0%}), "
        f"return {summary['return']:.1f}, length {summary['length']:.0f}"
    )


class Evaluator:
    """Evaluates agents on one environment, in processes that it starts once and keeps.

    The episodes are the same every time: they depend on the seed alone.

    Args:
      env_name: OGBench's single-task name.
      num_episodes: of an evaluation.
      num_envs: how many to step side by side; 0 for twice the number of processors.
      seed: of episodes and of the policy's noise.
    """

    def __init__(self, env_name: str, *, num_episodes: int, num_envs: int = 0, seed: int = 0):
        self._env_name = env_name
        self._num_episodes = num_episodes
        self._num_envs = min(num_envs or 2 * num_usable_cpus(), num_episodes)
        self._seed = seed
        self._envs: gymnasium.vector.VectorEnv | None = None
        self._bind_policies: dict[Agent, Callable[[AgentState, int], Policy]] = {}

    def evaluate(self, agent: Agent, state: AgentState) -> list[Episode]:
        """Runs the episodes with an agent's policy."""
        if self._envs is None:
            env_fn = partial(make_env, self._env_name)
            self._envs = make_vector_env(env_fn, state.action_shape[0], self._num_envs)
        if agent not in self._bind_policies:
            self._bind_policies[agent] = make_policy(agent)
        policy = self._bind_policies[agent](state, self._seed)
        return run_episodes(policy, self._envs, self._num_episodes, self._seed)

    def close(self) -> None:
        """Ends the environments' processes."""
        if self._envs is not None:
            self._envs.close()


def film_episodes(
    agent: Agent, state: AgentState, env_name: str, folder: Path, *, num_episodes: int, seed: int
) -> list[Path]:
    """Films the first episodes of an evaluation with the same seed.

    Returns:
      The films' paths in `folder`, in the order of the episodes.

    Raises:
      OSError: if this machine cannot render; says what to install.
    """
    backend = find_render_backend()
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = backend  # read by MuJoCo when the environment's process starts
    envs = make_vector_env(partial(make_film_env, env_name, folder), state.action_shape[0], 1)
    try:
        run_episodes(make_policy(agent)(state, seed), envs, num_episodes, seed)
    finally:
        envs.close()
        if before is None:
            del os.environ["MUJOCO_GL"]
    return [folder / f"episode_{episode_seed}.mp4" for episode_seed in _seeds(seed, num_episodes)]


def _seeds(seed: int, num_episodes: int) -> list[int]:
    """One seed for each episode; those of fewer episodes are the first of more."""
    return [int(value) for value in np.random.SeedSequence(seed).generate_state(num_episodes)]
