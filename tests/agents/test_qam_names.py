"""QAM-E and QAM-F under names of their own."""

import jax
import numpy as np
import pytest

from qam_jax.agents import get_config, make_agent


@pytest.mark.parametrize(
    ("name", "own", "plain"),
    [
        ("qam_e", {}, {"edit_scale": 0.1}),
        ("qam_f", {}, {"fql_alpha": 300.0}),
        ("qam_e", {"edit_scale": 0.0}, {}),
        ("qam_f", {"fql_alpha": 0.0}, {}),
    ],
)
def test_they_are_qam_with_that_field(linear, name, own, plain):
    """And with 0 there plain QAM."""
    states = []
    for agent, state in (linear.make(name, **own), linear.make("qam", **plain)):
        states.append(agent.update(state, linear.batch())[0])
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(("name", "other_field"), [("qam_e", "fql_alpha"), ("qam_f", "edit_scale")])
def test_a_name_cannot_come_to_stand_for_the_other_variant(name, other_field):
    config = get_config(name)
    assert (config.agent_name, other_field in config) == (name, False)
    with config.unlocked():
        config[other_field] = 1.0
    with pytest.raises(ValueError, match=f"unknown config field '{other_field}' for '{name}'"):
        make_agent(config)
