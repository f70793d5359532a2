"""Every method against stored numbers: where QAM's paper has the method, those of its code.

They do not depend on how noise is drawn, nor on how a network is laid out.
`benchmarks/agreement.py --store` writes the file.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from qam_jax.agents import algorithm_names

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import agreement
from agreement_cases import METHODS, cases_of, make_case, summarise

_SIMILAR = {"bam", "cgql_l", "cgql_m", "edp", "qam_f"}  # to QAM, CGQL, QGF, FQL
_STORED = Path(__file__).with_name("stored_numbers.jsonl")
_ROWS = [json.loads(line) for line in _STORED.read_text().splitlines()]


def test_cases_of_every_method_are_stored():
    assert sorted(METHODS) == algorithm_names()
    for name in METHODS:
        stored = [row["changes"] for row in _ROWS if row["method"] == name]
        assert stored == cases_of(name)
        assert len(stored) >= 3


def _cases():
    """The first case of each method is fast, unless it shares its parts with another method."""
    for name in METHODS:
        rows = [row for row in _ROWS if row["method"] == name]
        for seed, row in enumerate(rows):
            marks = pytest.mark.slow if seed or name in _SIMILAR else ()
            yield pytest.param(row, seed, id=f"{name}-{seed}", marks=marks)


@pytest.mark.parametrize(("stored", "seed"), _cases())
def test_numbers_are_the_stored_ones(stored, seed):
    case = make_case(stored["method"], stored["changes"], seed, num_updates=1)
    found = summarise(case, agreement.run_own(case))
    np.testing.assert_allclose(found["loss"], stored["loss"], rtol=1e-4)
    np.testing.assert_allclose(found["actions"], stored["actions"], rtol=0, atol=1e-4)
    for kind in ("gradients", "params"):
        assert found[kind].keys() == stored[kind].keys()
        for network, numbers in stored[kind].items():
            error = np.abs(np.subtract(found[kind][network], numbers)).max()
            norm = numbers[1]
            assert error <= 1e-4 * norm + 1e-7, (kind, network)
