"""Processes that train together: two real ones on this machine, over Gloo."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from qam_jax.envs import EnvFailure
from qam_jax.runs import processes
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.processes import check_same, from_first, session
from qam_jax.runs.saved import load_run
from qam_jax.runs.settings import ProcessSettings
from qam_jax.runs.stopping import Stopped
from qam_jax.training.train import train

_SCRIPT = Path(__file__).parents[2] / "experiments" / "train_offline.py"
_TRAIN = """
import json, sys
from qam_jax.agents import get_config
from qam_jax.runs.processes import session
from qam_jax.training.train import train_seeds
from qam_jax.runs.settings import ProcessSettings, RunSettings
own, config, runs = map(json.loads, sys.argv[1:])
agent = get_config("qam")
agent.update(config)
with session(ProcessSettings(**own)):
    for run in runs:
        train_seeds(RunSettings(**run), agent)
"""


@pytest.fixture(name="base", scope="module")
def _base(short_run):
    return dataclasses.replace(short_run, seed=3, run_id="run", num_devices=0, start_training=4)


@pytest.fixture(name="config", scope="module")
def _config(small_config):
    return small_config()


@pytest.fixture(name="start", scope="module")
def _start(tmp_path_factory):
    """Starts Python with arguments, on a number of virtual devices."""
    cache = tmp_path_factory.mktemp("cache")

    def start(*arguments, num_devices=1):
        devices = f" --xla_force_host_platform_device_count={num_devices}"
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + devices,
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )

    return start


def _address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def _flags(settings, config):
    values = dataclasses.asdict(settings) | {f"config.{name}": config[name] for name in config}
    return [f"--{name}={value}".replace(" ", "") for name, value in values.items()]


def _finish(process):
    output, errors = (each.decode(errors="replace") for each in process.communicate())
    return process.returncode, output, errors


def _rows(folder, kind):
    rows = read_csv(folder / f"{kind}.csv")
    for row in rows:
        row.pop("updates_per_second", None), row.pop("steps_per_second", None)
    return rows


@pytest.mark.slow
def test_two_processes_agree_with_two_devices_of_one(base, config, start, tmp_path):
    """One seed, whose batches they share, offline and online; and two seeds, one each."""
    runs = {"one": {"online_steps": 8}, "two": {"num_seeds": 2, "env_name": ""}}
    children = []
    for where, count in (("together", 2), ("alone", 1)):
        all_runs = [
            dataclasses.asdict(
                dataclasses.replace(base, save_dir=str(tmp_path / where), group=group, **changes)
            )
            for group, changes in runs.items()
        ]
        own = [{}]
        if count == 2:
            common = {"coordinator_address": _address(), "num_processes": 2}
            own = [{**common, "process_id": index} for index in range(2)]
        for each in own:
            arguments = map(json.dumps, (each, config.to_dict(), all_runs))
            children.append(start("-c", _TRAIN, *arguments, num_devices=3 - count))
    for code, _, errors in map(_finish, children):
        assert code == 0, errors
    folders = sorted(path.parent for path in tmp_path.glob("alone/*/*/*/config.json"))
    assert [folder.name for folder in folders] == ["run", "run-seed3", "run-seed4"]
    for folder in folders:
        together = tmp_path / "together" / folder.relative_to(tmp_path / "alone")
        for kind in ("train", "eval") if folder.name == "run" else ("train",):
            expected, rows = _rows(folder, kind), _rows(together, kind)
            assert len(rows) == len(expected) > 0
            for row, expected_row in zip(rows, expected, strict=True):
                assert row.keys() == expected_row.keys()
                for name in row:
                    np.testing.assert_allclose(
                        row[name], expected_row[name], rtol=5e-3, atol=1e-3, err_msg=name
                    )
        state, expected_state = load_run(together).state, load_run(folder).state
        close = partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4)
        jax.tree.map(close, state, expected_state)
        newest = max(together.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
        writers = {path.name for path in newest.glob("agent/ocdbt.process_*")}
        assert writers == {"ocdbt.process_0", "ocdbt.process_1"}


def _start_two(start, settings, config):
    file = _SCRIPT.parent / "configs" / "qam.py"
    common = [
        _SCRIPT,
        f"--config={file}",
        *_flags(settings, config),
        f"--coordinator_address={_address()}",
        "--heartbeat_timeout=10",
    ]
    return [start(*common, "--num_processes=2", f"--process_id={index}") for index in range(2)]


def _wait_for(process, step):
    """Reads the progress bar of the first process until training has come this far."""
    seen = ""
    while True:
        text = os.read(process.stderr.fileno(), 4096).decode(errors="replace")
        assert text, f"the run ended before step {step}:\n{seen}"
        seen += text
        steps = [int(match) for match in re.findall(r"offline: .*?(\d+)/", seen)]
        if steps and steps[-1] >= step:
            return


@pytest.fixture(name="endless")
def _endless(base, tmp_path):
    """A run that is only ended from without, on data alone."""
    return dataclasses.replace(base, save_dir=str(tmp_path), env_name="", offline_steps=10**6)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.slow
def test_when_one_is_lost_the_other_ends_and_the_run_can_be_continued(endless, config, start, lost):
    """By both again, of which then one is asked to stop; and by a single process."""
    children = _start_two(start, endless, config)
    _wait_for(children[0], 9)
    children[lost].kill()
    code, _, errors = _finish(children[1 - lost])
    assert code not in (0, 75), errors
    assert re.search("another process is lost|another task died|coordination service", errors)
    assert _finish(children[lost])[0] == -signal.SIGKILL
    folder = next(Path(endless.save_dir).glob("*/*/run"))
    step = load_run(folder).step
    children = _start_two(start, endless, config)
    _wait_for(children[0], step + 1)
    children[lost].terminate()
    (code, output, errors), (other_code, other_output, other_errors) = map(_finish, children)
    assert (code, other_code) == (75, 75), errors + other_errors
    assert f"Continuing from step {step} in" in output
    assert "Continuing" not in other_output  # one talks for both
    for each in (errors, other_errors):
        assert "Stopped by SIGTERM. The same command continues." in each
    step = load_run(folder).step
    end = step - step % 4 + 8
    train(dataclasses.replace(endless, num_devices=1, offline_steps=end), config)
    assert load_run(folder).step == end
    assert [row["step"] for row in _rows(folder, "train")] == list(range(4, end + 1, 4))


def test_commands_that_differ_are_refused(monkeypatch):
    theirs = {"seed": 0, "config.lr": 0.1}
    monkeypatch.setattr(processes, "gather", lambda value: [theirs, value])
    check_same("settings", theirs)
    with pytest.raises(
        ValueError,
        match=r"differ in their settings: config.lr is 0.1 in process 0 and 0.2 in process 1\.",
    ):
        check_same("settings", {**theirs, "config.lr": 0.2})


@pytest.mark.parametrize(
    ("error", "theirs"),
    [
        (EnvFailure("the arm fell off"), EnvFailure),  # after which all save
        (Stopped("SIGTERM"), Stopped),
        (ValueError("bad data"), OSError),
    ],
)
def test_an_error_of_the_first_process_ends_all(monkeypatch, error, theirs):
    given = []
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "wait_for_all", lambda name: None)
    monkeypatch.setattr(processes, "gather", lambda value: given.append(value) or given)

    def fail():
        raise error

    for first, expected in ((True, type(error)), (False, theirs)):
        monkeypatch.setattr(processes, "is_first", lambda first=first: first)
        with pytest.raises(expected, match=str(error)):
            from_first(fail)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "--num_processes without --coordinator_address and --process_id"),
        (
            {"num_processes": 2, "distributed": True},
            "--distributed detects what --num_processes says by hand",
        ),
        (
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 is none of the 2 of --num_processes: number them from 0 to 1",
        ),
        (
            {"coordinator_address": "a", "num_processes": 2, "process_id": 1},
            "--coordinator_address must be <host>:<port>",
        ),
        (
            {"coordinator_address": "a:1", "num_processes": -1, "process_id": 1},
            "--num_processes must be at least 0",
        ),
        ({"start_timeout": 0}, "--start_timeout must be at least 1"),
    ],
)
def test_flags_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=re.escape(message)), session(ProcessSettings(**given)):
        pass


def test_a_first_process_that_is_not_there():
    settings = ProcessSettings(
        coordinator_address=_address(), num_processes=2, process_id=1, start_timeout=1
    )
    with (
        pytest.raises(OSError, match=r"process 0 cannot be reached at --coordinator_address=127"),
        session(settings),
    ):
        pass
