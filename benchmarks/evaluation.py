"""Benchmarks of what surrounds training: evaluation, windows, files, simulated data."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import interleave, row
from training import make_config, make_synthetic

from qam_jax.agents import make_agent
from qam_jax.data.dataset import make_dataset, sample_windows
from qam_jax.data.generate import generate_dataset
from qam_jax.data.npz import load_npz
from qam_jax.envs import EnvPool, make_env
from qam_jax.runs.checkpoints import init_state
from qam_jax.training.evaluation import make_policy, run_episodes

_CUBE = "cube-single-play-singletask-v0"
_MAZE = "pointmaze-medium-navigate-v0"


def evaluation(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Environment steps per second: random actions in this process, and the paper's policy."""
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


def data(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Windows drawn, a file loaded, transitions simulated. Shards: see `shards.py`."""
    dataset = make_synthetic(28, 5, 20_000 if fast else 1_000_000)
    keys = jax.random.split(jax.random.PRNGKey(0), 100)

    @jax.jit
    def draw(dataset, keys):
        return jax.lax.map(lambda key: sample_windows(dataset, key, 256, 5, 0.99), keys)

    with tempfile.TemporaryDirectory() as name:
        path = _write(Path(name), dataset)
        times = interleave(
            {
                "windows": lambda: draw(dataset, keys),
                "load": lambda: make_dataset(load_npz(path, require=("rewards",))),
            },
            repeats,
        )
        speed = _simulation_speed(Path(name), fast)
    drawn = 256 * len(keys)
    return [
        row("data/windows", drawn / times["windows"].wall, "windows/s", higher_is_better=True),
        row("data/load", times["load"].wall, "s", rows=len(dataset.rewards)),
        row("data/simulation", speed, "steps/s of a process", higher_is_better=True),
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


def _write(folder: Path, dataset) -> Path:
    path = folder / "synthetic.npz"
    rows = len(dataset.rewards)
    columns = {name: np.asarray(getattr(dataset, name)) for name in ("observations", "actions")}
    terminals = np.arange(1, rows + 1) % 1000 == 0
    np.savez(path, **columns, rewards=np.asarray(dataset.rewards), terminals=terminals)
    return path


def _simulation_speed(folder: Path, fast: bool) -> float:
    """Of one process; its start is left out, as the difference of two lengths."""
    rows, seconds = [], []
    for episodes in (1, 2) if fast else (10, 110):
        started = time.perf_counter()
        target = folder / str(episodes)
        generate_dataset(_MAZE, target, num_episodes=episodes, num_processes=1, progress=False)
        seconds.append(time.perf_counter() - started)
        rows.append(0)
        for path in target.iterdir():  # the validation file too
            with np.load(path) as archive:
                rows[-1] += len(archive["actions"])
    return (rows[1] - rows[0]) / (seconds[1] - seconds[0])
