import os
import subprocess
import sys

_PROGRAM = """
import sys, jax, jax.numpy as jnp
from qam_jax.training.devices import keep_programs
for folder in sys.argv[1:]:
    keep_programs(folder)
print(jax.jit(lambda x: jnp.sin(x) + 1.25)(0.0), jax.config.jax_compilation_cache_dir)
"""


def _run(*folders, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", _PROGRAM, *map(str, folders)]
    environment = {**inherited, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def _programs(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_programs_are_kept_found_again_and_replaced_if_they_cannot_be_read(tmp_path):
    folder = tmp_path / "programs"
    assert _run(folder).stdout.startswith("1.25 ")
    kept = {path: path.read_bytes() for path in _programs(folder)}
    assert kept
    _run(folder)
    assert {path: path.read_bytes() for path in _programs(folder)} == kept
    for path in kept:
        path.write_bytes(kept[path][:100])
    assert _run(folder).stdout.startswith("1.25 ")


def test_a_folder_that_jax_was_told_of_is_left_alone(tmp_path):
    own = tmp_path / "own"
    result = _run(tmp_path / "programs", JAX_COMPILATION_CACHE_DIR=str(own))
    assert result.stdout.strip() == f"1.25 {own}"
    assert not _programs(tmp_path / "programs")


def test_without_a_folder_programs_are_compiled_each_time(tmp_path):
    (tmp_path / "file").touch()
    result = _run("", tmp_path / "file" / "inside")
    assert result.stdout.strip() == "1.25 None"
    assert result.stderr.count("not kept") == 1  # of the second
