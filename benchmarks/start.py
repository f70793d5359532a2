"""Benchmark of the start of training: from the command to the first row of metrics."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import row

from qam_jax.data.generate import generate_dataset

_SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "train_offline.py"
_DATASET, _ENV = "cube-single-play-v0", "cube-single-play-singletask-v0"


def start(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Times the first row of metrics, after one update with the paper's configuration.

    A cold start compiles all programs; a warm start finds those of an earlier start.
    """
    seconds = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_dataset(_DATASET, folder, num_episodes=1, num_processes=1, progress=False)
        for round_ in range(repeats):
            for kind, spent in seconds.items():
                spent.append(_seconds_to_first_row(folder, f"{kind}{round_}", round_, fast))
    return [row(f"start/{kind}", np.array(spent), "s") for kind, spent in seconds.items()]


def _seconds_to_first_row(folder: Path, run: str, round_: int, fast: bool) -> float:
    config = "small.py" if fast else "qam.py"
    settings = {
        "config": _SCRIPT.parent / "configs" / config, "env_name": _ENV, "dataset_dir": folder,
        "save_dir": folder, "run_id": run, "compilation_cache_dir": folder / f"programs{round_}",
        "offline_steps": 100, "log_interval": 1, "eval_interval": 100, "save_interval": 100,
    }  # fmt: skip
    command = [sys.executable, str(_SCRIPT), *(f"--{k}={v}" for k, v in settings.items())]
    rows = folder / "default" / _ENV / run / "train.csv"
    started = time.perf_counter()
    environment = {**os.environ}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # would count instead of the flag
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    try:
        while not (rows.exists() and rows.read_text().count("\n") > 1):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} failed: {process.stderr.read().decode()}")
            time.sleep(0.01)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
