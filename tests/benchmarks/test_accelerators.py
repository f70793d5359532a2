"""What the text of a compiled program says, and what is wrong with it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

_ROOT = Path(__file__).parents[2]

_PROGRAM = """
HloModule jit_update, is_scheduled=true

%body (state: (f32[4,8], s32[])) -> (f32[4,8], s32[]) {
  %state = (f32[4,8]{1,0}, s32[]) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%state), index=0
  %product = f32[4,8]{1,0} fusion(%x), kind=kCustom, calls=%fused
  %sum = f32[4,8]{1,0} all-reduce(%product), to_apply=%add
  ROOT %out = (f32[4,8]{1,0}, s32[]) tuple(%sum, %i)
}

%fused (x: f32[4,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  ROOT %tanh = f32[4,8]{1,0} tanh(%x.1)
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x.2 = f32[4,8]{1,0} parameter(0)
  %start = f32[4,8]{1,0} copy(%x.2)
  %loop = (f32[4,8]{1,0}, s32[]) while(%start), condition=%c, body=%body TRIPS
  %gather = (bf16[2,8]{1,0}, /*index=1*/bf16[4,8]{1,0}) all-gather-start(%start), dimensions={0}
  %either = f32[4,8]{1,0} conditional(%p, %start, %start), branch_computations={%fused, %body}
  ROOT %end = f32[4,8]{1,0} fusion(%loop, %either), kind=kLoop, calls=%fused
}
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(_ROOT / "benchmarks"))
    yield
    for name in ("accelerators", "hlo", "measure", "methods", "training"):
        sys.modules.pop(name, None)


def test_an_instruction_in_a_loop_counts_as_often_as_the_loop_runs():
    from hlo import read_program

    text = _PROGRAM.replace("TRIPS", ', backend_config={"known_trip_count":{"n":"10"}}')
    assert read_program(text, {32}, in_loop=False) == {
        "kernels": 4 + 10 * 2 + 2,  # the longer branch of the conditional has two
        "loop_iterations": 10,
        "collectives": {"all-reduce": [11, 11 * 4 * 32], "all-gather": [1, 2 * 32]},
        "gathered_matrices": 1,
    }


def test_of_a_block_of_updates_one_turn_of_its_loop_counts():
    from hlo import read_program

    found = read_program(_PROGRAM.replace("TRIPS", ""), {32}, in_loop=True)
    assert (found["kernels"], found["collectives"]) == (2, {"all-reduce": [1, 4 * 32]})


def _row(target, mesh, collectives=(), gathered=0, state=100):
    return {
        "target": target, "method": "qam", "program": "update", "seeds": 8, "mesh": mesh,
        "collectives": {key: [1, 4] for key in collectives}, "gathered_matrices": gathered,
        "state_bytes": state,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (_row("v5e:4x4", [8, 2], ["all-reduce", "all-gather"]), None),
        (_row("v5p:2x2x2", [8, 1], state=200), None),  # another chip lays it out otherwise
        (_row("v5e:4x4", [16, 1], ["all-reduce"]), "v5e:4x4, qam, update of 8 seeds: 16 devices"),
        (_row("v5e:4x4", [8, 2], ["all-gather"], gathered=3), "3 matrices of the state"),
        (_row("v5e:4x4", [8, 2], state=101), "101 bytes of state .* 100 on v5e:2x4"),
    ],
)
def test_programs_that_do_not_scale_are_named(row, fault):
    import re

    from accelerators import find_faults

    faults = find_faults([row, _row("v5e:2x4", [8, 1])])
    assert len(faults) == bool(fault)
    assert not fault or re.search(fault, faults[0])


def test_the_time_is_bounded_by_products_or_memory_and_by_launches():
    from accelerators import Chip, lower_bound

    chip = Chip(float32=1e12, bfloat16=2e12, bandwidth=1e9, launch=1e-6, source="")
    row = {"flops": 1e10, "state_bytes": 1e6, "kernels": 1000}
    assert lower_bound(chip, "float32", row) == pytest.approx(0.010 + 0.001)
    assert lower_bound(chip, "bfloat16", row) == pytest.approx(0.005 + 0.001)
    assert lower_bound(chip, "bfloat16", {**row, "flops": 0}) == pytest.approx(0.002 + 0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--targets=a100", "Error: unknown target 'a100': --targets takes h100, v5e:2x4"),
        ("--targets=v5e:2x4", 'Error: the target v5e:2x4 needs .*: pip install "jax'),
    ],
)
def test_what_is_missing_is_said_in_one_line(flag, message):
    import re

    command = [sys.executable, str(_ROOT / "benchmarks" / "accelerators.py"), flag]
    if "v5e" in flag and _has("libtpu"):
        pytest.skip("libtpu is installed")
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(message + ".*\n", done.stderr)


def _has(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_rows_reach_the_program_from_the_process_of_their_target(monkeypatch):
    import accelerators

    def run(command, **_):
        path = command[-1].removeprefix("--output=")
        accelerators._write_rows(SimpleNamespace(output=path))
        return subprocess.CompletedProcess(command, 0)

    row = {"target": "h100", "kernels": 54}
    monkeypatch.setattr(accelerators, "_compile_all", lambda _: iter([row]))
    monkeypatch.setattr(accelerators.subprocess, "run", run)
    assert accelerators._start("h100", {}) == [row]
