"""The comparison with the paper's code: every draw of ours is given numbers by its purpose."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import agreement
import agreement_cases

_METHODS = "cgql_m dsrl fan fedit qam_e qgf qsm rebrac rlpd rql".split()  # all functions that draw


@pytest.mark.slow
@pytest.mark.parametrize("name", _METHODS)
def test_draws_do_not_depend_on_the_key(name):
    """So none of them is left to chance; a draw in a function of unknown name is an error."""
    losses = []
    for key in (0, 1):
        case = agreement_cases.make_case(name, agreement_cases.cases_of(name)[0], 0)
        case = case._replace(state=case.state.replace(key=jax.random.PRNGKey(key)))
        with jax.disable_jit():
            outcome = agreement.run_own(case)
        losses.append((outcome.loss, *outcome.actions.ravel()))
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(*losses)
