"""Every method against stored numbers, most of them from the code of QAM's paper.

They do not depend on how noise is drawn: every draw gives the same numbers. See
`benchmarks/agreement.py`, which writes the file.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

_STORED = json.loads((Path(__file__).parent / "stored_numbers.json").read_text())["methods"]


@pytest.fixture(name="cases")
def _cases(monkeypatch):
    """The module that makes the cases."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import agreement_cases

    yield agreement_cases
    sys.modules.pop("agreement_cases", None)


def test_every_case_is_stored(cases):
    assert _STORED.keys() == cases.METHODS.keys()
    for name, stored in _STORED.items():
        assert [case["changes"] for case in stored["cases"]] == cases.cases_of(name)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param((name, index), id=f"{name}-{index}", marks=[pytest.mark.slow] * (index > 0))
        for name, stored in _STORED.items()
        for index in range(len(stored["cases"]))
    ],
)
def test_numbers_are_the_stored_ones(case, cases):
    name, index = case
    stored = _STORED[name]["cases"][index]
    case = cases.make_case(name, stored["changes"], stored["seed"])
    with cases.same_draws(), jax.disable_jit():
        found = cases.summarise(cases.run_case(case, num_updates=1))
    np.testing.assert_allclose(found["loss"], stored["loss"], rtol=1e-4)
    np.testing.assert_allclose(found["actions"], stored["actions"], atol=1e-4)
    for kind in ("gradients", "params"):
        assert found[kind].keys() == stored[kind].keys()
        for network, (total, norm) in stored[kind].items():
            np.testing.assert_allclose(
                found[kind][network], [total, norm], rtol=0, atol=1e-4 * (norm + 1e-3),
                err_msg=f"{kind} of {network}",
            )  # fmt: skip
