"""The process that speaks for one that cannot any more."""

import json
import subprocess
import sys

import pytest

from qam_jax.training import witness


def _witness(lines):
    process = subprocess.run(
        [sys.executable, "-I", witness.__file__],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return process.stderr


def test_where_runs_stand(tmp_path):
    for name in ("8", "12", "damaged-16", "20.orbax-checkpoint-tmp"):
        (tmp_path / "begun" / "checkpoints" / name).mkdir(parents=True)
    begun, fresh = str(tmp_path / "begun"), str(tmp_path / "fresh")
    words = witness.last_checkpoints([begun, fresh])
    assert words == f"Last checkpoint: step 12 in {begun}; none yet in {fresh}. "
    assert witness.last_checkpoints([]) == ""


@pytest.mark.parametrize(
    ("end", "said"), [([], "It was lost. Last checkpoint: none yet in "), ([witness.GOODBYE], "")]
)
def test_it_speaks_unless_there_was_a_goodbye(tmp_path, end, said):
    first = json.dumps(["It does not start.", []])
    then = json.dumps(["It was lost. {checkpoints}Go on.", [str(tmp_path)]])
    spoken = _witness([first, then, *end]).strip()
    assert spoken == (f"{said}{tmp_path}. Go on." if said else "")


def test_it_has_nothing_to_say_between_two_messages():
    assert _witness([json.dumps(["It does not start.", []]), json.dumps(["", []])]) == ""
