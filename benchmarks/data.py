"""Benchmarks of data: windows drawn, a file loaded, transitions simulated."""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import interleave, row
from training import make_synthetic

from qam_jax.data.dataset import make_dataset, sample_windows
from qam_jax.data.generate import generate_dataset
from qam_jax.data.npz import load_npz

_MAZE = "pointmaze-medium-navigate-v0"


def data(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Times windows, loading and simulation. Datasets of many files: see `shards.py`."""
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


def _write(folder: Path, dataset) -> Path:
    path = folder / "synthetic.npz"
    rows = len(dataset.rewards)
    columns = {name: np.asarray(getattr(dataset, name)) for name in ("observations", "actions")}
    terminals = np.arange(1, rows + 1) % 1000 == 0
    np.savez(path, **columns, rewards=np.asarray(dataset.rewards), terminals=terminals)
    return path


def _simulation_speed(folder: Path, fast: bool) -> float:
    """Steps per second of one process: the difference of two lengths leaves its start out."""
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
