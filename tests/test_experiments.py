"""The command line, as a user meets it."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qam_jax.agents import algorithm_names, get_config

_ROOT = Path(__file__).parent.parent


def _run(script, *arguments):
    command = [sys.executable, str(_ROOT / "experiments" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _last_line(result):
    return (result.stderr or result.stdout).strip().splitlines()[-1]


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory):
    """A file of one's own for the medium point maze, whose goal is at (20, 20)."""
    path = tmp_path_factory.mktemp("own") / "mine.npz"
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 20, size=(200, 2))
    np.savez(
        path,
        observations=positions,
        actions=rng.uniform(-1, 1, size=(200, 2)),
        rewards=-np.ones(200),
        terminals=np.arange(200) % 50 == 49,
    )
    return path


@pytest.mark.slow
def test_training_and_evaluation_from_the_command_line(data, tmp_path):
    result = _run(
        "train_offline.py", f"--dataset={data}", f"--save_dir={tmp_path}", "--run_id=mine",
        "--offline_steps=4", "--log_interval=2", "--eval_interval=4", "--save_interval=4",
        "--eval_episodes=2", "--config.actor_hidden_dims=(8,)", "--config.critic_hidden_dims=(8,)",
        "--config.batch_size=8",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert f"Data: your file {data}; 196 transitions." in result.stdout
    assert "qam: success" in result.stdout
    assert "behaviour cloning alone: success" in result.stdout
    folder = tmp_path / "default" / "pointmaze-medium-navigate-singletask-v0" / "mine"
    assert (folder / "trajectories.png").exists()
    evaluated = _run("evaluate.py", f"--run={folder}", "--episodes=2")
    assert evaluated.returncode == 0, evaluated.stderr
    trained = next(line for line in result.stdout.splitlines() if line.startswith("qam: success"))
    assert trained.removeprefix("qam: ") in evaluated.stdout  # the same checkpoint and numbers
    numbers = ["--guidance=0,0.05", "--best_of_n=1,2"]
    guided = _run("evaluate.py", f"--run={folder}", "--episodes=2", *numbers)
    assert guided.returncode == 0, guided.stderr
    rows = [line.split()[:6] for line in guided.stdout.splitlines() if "guidance" in line]
    assert rows == [
        ["guidance", weight, "best", "of", count, "success"]
        for weight in ("0", "0.05")
        for count in "12"
    ]


_QUICK = ("train_offline.py", "record_dataset.py")  # scripts whose help the fast suite asks for


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path.name, marks=() if path.name in _QUICK else pytest.mark.slow)
        for path in sorted((_ROOT / "experiments").glob("*.py"))
    ],
)
def test_help_is_printed_without_a_run(script):
    result = _run(script, "--help")
    assert result.returncode == 0
    assert "flags:" in result.stdout
    if script == "train_offline.py":  # the quick start's own values
        assert "Updates on the dataset.\n    (default: '20000')" in result.stdout
        assert "rebrac" in result.stdout
        assert "\n  --config.lr=0.001\n" in result.stdout
    assert "Traceback" not in result.stderr


def test_one_config_file_serves_every_algorithm():
    path = _ROOT / "experiments" / "configs" / "default.py"
    assert len(algorithm_names()) == 23
    for name in algorithm_names():
        assert runpy.run_path(str(path))["get_config"](name) == get_config(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.inv_tmp=3", "--config.lr=1"],
            "unknown config field 'inv_tmp' for 'qam'. Did you mean 'inv_temp'?",
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["--env_name=cube-quintuple-play-singletask-v0"], "unknown environment 'cube-qu"),
                (["--config.agent_name=sac"], "unknown algorithm 'sac'"),
                (["--config.fql_alpha=1.0", "--config.edit_scale=0.1"], "exclude each other"),
                (["--dataset=/nowhere/mine.npz"], "there is no such file"),
                (["--log_interval=300"], "--eval_interval must be a multiple of --log_interval"),
                (["offline_steps=3"], "unexpected arguments"),
            )
        ),
    ],
)
def test_bad_input_ends_with_one_clear_message(arguments, message, tmp_path):
    result = _run("train_offline.py", f"--save_dir={tmp_path}", *arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_flags_win_over_the_preset_and_the_preset_over_defaults():
    """As far as the data, which are not there."""
    result = _run(
        "train_offline.py", "--preset=paper", "--env_name=scene-play-singletask-task2-v0",
        "--dataset=/nowhere/mine.npz", "--offline_steps=1000000", "--config.inv_temp=3.0",
    )  # fmt: skip
    assert "Preset paper for qam in scene-play-singletask-task2-v0" in result.stdout
    assert "--sparse=True (without it: False)" in result.stdout
    assert "--config.inv_temp=3.0 is given and stays; the preset has 1.0" in result.stdout
    assert "steps=1000000" not in result.stdout  # both have that
    assert _last_line(result).startswith("Error: /nowhere/mine.npz: there is no such file")


@pytest.mark.slow
def test_a_preset_is_for_new_runs():
    result = _run("finetune_online.py", "--preset=paper", "--run=exp/some")
    assert result.returncode == 1
    assert "--preset both give settings and hyperparameters" in _last_line(result)


@pytest.mark.slow
def test_a_sweep_trains_once_what_is_left(data, tmp_path):
    arguments = [
        "--methods=bc", "--envs=pointmaze-medium-navigate-singletask-v0",
        "--grid=config.horizon_length=1,51", f"--save_dir={tmp_path}", "--group=mine", "--",
        f"--dataset={data}", "--offline_steps=4", "--log_interval=2", "--eval_interval=4",
        "--save_interval=4", "--eval_episodes=1", "--config.actor_hidden_dims=(8,)",
        "--config.batch_size=8",
    ]  # fmt: skip
    first = _run("sweep.py", *arguments)
    names = [f"bc-horizon_length={length}-seed0" for length in (1, 51)]
    assert first.returncode == 1
    assert f"started   pointmaze-medium-navigate-singletask-v0/{names[0]}" in first.stdout
    assert "1 finished, 1 failed" in first.stdout
    assert f"{names[1]}: horizon_length = 51 is longer than every episode" in first.stdout
    folder = tmp_path / "mine" / "pointmaze-medium-navigate-singletask-v0" / names[0]
    assert (folder / "checkpoints" / "4").exists()
    again = _run("sweep.py", "--dry_run", *arguments)
    assert again.returncode == 0
    assert "1 failed, 1 finished\nFailed before:" in again.stdout
    commands = [line for line in again.stdout.splitlines() if "train_offline.py" in line]
    assert [names[1] in command for command in commands] == [True]
    (folder / "config.json").write_text("{")
    damaged = _run("sweep.py", "--backend=commands", f"--commands_file={tmp_path}/c", *arguments)
    assert damaged.returncode == 1
    assert "1 failed, 1 damaged" in damaged.stdout
    assert f"{names[0]}: {folder / 'config.json'} is damaged" in damaged.stdout
    assert names[1] in (tmp_path / "c").read_text()
    assert names[0] not in (tmp_path / "c").read_text()


@pytest.mark.slow
def test_a_sweep_writes_commands(tmp_path):
    path = tmp_path / "commands.txt"
    result = _run(
        "sweep.py", "--study=main", "--methods=qam,qam_e", "--domains=cube-quadruple-play",
        "--seeds=0-2", "--backend=commands", f"--commands_file={path}", f"--save_dir={tmp_path}",
        "--updates_per_second=100",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = path.read_text().splitlines()
    assert len(set(lines)) == 30
    assert all("--preset=paper" in line and "train_offline.py" in line for line in lines)
    hours = 30 * (1_000_000 + 500_000 - 5000) / 100 / 3600
    assert f"To do: 30 jobs, {hours:.1f} GPU-hours of updates" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which runs? Give --study"),
        (["--offline_steps=3"], "Flags of the runs themselves come after --"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["--study=main", "--grid=config.lr=1"], "--grid is for sweeps without --study"),
                (["--study=main", "--backend=slurm"], "--backend=commands"),
                (["--study=main", "--updates_per_second=bq=3"], "unknown algorithm 'bq'"),
                (["--methods=qam", "--grid=config.lr"], "--grid: expected <flag>=<value>,<value>"),
            )
        ),
    ],
)
def test_sweeps_that_make_no_sense(arguments, message, tmp_path):
    result = _run("sweep.py", f"--save_dir={tmp_path}", *arguments)
    assert result.returncode == 1
    assert message in _last_line(result)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance=0.1,much"], "--guidance: expected numbers such as 1,4 (could not"),
        (["--best_of_n=1.5"], "--best_of_n: expected whole numbers"),
        (["--guidance=0,1", "--video_episodes=1"], "--video_episodes films one policy"),
    ],
)
def test_evaluations_that_make_no_sense(arguments, message):
    result = _run("evaluate.py", "--run=exp/some", *arguments)
    assert result.returncode == 1
    assert message in _last_line(result)


@pytest.mark.slow
def test_evaluating_what_is_not_a_run(tmp_path):
    result = _run("evaluate.py", f"--run={tmp_path}")
    assert result.returncode == 1
    assert _last_line(result).startswith("Error: there is no")
    assert "give the folder of a run" in result.stderr
