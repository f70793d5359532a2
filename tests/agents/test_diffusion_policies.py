"""QSM and DAC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import diffusion

_STEPS = 3


def _noisy(state, actions):
    """The update's noise, steps and noisy actions, from its keys."""
    _, _, actor_key = jax.random.split(state.key, 3)
    noise_key, step_key = jax.random.split(actor_key)
    noise = np.float64(jax.random.normal(noise_key, actions.shape))
    steps = np.asarray(jax.random.randint(step_key, (len(actions), 1), 1, _STEPS + 1))
    alpha_bars = np.asarray(diffusion.vp_schedule(_STEPS).alpha_bars, np.float64)[steps - 1]
    return noise, steps, alpha_bars, np.sqrt(alpha_bars) * actions + np.sqrt(1 - alpha_bars) * noise


def _epsilon(actor, observations, noisy, steps):
    phases = 2 * np.pi * steps * np.asarray(actor["FourierFeatures_0"]["frequencies"], np.float64)
    inputs = np.concatenate([observations, noisy, np.cos(phases), np.sin(phases)], axis=-1)
    layer = jax.tree.map(np.float64, actor["MLP_0"]["Dense_0"])
    return inputs @ layer["kernel"] + layer["bias"]


@pytest.mark.parametrize(("name", "chunking"), [("qsm", True), ("dac", True), ("dac", False)])
def test_losses_by_hand(linear, name, chunking):
    """Linear networks, in NumPy; the target critic differs from the one that learns."""
    agent, state = linear.make(
        name, alpha=3.0, action_chunking=chunking, horizon_length=2, flow_steps=_STEPS
    )
    target = jax.tree.map(lambda x: 2 * x, state.target_params["critic"])
    state = state.replace(target_params={"critic": target})
    chunks = np.random.default_rng(2).uniform(-1, 1, size=(32, 2, 1))
    batch = linear.batch(actions=chunks, masks=np.zeros(32))
    actions = chunks.reshape(32, 2) if chunking else chunks[:, 0]
    noise, steps, alpha_bars, noisy = _noisy(state, actions)
    gradient = linear.dense(target)[0][:, 2:, 0].mean(axis=0)
    epsilon = _epsilon(state.params["actor"], batch.observations, noisy, steps)
    if name == "qsm":
        guidance = ((-10 * gradient - epsilon) ** 2).mean(axis=-1)
    else:
        guidance = (np.sqrt(1 - alpha_bars) * gradient * epsilon).mean(axis=-1)
    weights = np.asarray(batch.weights)
    guidance = np.mean(weights * guidance)
    bc = np.mean(weights * ((noise - epsilon) ** 2).mean(axis=-1))
    q = linear.q_values(state.params["critic"], batch.observations, actions)
    td = np.mean(weights * (q - np.asarray(batch.rewards)) ** 2)

    _, metrics = agent.update(state, batch)
    np.testing.assert_allclose(metrics["guidance_loss"], guidance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["bc_loss"], bc, rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], td, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], td + guidance + 3 * bc, rtol=1e-4)


@pytest.mark.parametrize("name", ["qsm", "dac"])
@pytest.mark.slow
def test_a_high_weight_of_cloning_is_cloning(linear, name):
    """Adam's first step has the sign of the gradient: here that of the denoising loss alone."""
    agent, state = linear.make(name, alpha=1e8, lr=1e-3, flow_steps=_STEPS)
    batch = linear.batch(weights=np.ones(32), masks=np.zeros(32))
    noise, _, _, noisy = _noisy(state, np.asarray(batch.actions.reshape(32, 2)))
    zeros = jax.tree.map(jnp.zeros_like, state.params["actor"])
    state = state.replace(params=state.params | {"actor": zeros})
    moved, _ = agent.update(state, batch)
    layer = moved.params["actor"]["MLP_0"]["Dense_0"]
    np.testing.assert_allclose(layer["bias"], 1e-3 * np.sign(noise.sum(axis=0)), rtol=1e-3)
    expected = 1e-3 * np.sign(noisy.T @ noise)
    np.testing.assert_allclose(layer["kernel"][2:4], expected, rtol=1e-3)


@pytest.mark.parametrize(("name", "strength"), [("qsm", {"inv_temp": 3.0}), ("dac", {})])
@pytest.mark.slow
def test_guidance_alone_climbs_the_critic(linear, name, strength):
    """Without cloning, and with a critic that is right, the policy is trained by it alone."""
    agent, state = linear.make(name, lr=0.03, flow_steps=_STEPS, alpha=0.0, **strength)
    state = linear.first_action_critic(state)
    state, metrics = linear.train(agent, state, linear.climb(), 100)
    if name == "qsm":  # the predicted noise is -3 times the gradient (1, 0)
        assert metrics["guidance_loss"] < 0.01
    actions = agent.sample_actions(state, jnp.zeros((200, 2)), jax.random.PRNGKey(0))
    assert actions[:, 0, 0].mean() > 0.3


@pytest.mark.parametrize(
    ("name", "sampler"), [("qsm", diffusion.sample_by_jumps), ("dac", diffusion.sample_ddpm)]
)
def test_acts_by_the_sampler_of_its_method(linear, name, sampler):
    agent, state = linear.make(name, horizon_length=2, flow_steps=_STEPS)
    key, observations = jax.random.PRNGKey(4), jnp.ones((3, 5, 2))
    initial_key, step_key = jax.random.split(key)
    initial = jax.random.normal(initial_key, (3, 5, 2))
    noise = jax.random.normal(step_key, (_STEPS - 1, 3, 5, 2))
    layer = state.params["actor"]["MLP_0"]["Dense_0"]
    frequencies = state.params["actor"]["FourierFeatures_0"]["frequencies"]

    def epsilon(x, t):
        phases = 2 * jnp.pi * t * frequencies
        inputs = [observations, x, jnp.cos(phases), jnp.sin(phases)]
        return jnp.concatenate(inputs, axis=-1) @ layer["kernel"] + layer["bias"]

    expected = sampler(epsilon, diffusion.vp_schedule(_STEPS), initial, noise)
    actions = jax.jit(agent.sample_actions)(state, observations, key)
    assert actions.shape == (3, 5, 2, 1)
    np.testing.assert_allclose(actions.reshape(3, 5, 2), expected, rtol=1e-4, atol=1e-5)
    assert jnp.abs(actions).max() <= 1
