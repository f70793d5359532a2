import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qam_jax.runs.command_line import plain_errors, pop_flag


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_where_there_is_nothing_to_save_ends_at_once(number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, plain_errors():
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not stop it")
    assert ended.value.code == 75
    assert f"Stopped by {number.name}. The same command continues." in capsys.readouterr().err
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    "given", [["--run=exp/a"], ["--run", "exp/a"], ["-run=exp/a"], ["-run", "exp/a"]]
)
def test_flags_are_found_however_they_are_written(given):
    arguments = ["script", "--seed=3", *given, "--runs=5"]
    assert pop_flag(arguments, "run") == "exp/a"
    assert arguments == ["script", "--seed=3", "--runs=5"]
    assert pop_flag(arguments, "run") is None


_PROGRAM = """
import sys
from absl import flags
from qam_jax.runs.command_line import run_with_config
def main(_):
    print(flags.FLAGS.config.lr, flags.FLAGS.config.agent_name)
run_with_config(main, sys.argv.pop(1))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--config.lr=0.5"], "0.5 qam"),
        (["--config.lr=0.5", "--config={configs}/fql.py"], "0.5 fql"),
        (["--config.lr=0.5", "--config", "{configs}/bc.py"], "0.5 bc"),
        (["--config.lr=0.5", "--config={configs}/default.py:qam_e"], "0.5 qam_e"),
    ],
)
def test_the_config_may_stand_behind_the_flags_of_its_fields(given, expected):
    configs = Path(__file__).parents[2] / "experiments" / "configs"
    arguments = [each.format(configs=configs) for each in given]
    output = subprocess.run(
        [sys.executable, "-c", _PROGRAM, configs / "qam.py", *arguments],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert output.strip() == expected


def test_a_mistake_in_a_flag_is_one_line():
    configs = Path(__file__).parents[2] / "experiments" / "configs"
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, configs / "qam.py", "--config.lr=0.5", "--sed=1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert "Unknown command line flag 'sed'" in result.stderr
    assert "defined twice" not in result.stderr
