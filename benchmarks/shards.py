"""Measures training on many files: memory, conversion, and the wait when a file replaces another.

    python benchmarks/shards.py --shards=20 --rows=250000 --interval=1000

The files are pieces of OGBench's pointmaze-medium-navigate data with a little noise, so that they
differ. A small QAM trains on one file alone for comparison, then on each file for an interval of
updates. It runs on Linux; `taskset -c 0` in front restricts it to one processor.
"""

import argparse
import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

from qam_jax.agents import Agent, AgentState, make_agent
from qam_jax.data.dataset import sample_windows
from qam_jax.data.shards import Shards
from qam_jax.envs import make_env
from qam_jax.training.devices import Layout
from qam_jax.training.update import MetricSums, empty_sums, make_block, metric_names

_ENV_NAME = "pointmaze-medium-navigate-singletask-v0"
_DATASET = "pointmaze-medium-navigate-v0"
_CONFIG = Path(__file__).parents[1] / "experiments" / "configs" / "quickstart.py"
_NOISE = 1e-3  # of positions, in the maze's units


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        size = _write_shards(folder, Path(arguments.data).expanduser(), arguments)
        print(f"{arguments.shards} files of {size / 1e6:.1f} MB in {folder}")
        env = make_env(_ENV_NAME)
        _time_reading(folder, env, arguments.interval)
        block, state, sums = _start(folder, env, arguments.interval)
        alone = Shards(folder, env, replace_interval=0)
        speed, state, sums = _train(alone, block, state, sums, arguments.interval, 2)
        alone.close()
        print(f"one file alone: {speed:.1f} updates/s")
        source = Shards(folder, env, replace_interval=arguments.interval)
        start = time.perf_counter()
        speed, *_ = _train(source, block, state, sums, arguments.interval, arguments.shards)
        _report(source, time.perf_counter() - start, speed)
        source.close()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=20, help="files")
    parser.add_argument("--rows", type=int, default=250_000, help="rows of each, about")
    parser.add_argument("--interval", type=int, default=1000, help="updates on each")
    parser.add_argument("--folder", help="to write the files in; the system's by default")
    parser.add_argument(
        "--data",
        default=f"~/.ogbench/data/{_DATASET}.npz",
        help="OGBench's file (experiments/generate_dataset.py makes one)",
    )
    return parser.parse_args()


def _write_shards(folder: Path, path: Path, arguments: argparse.Namespace) -> int:
    """Writes whole episodes, in turn; returns the bytes of one file."""
    with np.load(path) as archive:
        data = {name: archive[name] for name in ("observations", "actions", "terminals", "qpos")}
    ends = np.flatnonzero(data["terminals"])
    length = int(ends[0]) + 1
    per_file = max(1, arguments.rows // length)
    rng = np.random.default_rng(0)
    for index in range(arguments.shards):
        episodes = (index * per_file + np.arange(per_file)) % len(ends)
        rows = (ends[episodes][:, None] + np.arange(1 - length, 1)).ravel()
        shard = {name: array[rows] for name, array in data.items()}
        noise = rng.normal(0.0, _NOISE, shard["qpos"].shape).astype(np.float32)
        shard["qpos"] += noise
        shard["observations"] += noise
        target = folder / f"{_DATASET}-{index:03d}.npz"
        np.savez_compressed(target, **shard)
    return target.stat().st_size


def _time_reading(folder: Path, env: gymnasium.Env, interval: int) -> None:
    times = []
    for _ in range(2):
        start = time.perf_counter()
        source = Shards(folder, env, replace_interval=interval)
        opened = time.perf_counter()
        dataset = source.at(0)
        times.append(time.perf_counter() - opened)
        source.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(dataset))
    print(f"opening the folder: {opened - start:.2f} s")
    print(f"a file is {size / 1e6:.1f} MB in memory; converted and read in {times[0]:.2f} s")
    print(f"read again from its columns in {times[1]:.2f} s")


def _start(
    folder: Path, env: gymnasium.Env, interval: int
) -> tuple[Callable[..., Any], AgentState, MetricSums]:
    """A small QAM, its update compiled."""
    config = runpy.run_path(str(_CONFIG))["get_config"]()
    agent: Agent = make_agent(config)
    source = Shards(folder, env, replace_interval=interval)
    dataset = source.at(0)
    state = agent.init(jax.random.PRNGKey(0), dataset.observations[0], dataset.actions[0])

    def sample(data, key):
        return sample_windows(data, key, config.batch_size, config.horizon_length, config.discount)

    block = make_block(agent, sample, Layout([0]))
    sums = empty_sums(metric_names(agent, state, config, dataset.observations.shape[1]))
    state, sums = jax.block_until_ready(block(state, sums, jax.random.PRNGKey(1), dataset, 1))
    source.close()
    return block, state, sums


def _train(
    source: Shards,
    block: Callable[..., Any],
    state: AgentState,
    sums: MetricSums,
    interval: int,
    count: int,
) -> tuple[float, AgentState, MetricSums]:
    """Trains for `count` intervals; returns the updates per second without the waits."""
    seconds = 0.0
    for step in range(0, count * interval, interval):
        waited = source.stall_seconds
        dataset = source.at(step)
        if source.num_swaps:
            waited = source.stall_seconds - waited
            print(f"swap {source.num_swaps:3d}: waited {1e3 * waited:6.1f} ms, {_memory()}")
        start = time.perf_counter()
        state, sums = jax.block_until_ready(
            block(state, sums, jax.random.PRNGKey(1), dataset, interval)
        )
        seconds += time.perf_counter() - start
    return count * interval / seconds, state, sums


def _memory() -> str:
    """The resident memory of this process, and its part that is not mapped from files."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    total, own = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    return f"{total:.0f} MiB resident ({own:.0f} of its own)"


def _report(source: Shards, seconds: float, speed: float) -> None:
    stall = source.stall_seconds
    print(f"all files: {speed:.1f} updates/s between swaps")
    print(
        f"{source.num_swaps} swaps: {1e3 * stall / max(1, source.num_swaps):.1f} ms each, "
        f"{stall / seconds:.2%} of {seconds:.0f} s of training"
    )


if __name__ == "__main__":
    main()
