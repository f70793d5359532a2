import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qam_jax.files import read_json
from qam_jax.runs.command_line import plain_errors, pop_flag
from qam_jax.runs.stopping import stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_where_there_is_nothing_to_save_ends_at_once(number, capsys):
    outer = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    try:
        with pytest.raises(SystemExit) as ended, plain_errors():
            os.kill(os.getpid(), number)
            raise AssertionError("the signal did not stop it")
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, outer)
    assert ended.value.code == 75
    assert f"Stopped by {number.name}. The same command continues." in capsys.readouterr().err


def test_an_error_of_the_users_own_code_is_one_line_that_names_its_place(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import json, sys\ndef fail(): json.loads({})\ndef leave(): sys.exit(0)")
    own = runpy.run_path(str(path))
    errors = {"fail": "TypeError: the JSON .*, line 2 of ", "leave": "SystemExit: 0, line 3 of "}
    for name, error in errors.items():
        with pytest.raises(SystemExit, match=f"^Error: {error}{path} .--verb"), plain_errors():
            own[name]()


def test_an_error_of_the_package_keeps_its_traceback():
    with pytest.raises(TypeError), plain_errors():
        read_json(None)


_COMPILING = """
import jax, jax.numpy as jnp
from qam_jax.runs.command_line import plain_errors, run_main
def function(x):
    for number in range(1000):
        x = jnp.sin(x @ x) * number
    return x
def main(_):
    with plain_errors():
        program = jax.jit(function).lower(jnp.ones((8, 8)))
        print("compiling", flush=True)
        program.compile()
        print("compiled", flush=True)
run_main(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_a_compilation_ends_at_once(number):
    variables = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", _COMPILING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=variables, text=True, **pipes) as process:
        assert process.stdout.readline() == "compiling\n"
        process.send_signal(number)
        output, errors = process.communicate()
    assert (process.returncode, output) == (75, "")
    assert errors.splitlines()[-1] == f"Stopped by {number.name}. The same command continues."


@pytest.mark.parametrize(
    "given", [["--run=exp/a"], ["--run", "exp/a"], ["-run=exp/a"], ["-run", "exp/a"]]
)
def test_flags_are_found_however_they_are_written(given):
    arguments = ["script", "--seed=3", *given, "--runs=5"]
    assert pop_flag(arguments, "run") == "exp/a"
    assert arguments == ["script", "--seed=3", "--runs=5"]
    assert pop_flag(arguments, "run") is None


_CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"

# Each command line gets a process of its own, without the time that the imports take.
_PROGRAM = """
import json, os, sys
import qam_jax.agents, qam_jax.runs.presets
from absl import flags
from qam_jax.runs.command_line import run_with_config
flags.DEFINE_integer("seed", 0, "")
def main(rest):
    print(flags.FLAGS.config.lr, flags.FLAGS.config.agent_name, flags.FLAGS.seed)
default, command_lines = sys.argv[1:]
for arguments in json.loads(command_lines):
    if os.fork() == 0:
        os.dup2(1, 2)
        sys.argv = ["train.py", *arguments]
        run_with_config(main, default, seed=7)
    os.wait()
    print("-----", flush=True)
"""


def _outputs(command_lines):
    """What the program prints for each of the command lines, in which {configs} is the folder."""
    given = [[each.format(configs=_CONFIGS) for each in line] for line in command_lines]
    command = [sys.executable, "-c", _PROGRAM, _CONFIGS / "qam.py", json.dumps(given)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [output.strip() for output in result.stdout.split("-----\n")[:-1]]


def test_the_config_may_stand_before_or_behind_the_flags_of_its_fields():
    cases = {
        (): "0.0003 qam 7",
        ("--config.lr=0.5",): "0.5 qam 7",
        ("--config.lr=0.5", "--config={configs}/fql.py"): "0.5 fql 0",
        ("--config={configs}/fql.py", "--config.lr=1", "--config.lr=0.5"): "0.5 fql 0",
        ("--config.lr=0.5", "--config", "{configs}/bc.py"): "0.5 bc 0",
        ("--config.lr=0.5", "--config={configs}/default.py:qam_e"): "0.5 qam_e 0",
        ("--config={configs}/quickstart.py",): "0.001 qam 0",
        ("--config.actor_hidden_dims=512,512",): "0.0003 qam 7",
    }
    assert _outputs(cases) == list(cases.values())


def test_a_mistake_on_the_command_line_is_one_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff")
    leaving = tmp_path / "leaving.py"
    leaving.write_text("import sys\ndef get_config(): sys.exit(0)")
    failing = tmp_path / "failing.py"
    failing.write_text("def get_config():\n    raise ValueError('no\\nlicence')")
    unknown = r"Unknown command line flag 'sed'\. Did you mean: seed.* --help lists the flags\."
    brackets = r"expected values in brackets, such as \(512,512\), or \(512,\) for one\."
    cases = {
        ("--sed=1",): unknown,
        ("--config.lr=0.5", "--sed=1"): unknown,
        ("--config.lr=0.5", "--seed=x"): "flag --seed=x: invalid literal for int",
        ("--config.lr=x",): "flag --config.lr=x: could not convert string to float: 'x'",
        ("--config.lr.x=1", "--seed=1"): r"--config\.<field>\.<field>: .*lr\.x",
        ("--config={configs}/qamm.py",): r"configs/qamm\.py: unknown algorithm 'qamm'.* bam, bc",
        ("--config={configs}/qamm.py", "--config.lr=1"): "unknown algorithm 'qamm'.* bam, bc",
        ("--config=/no/qam.py",): r"there is no file /no/qam\.py\. Give experiments/configs/",
        (f"--flagfile={binary}",): "'utf-8' codec can't decode byte 0xff",
        ("--config=/",): r"there is no file /\. Give experiments/configs/",
        ("--config=" + 300 * "x",): "there is no file x+. Give experiments/configs/",
        ("--config={configs}/qam.py:x",): r"qam\.py:x: get_config\(\) takes 1 positional argument",
        ("--config.lr=1", "--config=/no/qam.py"): r"there is no file /no/qam\.py\. Give exp",
        ("--config={configs}/default.py",): "default.py: .*missing .* argument: 'agent_name'",
        (f"--config={broken}",):
            r"broken\.py: ZeroDivisionError: division by zero, line 1 of .*broken\.py",
        (f"--config={leaving}",): r"leaving\.py: SystemExit: 0, line 2 of .*leaving\.py",
        (f"--config={failing}",): r"failing\.py: ValueError: no licence, line 2 of .*failing\.py",
        (f"--config={__file__}",): r"test_command_line\.py: it has no function get_config\.",
        ("--config.actor_hidden_dims=512",): f"actor_hidden_dims=512: {brackets}",
        ("--config.actor_hidden_dims", "wide"): f"actor_hidden_dims=wide: {brackets}",
        ("--config.actor_hidden_dims=(8,)", "--config.actor_hidden_dims", "(16,)"):
            r"--config\.actor_hidden_dims is given 2 times: give it once, with all its values",
        ("--config",): "Missing value for flag --config",
        ("seed=1",): r"unexpected arguments \['seed=1'\]; flags look .* --help lists the flags\.",
    }  # fmt: skip
    for output, (given, expected) in zip(_outputs(cases), cases.items(), strict=True):
        assert re.match(f"Error: .*{expected}", output), (given, output)
        assert "\n" not in output, given


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        with stop_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            request.check()
    finally:
        signal.signal(signal.SIGHUP, before)
