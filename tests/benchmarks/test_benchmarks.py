"""The arithmetic of the benchmarks; what they measure is no test's business."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from qam_jax.agents import get_config

_FOLDER = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(_FOLDER)
    yield
    for name in ("compare", "measure", "training"):
        sys.modules.pop(name, None)


def _row(median, spread=0.0, unit="ms", higher_is_better=False, name="update"):
    from measure import row

    values = np.array([median - spread, median, median + spread])
    return row(name, values, unit, higher_is_better=higher_is_better)


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (_row, {"median": 12.0}, "slower"),
        (_row, {"median": 8.0}, "faster"),
        (_row, {"median": 10.4}, ""),  # within the least change that counts
        (_row, {"median": 12.0, "spread": 3.0}, ""),  # within the noise
        (_row, {"median": 12.0, "higher_is_better": True}, "faster"),
        (_row, {"median": float("nan")}, ""),
    ],
)
def test_verdicts(old, new, verdict):
    from compare import judge

    assert (
        judge(old(10.0, higher_is_better=new.get("higher_is_better", False)), _row(**new), 0.05)
        == verdict
    )


def test_compare_names_what_got_slower(capsys):
    from compare import compare

    before = [_row(10.0), _row(5.0, name="loop"), _row(1.0, name="exponent", unit="")]
    after = [_row(20.0), _row(5.0, name="loop"), _row(9.0, name="exponent", unit="")]
    assert compare(before, after, 0.05) == ["update"]
    assert "slower: update, 10 to 20 ms (times 2.00)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read .*: Expecting value"),
        ("[]", "lacks machine or rows"),
        ('{"rows": []}', "lacks"),
    ],
)
def test_compare_says_what_is_no_report(tmp_path, monkeypatch, capsys, text, message):
    import compare

    path = tmp_path / "report.json"
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(path), str(path)])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert re.search(message, capsys.readouterr().err)


def test_exponent_of_a_power_law():
    from measure import fit_exponent

    assert fit_exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_every_candidate_is_timed_in_every_round():
    from measure import interleave

    order = []
    times = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3  # the first round does not count
    assert all(spent.wall.shape == spent.cpu.shape == (2,) for spent in times.values())


def test_needed_flops_of_the_papers_configuration():
    """By hand: critics of 53 inputs, flows of 54 inputs and 25 outputs, 4 x 512, batch 256."""
    from training import needed_flops

    critic = 53 * 512 + 3 * 512**2 + 512
    flow = 54 * 512 + 3 * 512**2 + 512 * 25
    expected = 2 * 256 * (6 * 10 * critic + 73 * flow)
    assert needed_flops(get_config("qam"), 28, 5) == expected
    assert 55e9 < expected < 57e9
