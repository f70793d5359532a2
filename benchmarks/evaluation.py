"""Benchmark of evaluation: environment steps per second."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
from measure import row
from training import make_config

from qam_jax.agents import make_agent
from qam_jax.envs import EnvPool, make_env
from qam_jax.runs.saved import init_state
from qam_jax.training.evaluation import make_policy, run_episodes

_CUBE = "cube-single-play-singletask-v0"


def evaluation(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Times random actions in this process, and the policy of the paper in several processes."""
    config = make_config(width=64 if fast else 512)
    agent = make_agent(config)
    with make_env(_CUBE) as env:
        state = init_state(agent, jax.random.PRNGKey(0), *_dims(env))
        policy = make_policy(agent)(state, jax.random.PRNGKey(1))
        speeds = {"random actions, this process": [_random_speed(env) for _ in range(repeats)]}
    for count in (1, 2) if fast else (1, 2, 4, 8, 16):
        pool = EnvPool(partial(make_env, _CUBE), config.horizon_length, count, max_crashes=0)
        try:
            run_episodes(policy, pool, count, 0)  # compiles
            speeds[f"policy, {count} environments"] = [
                _policy_speed(policy, pool, count, seed) for seed in range(1, repeats + 1)
            ]
        finally:
            pool.close()
    return [
        row(f"evaluation/{name}", np.array(values), "steps/s", higher_is_better=True)
        for name, values in speeds.items()
    ]


def _dims(env) -> tuple[int, int]:
    return env.observation_space.shape[0], env.action_space.shape[0]


def _random_speed(env, steps: int = 1000) -> float:
    env.reset(seed=0)
    started = time.perf_counter()
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - started)


def _policy_speed(policy, pool: EnvPool, count: int, seed: int) -> float:
    started = time.perf_counter()
    episodes = run_episodes(policy, pool, 2 * count, seed)
    return sum(episode.length for episode in episodes) / (time.perf_counter() - started)
