"""Folders of small files, as `Shards` reads them, and a short training run on given data."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qam_jax import files
from qam_jax.data import column_cache
from qam_jax.data.shards import Shards


@pytest.fixture(name="fast_disk")
def _fast_disk(monkeypatch):
    """Nothing is waited for until it is on the disk, and the cache is where it is by default."""
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)
    monkeypatch.delenv(column_cache.CACHE_VARIABLE, raising=False)


@pytest.fixture(name="open_folder")
def _open_folder(fast_disk):
    """Opens folders, whose files change every 10 steps, and closes them after the test."""
    opened = []

    def open_folder(folder, env=None, **options):
        opened.append(Shards(folder, env, **{"replace_interval": 10, **options}))
        return opened[-1]

    yield open_folder
    for source in opened:
        source.close()


@pytest.fixture(name="write")
def _write():
    """Writes a file of episodes of four rows; every row is told apart by its number."""

    def write(path, first=0, rows=12, **changes):
        numbers = np.arange(first, first + rows)
        data = {
            "observations": np.stack([numbers, -numbers], 1).astype(np.float32),
            "actions": np.linspace(-1, 1, 2 * rows).reshape(rows, 2),
            "rewards": -numbers,
            "terminals": numbers % 4 == 3,
            **changes,
        }
        np.savez_compressed(
            path, **{name: value for name, value in data.items() if value is not None}
        )
        return path

    return write


@pytest.fixture(name="folder")
def _folder(tmp_path, write, fast_disk):
    """Three files of different lengths, with numbers from 0, 100 and 200."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for index, (name, rows) in enumerate({"a": 12, "b": 20, "c": 8}.items()):
        write(folder / f"{name}.npz", 100 * index, rows)
    write(folder / "a-val.npz", 1000)
    return folder


@pytest.fixture(name="train_on")
def _train_on(tmp_path):
    """Trains from the command line, without an environment; returns what it printed, and config."""

    def train_on(*flags):
        script = Path(__file__).parents[2] / "experiments" / "train_offline.py"
        sizes = [
            f"--save_dir={tmp_path}", "--run_id=short", "--env_name=", "--offline_steps=100",
            "--log_interval=50", "--eval_interval=100", "--save_interval=100",
            "--config.actor_hidden_dims=(8,)", "--config.critic_hidden_dims=(8,)",
            "--config.batch_size=8", "--config.horizon_length=2",
        ]  # fmt: skip
        command = [sys.executable, str(script), *flags, *sizes]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        config = next(tmp_path.glob("default/*/short/config.json")).read_text()
        return result.stdout, json.loads(config)

    return train_on
