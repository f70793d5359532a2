import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import networks
from qam_jax.agents import cgql, get_config

_STEPS = 3


@jax.jit
def _value(params, observations, actions, times):
    critic = networks.TimedCriticEnsemble((4,), 2)
    return critic.apply({"params": params}, observations, actions, times)


def test_without_guidance_it_is_the_target_behaviour_flow(linear):
    agent, state = linear.make("cgql", guidance_coef=0.0)
    key = jax.random.PRNGKey(3)
    cloned, _ = linear.make("bc")
    behavior = state.replace(params={"behavior": state.target_params["behavior"]})
    observations = jax.random.normal(key, (6, 2, 2))
    np.testing.assert_array_equal(
        agent.sample_actions(state, observations, key),
        cloned.sample_actions(behavior, observations, key),
    )


@pytest.mark.parametrize("name", ["cgql", "cgql_m"])
def test_guided_sampler_by_hand(linear, name):
    """Euler steps written out; the variants ask the critic at the step's time, not at 1."""
    agent, state = linear.make(
        name, inv_temp=2.0, guidance_coef=0.3, critic_hidden_dims=(4,), flow_steps=_STEPS
    )
    key = jax.random.PRNGKey(3)
    s, x = np.ones((5, 2)), np.asarray(jax.random.normal(key, (5, 2)))
    layer = state.target_params["behavior"]["MLP_0"]["Dense_0"]
    slope = jax.jit(jax.grad(lambda x, t: _value(state.params["critic"], s, x, t).sum() / 2))
    for i in range(_STEPS):
        t = np.full((5, 1), i / _STEPS)
        velocity = np.concatenate([s, x, t], axis=-1) @ layer["kernel"] + layer["bias"]
        if i > 0:
            gradient = slope(x, t if name == "cgql_m" else np.ones((5, 1)))
            velocity += ((1 - t) * 2.0 * gradient + x) * 0.3 / t
        x = x + velocity / _STEPS
    expected = np.clip(x, -1, 1).reshape(5, 2, 1)
    actions = jax.jit(agent.sample_actions)(state, s, key)
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inverse_temperature_moves_actions_up_the_critic(linear):
    key, observations = jax.random.PRNGKey(0), jnp.zeros((256, 2))
    means = []
    for inv_temp in (0.0, 1.0, 4.0):
        agent, state = linear.make("cgql", inv_temp=inv_temp, guidance_coef=0.2)
        actions = agent.sample_actions(linear.first_action_critic(state), observations, key)
        means.append(actions[:, 0, 0].mean())
    assert means[0] + 0.03 < means[1] < means[2] - 0.05, means


@pytest.mark.parametrize("name", ["cgql_m", "cgql_l"])
def test_losses_by_hand(linear, name):
    agent, state = linear.make(name, inv_temp=1.5, noisy_coef=0.7, critic_hidden_dims=(4,))
    batch = linear.batch(masks=np.zeros(32))
    _, _, actor_key = jax.random.split(state.key, 3)
    bc_key, noisy_key = jax.random.split(actor_key)
    a, s, v = batch.actions.reshape(32, 2), batch.observations, np.asarray(batch.weights)

    def draw(key):
        noise_key, time_key = jax.random.split(key)
        z, t = jax.random.normal(noise_key, a.shape), jax.random.uniform(time_key, (32, 1))
        return z, t, (1 - t) * z + t * a

    _, t, x = draw(noisy_key)
    q = np.asarray(_value(state.params["critic"], s, x, t), np.float64)
    target = np.asarray(_value(state.target_params["critic"], s, a, jnp.ones((32, 1))))
    if name == "cgql_m":
        noisy = np.mean(v * (q - target) ** 2)
    else:
        delta = 1.5 * (target - q)
        assert (delta < 5).all()
        noisy = np.mean(v * (np.exp(delta) + 1.5 * q))
    clean = np.asarray(_value(state.params["critic"], s, a, None))
    td = np.mean(v * (clean - np.asarray(batch.rewards)) ** 2)
    z, t, x = draw(bc_key)
    layer = state.params["behavior"]["MLP_0"]["Dense_0"]
    f = jnp.concatenate([s, x, t], axis=-1) @ layer["kernel"] + layer["bias"]
    bc = np.mean(v * np.mean((f - (a - z)) ** 2, axis=-1))

    _, metrics = agent.update(state, batch)
    np.testing.assert_allclose(metrics["noisy_critic_loss"], noisy, rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], td, rtol=1e-4)
    np.testing.assert_allclose(metrics["bc_loss"], bc, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], td + bc + 0.7 * noisy, rtol=1e-4)


def test_linex_loss_by_hand():
    values, targets = jnp.array([0.0, 1.0, -1.0, 0.5]), jnp.array([0.5, 0.0, 2.0, 0.5])
    delta = 2 * (targets - values)  # 1, -2, 6, 0
    expected = [np.e, np.exp(-2) + 2, 6.0, 1 + 1]
    np.testing.assert_allclose(cgql.linex_loss(values, targets, 2.0), expected, rtol=1e-6)
    gradient = jax.grad(lambda q: cgql.linex_loss(q, targets, 2.0).sum())(values)
    slopes = np.where(delta > 5, -2.0, 2 * (1 - np.exp(delta)))
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5)
    far = jax.grad(lambda q: cgql.linex_loss(q, jnp.float32(1e4), 2.0))(jnp.float32(0))
    assert far == -2  # finite where exp overflows


def test_linex_optimum_is_the_soft_value():
    targets = np.random.default_rng(0).uniform(-1, 1, size=500)
    grid = jnp.linspace(-1, 1, 2001)
    losses = cgql.linex_loss(grid[:, None], targets[None], 2.0).mean(axis=1)
    best = float(grid[losses.argmin()])
    np.testing.assert_allclose(best, np.log(np.mean(np.exp(2 * targets))) / 2, atol=2e-3)
    assert best > targets.mean() + 0.1


def test_variants_by_name(linear):
    losses = {name: get_config(name).noisy_loss for name in ("cgql", "cgql_m", "cgql_l")}
    assert losses == {"cgql": "none", "cgql_m": "mse", "cgql_l": "linex"}
    with pytest.raises(ValueError, match="'noisy_loss' must be one of none, mse, linex"):
        linear.make("cgql", noisy_loss="huber")


def test_without_a_noisy_loss_the_critic_learns_at_time_1_alone(linear):
    """At time 1 the time input is a constant: its weights move exactly as a bias would."""
    agent, state = linear.make("cgql")
    moved, metrics = agent.update(state, linear.batch())
    assert "noisy_critic_loss" not in metrics
    kernel, bias = linear.gradients(moved, "critic")
    np.testing.assert_allclose(kernel[:, -1], bias, rtol=1e-5)


@pytest.mark.parametrize("name", ["cgql_m", "cgql_l"])
@pytest.mark.slow
def test_noisy_coef_teaches_the_critic_the_value_of_noisy_actions(linear, name):
    """The critics' values at noisy actions approach the target critic's at the clean ones."""
    batch = linear.batch(masks=np.zeros(32))
    losses = []
    for coef in (0.0, 1.0):
        agent, state = linear.make(name, inv_temp=1.0, noisy_coef=coef)
        before = agent.update(state, batch)[1]["noisy_critic_loss"]
        state, metrics = linear.train(agent, state, batch, 60)
        losses.append(metrics["noisy_critic_loss"] - before)
    assert losses[1] < losses[0] - 0.05, losses
