"""What the algorithms share: who trains the critic, keys, backups, best of n, the soft actor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import flow
from qam_jax.agents import actor_critic, algorithm_names


@pytest.mark.parametrize("name", algorithm_names())
def test_no_random_key_is_used_twice_and_no_actor_trains_the_critic(linear, name):
    """JAX watches the keys. The weights are 0, so the critics' own loss trains nothing."""
    agent, _ = linear.make(name, best_of_n=2)
    with jax.debug_key_reuse(True):
        state = jax.jit(agent.init)(jax.random.key(0), jnp.zeros(2), jnp.zeros(1))
        moved, metrics = agent.update(state, linear.batch(weights=np.zeros(32)))
        agent.sample_actions(moved, jnp.zeros((3, 2)), jax.random.key(1))
    if name != "bc":
        assert metrics["critic_loss"] == 0
        jax.tree.map(np.testing.assert_array_equal, moved.params["critic"], state.params["critic"])


def test_a_key_used_twice_is_noticed():
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: jax.random.normal(key) + jax.random.uniform(key))(jax.random.key(0))


_NOT_BY_AN_ODE = {"dac", "fan", "fedit", "fql", "qam_e", "qam_f", "qsm", "rebrac", "rlpd"}


@pytest.mark.parametrize("name", algorithm_names())
def test_a_policy_that_acts_by_an_ode_takes_another_solver(linear, name):
    agent, state = linear.make(name, best_of_n=3)
    assert (agent.sample_by is None) == (name in _NOT_BY_AN_ODE)
    if agent.sample_by is None:
        return
    inputs = state, jnp.ones((4, 2)), jax.random.PRNGKey(0)
    actions = agent.sample_by(*inputs, flow.sample_flow)
    np.testing.assert_array_equal(actions, agent.sample_actions(*inputs))
    for_all = agent.sample_by(*inputs, lambda velocity_fn, noise, num_steps: 0 * noise + 0.3)
    np.testing.assert_array_equal(for_all, np.full((4, 2, 1), np.float32(0.3)))


@pytest.mark.parametrize("best_of_n", [1, 4])
@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.slow
def test_backups_by_hand(linear, chunking, best_of_n):
    """With chunks and without, the value that is bootstrapped is two steps away."""
    agent, state = linear.make("fql", action_chunking=chunking, best_of_n=best_of_n)
    batch = linear.batch()
    _, target_key, _ = jax.random.split(state.key, 3)
    taken = agent.sample_actions(state, batch.next_observations, target_key).reshape(32, -1)
    assert taken.shape == (32, 2 if chunking else 1)
    next_q = linear.q_values(state.target_params["critic"], batch.next_observations, taken)
    values = next_q.mean(axis=0) - 0.5 * next_q.std(axis=0)
    targets = batch.rewards + 0.99**2 * batch.masks * values
    actions = (batch.actions if chunking else batch.actions[:, 0]).reshape(32, -1)
    q = linear.q_values(state.params["critic"], batch.observations, actions)
    _, metrics = agent.update(state, batch)
    expected = np.mean(batch.weights * (q - targets) ** 2)
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)


def test_best_of_n_goes_by_the_mean_of_the_critics(linear):
    """The higher critic has it the other way."""
    state = linear.first_action_critic(linear.make("qam")[1])
    params = dict(state.params)
    bias, kernel = jax.tree.leaves(params["critic"])
    kernel = kernel.at[0, 2, 0].set(3.0).at[1, 2, 0].set(-2.0)  # the mean grows with a_1
    bias = bias.at[1].set(10.0)
    params["critic"] = jax.tree.unflatten(jax.tree.structure(params["critic"]), [bias, kernel])
    means = []
    for best_of_n in (1, 16):
        agent, _ = linear.make("qam", best_of_n=best_of_n)
        actions = agent.sample_actions(
            state.replace(params=params), jnp.zeros((64, 2)), jax.random.PRNGKey(3)
        )
        means.append(float(actions[:, 0, 0].mean()))
    assert means[1] > means[0] + 0.3, means
    assert jnp.min(actions[:, 0, 0]) > means[0]


@pytest.mark.parametrize("log_prob", [-5.0, 5.0])
def test_soft_actor_trains_actor_and_temperature_apart(log_prob):
    """Entropy above the target lowers the temperature, below it raises it; by hand, D = 4."""

    def loss(values, log_probs, log_temp):
        return actor_critic.soft_actor_loss(values, log_probs, log_temp, 4, "edit")[0]

    log_probs = jnp.full(8, log_prob)
    gradients = jax.grad(loss, (0, 1, 2))(jnp.ones(8), log_probs, jnp.float32(np.log(0.3)))
    np.testing.assert_allclose(gradients[0], -np.full(8, 1 / 8), rtol=1e-6)
    np.testing.assert_allclose(gradients[1], 0.3 * np.full(8, 1 / 8), rtol=1e-6)
    np.testing.assert_allclose(gradients[2], 0.3 * (-log_prob + 2), rtol=1e-6)
