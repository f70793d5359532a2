"""Measures what a slow policy costs: `python benchmarks/real_time.py <folder of a run>`.

An inference takes some control steps of simulated time, and the executor bridges them in several
ways. Every row of the table has the same episodes: of each run, those of each seed.
"""

import argparse
import contextlib
import itertools
from typing import NamedTuple

import gymnasium
import numpy as np

from qam_jax.deploy import Policy, load_policy
from qam_jax.deploy.executor import ChunkExecutor
from qam_jax.envs import make_env
from qam_jax.training.evaluation import Episode, episode_seed, summarize

_WAYS = {  # how the executor bridges the delay
    "waits, last action repeated": {"mode": "synchronous"},
    "waits, standing still": {"mode": "synchronous", "idle": True},
    "held": {"mode": "held"},
    "real-time chunking": {"mode": "real_time"},
}


class _Result(NamedTuple):
    episode: Episode
    change: float  # mean distance of an action from the one before


def main() -> None:
    arguments = _parse()
    policies = [load_policy(run) for run in arguments.runs]
    print("| delay | way | success (95% interval) | steps | change of the action |")
    print("|---:|---|---:|---:|---:|", flush=True)
    with make_env(policies[0].metadata["env_name"]) as env:
        for delay, way in itertools.product(arguments.delays, _WAYS):
            if delay == 0 and way != "held":
                continue  # all the same
            results = [
                _run(
                    env, policy, episode_seed(seed, episode), delay, arguments.horizon, **_WAYS[way]
                )
                for policy in policies
                for seed in arguments.seeds
                for episode in range(arguments.episodes)
            ]
            print(_row(delay, way if delay else "no delay", results), flush=True)


def _run(
    env: gymnasium.Env,
    policy: Policy,
    seed: int,
    delay: int,
    horizon: int | None,
    mode: str,
    idle: bool = False,
) -> _Result:
    """Runs one episode; the policy's noise depends on its number alone."""
    observation, _ = env.reset(seed=seed)
    policy.reset()
    idle_action = np.zeros(policy.action_shape[1], np.float32) if idle else None
    actions, success, total = [], 0.0, 0.0
    executor = ChunkExecutor(
        policy.act_chunk, mode=mode, execution_horizon=horizon, delay=delay, idle_action=idle_action
    )
    with contextlib.closing(executor):
        while True:
            actions.append(executor.act(observation))
            observation, reward, terminated, truncated, info = env.step(actions[-1])
            success, total = max(success, float(info["success"])), total + float(reward)
            if terminated or truncated:
                break
    changes = np.linalg.norm(np.diff(actions, axis=0), axis=-1)
    return _Result(Episode(success, total, len(actions), np.empty((0, 2))), float(changes.mean()))


def _row(delay: int, way: str, results: list[_Result]) -> str:
    summary = summarize([result.episode for result in results])
    change = np.mean([result.change for result in results])
    return (
        f"| {delay} | {way} | {summary['success']:.0%} ({summary['success_low']:.0%} to "
        f"{summary['success_high']:.0%}) | {summary['length']:.0f} | {change:.2f} |"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders of runs in one environment")
    parser.add_argument("--delays", type=_numbers, default=[0, 1, 2, 3, 4], help="such as 0,2,4")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="of the episodes")
    parser.add_argument("--episodes", type=int, default=20, help="of each run and seed")
    parser.add_argument(
        "--horizon", type=int, help="rows of a chunk to execute; see ChunkExecutor for the default"
    )
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
