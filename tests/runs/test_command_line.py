import os
import signal

import pytest

from qam_jax.runs.command_line import plain_errors, take_flag, with_default_config


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
    assert take_flag(arguments, "run") == "exp/a"
    assert arguments == ["script", "--seed=3", "--runs=5"]
    assert take_flag(arguments, "run") is None


@pytest.mark.parametrize("given", [["--config=mine.py"], ["--config", "mine.py"]])
def test_the_config_comes_before_the_flags_that_change_it(given):
    arguments = ["script", "--config.lr=1.0", *given]
    with_default_config(arguments, "default.py")
    assert arguments == ["script", "--config=mine.py", "--config.lr=1.0"]
    arguments = ["script", "--config.lr=1.0"]
    with_default_config(arguments, "default.py")
    assert arguments == ["script", "--config=default.py", "--config.lr=1.0"]
