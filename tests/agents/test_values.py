"""Value learnings: losses by hand in NumPy, what trains what, and every policy on each of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import critic
from qam_jax.agents import algorithm_names, get_config

_LEARNINGS = ("td", "iql", "divl", "lql")
_CHOOSING = [name for name in algorithm_names() if "value_learning" in get_config(name)]


@pytest.mark.parametrize("name", _CHOOSING)
@pytest.mark.parametrize("learning", _LEARNINGS)
def test_every_policy_can_stand_on_every_value_learning(name, learning, linear):
    """Keys are used once, the actor trains no critic, and all networks are trained."""
    agent, state = linear.make(name, value_learning=learning, best_of_n=2)
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        state = jax.jit(agent.init)(key, jnp.zeros(2), jnp.zeros(1))
        still, metrics = agent.update(state, linear.batch(weights=np.zeros(32)))
    assert metrics["critic_loss"] == 0
    jax.tree.map(np.testing.assert_array_equal, still.params["critic"], state.params["critic"])
    moved, metrics = agent.update(state, linear.batch())
    assert all(np.isfinite(metric) for metric in metrics.values())
    for network in moved.params:
        leaves = [jax.tree.leaves(each.params[network])[-1] for each in (moved, state)]
        assert not np.array_equal(*leaves), network
    assert np.isfinite(agent.sample_actions(moved, jnp.zeros((3, 2)), key)).all()


@pytest.mark.parametrize(
    ("learning", "network"), [("iql", "value"), ("divl", "value_distribution")]
)
def test_the_value_learns_from_the_critics_alone(learning, network, linear):
    """Neither rewards nor what comes next reach it, nor does the policy reach the critics."""
    agent, state = linear.make("qam", value_learning=learning)
    batch = linear.batch()
    other = dataclasses.replace(
        batch, rewards=batch.rewards + 1, next_observations=batch.next_observations + 1
    )
    moved, expected = (agent.update(state, each)[0] for each in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, moved.params[network], expected.params[network])
    critics = [jax.tree.leaves(each.params["critic"])[-1] for each in (moved, expected)]
    assert not np.array_equal(*critics)
    flow = linear.apart(state.params["flow"])
    other = dataclasses.replace(state, params={**state.params, "flow": flow})
    losses = [agent.update(each, batch)[1]["critic_loss"] for each in (state, other)]
    assert losses[0] == losses[1]


def test_divl_by_hand(linear):
    fields = {"divl_atoms": 5, "divl_support": (-2.0, 2.0), "divl_level_min": 0.2}
    agent, state = linear.make(
        "qam", value_learning="divl", divl_entropy_weight=0.45, rho=0.5, **fields
    )
    batch, atoms = linear.batch(), np.linspace(-2, 2, 5)
    s, actions = np.asarray(batch.observations), linear.flat(batch.actions)

    def probabilities(params, s):
        kernel, bias = linear.dense(params["value_distribution"])
        powers = np.exp(s @ kernel + bias)
        return powers / powers.sum(axis=-1, keepdims=True)

    following = probabilities(state.target_params, np.asarray(batch.next_observations))
    entropies = -(following * np.log(following)).sum(axis=-1) / np.log(5)
    levels = np.clip(0.6 - 0.45 * entropies, 0.2, 1)
    quantiles = atoms[(following.cumsum(axis=-1) >= levels[:, None]).argmax(axis=-1)]
    targets = batch.rewards + 0.99**2 * batch.masks * quantiles
    errors = linear.q_values(state.params["critic"], s, actions) - targets
    q_values = linear.q_values(state.target_params["critic"], s, actions)
    pooled = q_values.mean(axis=0) - 0.5 * q_values.std(axis=0)
    places = np.clip(pooled, -2, 2) + 2
    lower = np.minimum(places.astype(int), 3)
    projected = np.zeros((32, 5))
    projected[np.arange(32), lower] = 1 - (places - lower)
    projected[np.arange(32), lower + 1] = places - lower
    present = probabilities(state.params, s)
    expected = {
        "critic_loss": (batch.weights * errors**2).mean(),
        "divl_loss": -(batch.weights * (projected * np.log(present)).sum(axis=-1)).mean(),
        "divl_mean": (present @ atoms).mean(),
        "divl_level": levels.mean(),
        "divl_outside_support": np.mean(np.abs(pooled) > 2),
    }
    _, metrics = agent.update(state, batch)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_divl_bootstraps_from_the_moving_average_of_the_distribution(linear):
    agent, state = linear.make("qam", value_learning="divl")
    changes = jax.tree.map(lambda leaf: -5 * leaf, state.params["value_distribution"])
    online = dataclasses.replace(state, params={**state.params, "value_distribution": changes})
    targets = {**state.target_params, "value_distribution": changes}
    average = dataclasses.replace(state, target_params=targets)
    losses = [agent.update(s, linear.batch())[1]["critic_loss"] for s in (state, online, average)]
    assert losses[0] == losses[1] != losses[2]


def test_lql_of_single_chunks_is_td_up_to_the_normaliser(linear):
    agent, state = linear.make("qam", value_learning="lql", lql_chunks=1)
    td, batch = linear.make("qam")[0], linear.batch()
    metrics, expected = (each.update(state, batch)[1] for each in (agent, td))
    share = np.mean(batch.weights)
    np.testing.assert_allclose(metrics["critic_loss"] * share, expected["critic_loss"], rtol=1e-5)
    assert metrics["lower_hinge"] == metrics["upper_hinge"] == 0


def test_lql_by_hand(linear):
    """The hinges themselves are worked out in the tests of `critic.window_hinges`."""
    agent, state = linear.make("fql", value_learning="lql", lql_hinge_weight=0.5, alpha=2.0)
    batch = linear.batch()
    s, next_s = np.asarray(batch.observations), np.asarray(batch.next_observations)
    taken = agent.sample_actions(state, next_s, jax.random.split(state.key, 3)[1])
    next_q = linear.q_values(state.target_params["critic"], next_s, linear.flat(taken))
    following = next_q.mean(axis=0) - 0.5 * next_q.std(axis=0)
    targets = batch.rewards + 0.99**2 * batch.masks * following
    q_values = linear.q_values(state.params["critic"], s, linear.flat(batch.actions))
    losses = batch.weights * (q_values - targets) ** 2
    windows = [
        jnp.asarray(array, jnp.float32).reshape(*array.shape[:-1], 8, 4)
        for array in (q_values, targets, following, batch.rewards, batch.masks, batch.weights)
    ]
    lower, upper = critic.window_hinges(*windows, discount=0.99**2)
    expected = {"critic_loss": losses.sum() / (2 * batch.weights.sum())}
    expected |= {"lower_hinge": lower, "upper_hinge": upper}
    _, metrics = agent.update(state, batch)
    for name, value in expected.items():
        assert value > 0
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    total = metrics["critic_loss"] + 0.5 * (lower + upper)
    total += metrics["bc_loss"] + 2 * metrics["one_step_distill_loss"] - metrics["one_step_q"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)
