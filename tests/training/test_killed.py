"""Runs that are really killed and stopped, in both stages, and continued by the same command."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from qam_jax.runs.metrics import read_csv
from qam_jax.runs.saved import load_run

pytestmark = pytest.mark.slow

_SCRIPT = Path(__file__).parents[2] / "experiments" / "train_offline.py"
_STAGES = {"offline": 60, "online": 120}  # steps
_ARGUMENTS = [
    "--run_id=run", "--offline_steps=60", "--online_steps=120", "--start_training=20",
    "--num_envs=2", "--log_interval=4", "--eval_interval=40", "--save_interval=20",
    "--eval_episodes=2", "--eval_envs=2",
    "--config.actor_hidden_dims=(8,)", "--config.critic_hidden_dims=(8,)",
    "--config.horizon_length=2", "--config.flow_steps=2", "--config.batch_size=8",
]  # fmt: skip


@pytest.fixture(name="command", scope="module")
def _command(maze_data, tmp_path_factory):
    """Starts the run in a folder; its progress can be read from stderr."""
    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, str(_SCRIPT), f"--dataset_dir={maze_data}", *_ARGUMENTS]
    environment = {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(folder):
        return subprocess.Popen(
            [*command, f"--save_dir={folder}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )

    return start


def _wait_for(process, stage, step):
    """Reads the progress bar until a stage has come this far."""
    pattern, seen = re.compile(rf"{stage}: .*?(\d+)/{_STAGES[stage]} "), ""
    while True:
        text = os.read(process.stderr.fileno(), 4096).decode(errors="replace")
        assert text, f"the run ended before step {step} of its {stage} stage:\n{seen}"
        seen += text
        steps = [int(match) for match in pattern.findall(seen)]
        if steps and steps[-1] >= step:
            return


def _finish(process):
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def _interrupt(process, stage, step, number):
    _wait_for(process, stage, step)
    process.send_signal(number)
    _, errors = process.communicate()
    return process.returncode, errors.decode()


def _result(folder):
    """Everything that a run leaves, but what the clock says."""
    run = next(folder.glob("*/*/run"))
    rows = {kind: read_csv(run / f"{kind}.csv") for kind in ("train", "eval", "env")}
    for row in rows["train"]:
        row["updates_per_second"] = row["steps_per_second"] = 0
    return load_run(run).state, rows


@pytest.fixture(name="expected", scope="module")
def _expected(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    _finish(command(folder))
    return _result(folder)


def _assert_same(folder, expected):
    state, rows = _result(folder)
    jax.tree.map(np.testing.assert_array_equal, state, expected[0])
    for kind in rows:
        np.testing.assert_equal(rows[kind], expected[1][kind])


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    command, expected, tmp_path
):
    places = [(stage, random.randrange(_STAGES[stage])) for stage in ("offline", "online")] * 2
    places.sort()
    print(places)  # they differ from time to time
    assert [row["step"] for row in expected[1]["train"]] == list(range(4, 181, 4))
    for stage, step in places:
        code, _ = _interrupt(command(tmp_path), stage, step, signal.SIGKILL)
        assert code == -signal.SIGKILL
    assert "Continuing from step" in _finish(command(tmp_path))
    _assert_same(tmp_path, expected)


def test_a_run_that_is_asked_to_stop_loses_nothing(command, expected, tmp_path):
    """Not even the updates since the last row of metrics."""
    for stage, step, number in (("offline", 21, signal.SIGINT), ("online", 30, signal.SIGTERM)):
        code, errors = _interrupt(command(tmp_path), stage, step, number)
        assert code == 75
        assert f"Stopped by {number.name}. The same command continues." in errors
    _finish(command(tmp_path))
    _assert_same(tmp_path, expected)
