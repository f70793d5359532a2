"""QAM-F and QAM-E: which network acts, and that it climbs the critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

_OBSERVATIONS = jax.random.normal(jax.random.PRNGKey(1), (256, 2))
_KEY = jax.random.PRNGKey(3)


def test_qam_f_acts_by_its_one_step_actor(linear):
    agent, state = linear.make("qam_f", fql_alpha=1.0)
    noise = jax.random.normal(jax.random.split(_KEY)[0], (256, 2))
    kernel, bias = linear.dense(state.params["one_step"])
    expected = np.concatenate([_OBSERVATIONS, noise], axis=-1) @ kernel + bias
    actions = agent.sample_actions(state, _OBSERVATIONS, _KEY)
    np.testing.assert_allclose(linear.flat(actions), np.clip(expected, -1, 1), atol=1e-5)


@pytest.mark.parametrize(
    "name, changes", [("qam_f", {"fql_alpha": 1.0}), ("qam_e", {"edit_scale": 0.6})]
)
@pytest.mark.slow
def test_the_last_network_climbs_the_critic(linear, name, changes):
    """Without adjoint matching's pull (`inv_temp` 0) only the actor on top can climb."""
    agent, state = linear.make(name, inv_temp=0.0, **changes)
    state = linear.first_action_critic(state)
    before = agent.sample_actions(state, _OBSERVATIONS, _KEY)[:, 0, 0].mean()
    state, _ = linear.train(agent, state, linear.climb(), 200)
    after = agent.sample_actions(state, _OBSERVATIONS, _KEY)[:, 0, 0].mean()
    plain, _ = linear.make("qam", inv_temp=0.0)
    flow = plain.sample_actions(state, _OBSERVATIONS, _KEY)[:, 0, 0].mean()
    assert after > max(before, flow) + 0.1, (before, flow, after)
    assert jnp.abs(flow) < 0.2


def test_qam_e_draws_its_edit_apart_from_the_flow(linear):
    """The edit of a state whose editor takes no input is the tanh of its own noise alone."""
    agent, state = linear.make("qam_e", edit_scale=0.1)
    state.params["editor"] = jax.tree.map(jnp.zeros_like, state.params["editor"])
    plain, _ = linear.make("qam")
    flow = plain.sample_actions(state, _OBSERVATIONS, _KEY)
    edits = linear.flat(agent.sample_actions(state, _OBSERVATIONS, _KEY) - flow)
    inside = np.abs(linear.flat(flow)).max(axis=-1) < 0.9
    noise = jax.random.normal(jax.random.split(_KEY)[1], (256, 2))
    np.testing.assert_allclose(edits[inside], 0.1 * np.tanh(noise)[inside], atol=1e-5)
