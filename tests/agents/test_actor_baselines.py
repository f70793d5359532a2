"""DSRL, ReBRAC and RLPD, and the density of the tanh-Gaussian at given actions."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from qam_jax.networks import TanhGaussian

_KEY = jax.random.PRNGKey(7)


def _float64(batch):
    return jax.tree.map(lambda column: np.asarray(column, np.float64), batch)


def _actor_key(state):
    return jax.random.split(state.key, 3)[2]


def _tanh_gaussian(dense, inputs, noise):
    """NumPy's sample and its log-density."""
    mean, log_std = np.split(inputs @ dense[0] + dense[1], 2, axis=-1)
    log_std = np.clip(log_std, -20, 2)
    raw = mean + np.exp(log_std) * noise
    log_det = 2 * (np.log(2) - raw - np.logaddexp(0, -2 * raw))  # of tanh
    density = -0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - log_std - log_det
    return np.tanh(raw), density.sum(axis=-1)


def _ode(dense, observations, x):
    """Actions of a linear flow in two Euler steps."""
    for time in (0.0, 0.5):
        times = np.full((len(x), 1), time)
        x = x + 0.5 * (np.concatenate([observations, x, times], axis=-1) @ dense[0] + dense[1])
    return np.clip(x, -1, 1)


@pytest.mark.parametrize(
    "name", ["dsrl", "fawac", "fbrac", "fedit", "fql", "ifql", "rebrac", "rlpd"]
)
def test_every_baseline_learns_acts_and_keeps_its_structure(name, linear):
    agent, state = linear.make(name)
    updated, metrics = linear.train(agent, state, linear.batch(), 1)
    assert jax.tree.structure(updated) == jax.tree.structure(state)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert {"loss", "critic_loss", "q_mean", "grad_norm"} <= metrics.keys()
    assert updated.step == 1
    assert not np.array_equal(updated.key, state.key)
    for part, params in state.params.items():
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, updated.params[part])
        assert any(jax.tree.leaves(moved)), f"{part} was not trained"
    actions = agent.sample_actions(updated, jnp.zeros((5, 3, 2)), _KEY)
    assert actions.shape == (5, 3, 2, 1)
    assert jnp.abs(actions).max() <= 1
    assert actions.std() > 0.05  # different noise for different rows


def test_dsrl_losses_by_hand(linear):
    """The latent critic learns the value of what the target flow makes of N(0, I)."""
    agent, state = linear.make("dsrl")
    state, _ = linear.train(agent, state, linear.batch(2), 1)  # targets differ from parameters
    _, metrics = linear.train(agent, state, linear.batch(), 1)
    observations = np.asarray(linear.batch().observations, np.float64)
    _, critic_key, latent_key = jax.random.split(_actor_key(state), 3)
    latents = np.asarray(jax.random.normal(critic_key, (32, 2)), np.float64)
    flow = linear.dense(state.target_params["behavior"])
    actions = _ode(flow, observations, latents)
    targets = linear.q_values(state.params["critic"], observations, actions)
    latent_critic = state.params["latent_critic"]
    errors = linear.q_values(latent_critic, observations, latents) - targets
    np.testing.assert_allclose(metrics["latent_critic_loss"], (errors**2).mean(), rtol=1e-4)
    noise = np.asarray(jax.random.normal(latent_key, (32, 2)), np.float64)
    dense = linear.dense(state.params["latent_actor"])
    drawn, log_prob = _tanh_gaussian(dense, observations, noise)
    values = linear.q_values(latent_critic, observations, 1.5 * drawn)
    temp, entropy = np.exp(float(state.params["log_latent_temp"])), -log_prob.mean()
    np.testing.assert_allclose(metrics["latent_loss"], -values.mean() - temp * entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["latent_temp_loss"], temp * (entropy + 1), rtol=1e-4)
    acted = linear.flat(agent.sample_actions(state, linear.batch().observations, _KEY))
    noise = np.asarray(jax.random.normal(_KEY, (32, 2)), np.float64)
    expected = _ode(flow, observations, 1.5 * _tanh_gaussian(dense, observations, noise)[0])
    np.testing.assert_allclose(acted, expected, atol=1e-5)


@pytest.mark.slow
def test_dsrl_steers_by_its_noise_alone(linear):
    """Without noise it acts in one way; it climbs further with a wider latent space."""
    still, state = linear.make("dsrl", noise_scale=0.0)
    observations = jnp.ones((50, 2))
    actions = still.sample_actions(state, observations, _KEY)
    np.testing.assert_array_equal(actions, jnp.broadcast_to(actions[0], actions.shape))
    expected = _ode(
        linear.dense(state.target_params["behavior"]), np.ones((50, 2)), np.zeros((50, 2))
    )
    np.testing.assert_allclose(linear.flat(actions), expected, atol=1e-5)
    agent, state = linear.make("dsrl")
    state, _ = linear.train(agent, linear.first_action_critic(state), linear.climb(), 500)
    values = [
        np.mean(other.sample_actions(state, observations, _KEY)[:, 0, 0])
        for other in (still, linear.make("dsrl", noise_scale=0.5)[0], agent)
    ]
    assert values[0] + 0.05 < values[1] < values[2] - 0.05, values


def test_rebrac_loss_and_gradient_by_hand(linear):
    """`-P / mean_b |P| + alpha v ||pi - a||^2` with `P = mean_k Q - rho std_k Q`."""
    agent, state = linear.make("rebrac")
    kernel, bias = linear.dense(state.params["actor"])
    batch, numbers = linear.batch(), _float64(linear.batch())
    updated, metrics = linear.train(agent, state, batch, 1)
    actions = np.tanh(numbers.observations @ kernel + bias)
    q = linear.q_values(state.params["critic"], numbers.observations, actions)
    value = q.mean(axis=0) - 0.5 * q.std(axis=0)
    scale = np.abs(value).mean()
    assert scale > 1.1 * abs(value.mean())  # values of both signs
    gaps, weights = actions - linear.flat(numbers.actions), numbers.weights
    bc_loss = (weights * (gaps**2).sum(axis=-1)).mean()
    np.testing.assert_allclose(metrics["bc_loss"], bc_loss, rtol=1e-4)
    loss = -value.mean() / scale + 0.5 * bc_loss
    np.testing.assert_allclose(metrics["actor_loss"], loss, rtol=1e-4)
    slopes = linear.dense(state.params["critic"])[0][:, 2:, 0]
    signs = np.sign(q[0] - q[1])[:, None]  # of two critics the deviation is half the difference
    slope = slopes.mean(axis=0) - 0.5 * signs * (slopes[0] - slopes[1]) / 2
    outer = (-slope / scale + weights[:, None] * gaps) * (1 - actions**2) / 32
    gradients = linear.gradients(updated, "actor")
    np.testing.assert_allclose(gradients[0], numbers.observations.T @ outer, atol=1e-5)
    np.testing.assert_allclose(gradients[1], outer.sum(axis=0), atol=1e-5)


def test_rebrac_moves_its_targets_every_second_update(linear):
    """As in the published runs; the actor moves every time."""
    agent, state = linear.make("rebrac")
    for seed in range(4):
        moved = linear.train(agent, state, linear.batch(seed), 1)[0]
        assert _moved(state.params["actor"], moved.params["actor"])
        expected = jax.tree.map(
            lambda a, b: 0.995 * a + 0.005 * b, state.target_params, _online(moved)
        )
        expected = expected if seed % 2 else state.target_params
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), moved.target_params, expected
        )
        state = moved


def _moved(old, new):
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), old, new)))


def _online(state):
    return {name: state.params[name] for name in state.target_params}


@pytest.mark.slow
def test_rebrac_can_move_its_actor_every_second_update(linear):
    """In between, Adam's moments of the actor stand still too; targets move every time."""
    agent, state = linear.make("rebrac", actor_interval=2, target_interval=1)
    states = [state]
    for seed in range(4):
        states.append(linear.train(agent, states[-1], linear.batch(seed), 1)[0])

    def same(old, new):
        return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), old, new)))

    for index, (old, new) in enumerate(pairwise(states)):
        waits = index % 2 == 1
        assert same(old.params["actor"], new.params["actor"]) == waits
        old_moments, new_moments = linear.moments(old, "actor"), linear.moments(new, "actor")
        assert same(old_moments, new_moments) == waits
        assert not same(linear.moments(old, "critic"), linear.moments(new, "critic"))
        target = jax.tree.map(
            lambda a, b: 0.995 * a + 0.005 * b, old.target_params["actor"], new.params["actor"]
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
            new.target_params["actor"],
            target,
        )
    counts = [leaf for leaf in jax.tree.leaves(states[-1].opt_state) if leaf.ndim == 0]
    assert sorted(int(count) for count in counts) == [2, 4, 4]  # actor, critic, updates


def test_rebrac_backs_up_from_the_target_actor_with_clipped_noise(linear):
    agent, state = linear.make("rebrac")
    state.target_params["actor"] = jax.tree.map(
        lambda leaf: leaf + 0.2, state.target_params["actor"]
    )
    batch, numbers = linear.batch(), _float64(linear.batch())
    _, metrics = linear.train(agent, state, batch, 1)
    target_key = jax.random.split(state.key, 3)[1]
    noise = np.clip(0.4 * np.asarray(jax.random.normal(target_key, (32, 2))), -0.5, 0.5)
    assert (np.abs(noise) == 0.5).any()
    kernel, bias = linear.dense(state.target_params["actor"])
    actions = np.clip(np.tanh(numbers.next_observations @ kernel + bias) + noise, -1, 1)
    next_q = linear.q_values(state.target_params["critic"], numbers.next_observations, actions)
    backup = numbers.masks * (next_q.mean(axis=0) - 0.5 * next_q.std(axis=0))
    q = linear.q_values(state.params["critic"], numbers.observations, linear.flat(numbers.actions))
    errors = q - numbers.rewards - 0.99**2 * backup
    np.testing.assert_allclose(
        metrics["critic_loss"], (numbers.weights * errors**2).mean(), rtol=1e-4
    )
    acted = linear.flat(agent.sample_actions(state, batch.observations, target_key))
    kernel, bias = linear.dense(state.params["actor"])
    expected = np.clip(np.tanh(numbers.observations @ kernel + bias) + noise, -1, 1)
    np.testing.assert_allclose(acted, expected, atol=1e-5)


@pytest.mark.slow
def test_rebrac_clones_with_large_alpha_and_climbs_with_small(linear):
    ends = []
    for alpha in (0.5, 1e4):
        agent, state = linear.make("rebrac", alpha_actor=alpha)
        state = linear.first_action_critic(state)
        batch = linear.climb()
        batch = batch.replace(actions=0.5 * jnp.tanh(batch.observations)[..., None])
        batch = batch.replace(rewards=batch.actions[:, 0, 0])
        state, _ = linear.train(agent, state, batch, 1)
        ends.append(linear.train(agent, state, batch, 600)[1])
    climbed, cloned = ends
    assert cloned["bc_loss"] < 0.02
    assert climbed["bc_loss"] > 0.1
    assert climbed["actor_q"] > cloned["actor_q"] + 0.3


def test_rlpd_loss_by_hand(linear):
    agent, state = linear.make("rlpd")
    state.params["log_actor_temp"] = jnp.float32(-0.7)
    batch, numbers = linear.batch(), _float64(linear.batch())
    updated, metrics = linear.train(agent, state, batch, 1)
    noise = np.asarray(jax.random.normal(_actor_key(state), (32, 2)), np.float64)
    dense = linear.dense(state.params["actor"])
    drawn, log_prob = _tanh_gaussian(dense, numbers.observations, noise)
    q = linear.q_values(state.params["critic"], numbers.observations, drawn)
    value = (q.mean(axis=0) - 0.5 * q.std(axis=0)).mean()
    temp, entropy = np.exp(-0.7), -log_prob.mean()
    np.testing.assert_allclose(metrics["actor_loss"], -value - temp * entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["actor_temp_loss"], temp * (entropy + 1), rtol=1e-4)
    assert (updated.params["log_actor_temp"] < -0.7) == (entropy > -1)
    mean, log_std = np.split(numbers.observations @ dense[0] + dense[1], 2, axis=-1)
    raw = np.arctanh(linear.flat(numbers.actions))
    log_std = np.clip(log_std, -20, 2)
    scores = (raw - mean) / np.exp(log_std)
    density = -0.5 * scores**2 - 0.5 * np.log(2 * np.pi) - log_std
    density -= np.log(1 - linear.flat(numbers.actions) ** 2)
    bc_loss = -(numbers.weights * density.sum(axis=-1)).mean()
    np.testing.assert_allclose(metrics["bc_loss"], bc_loss, rtol=1e-4)
    rest = metrics["critic_loss"] + metrics["actor_loss"] + metrics["actor_temp_loss"]
    np.testing.assert_allclose(metrics["loss"], rest + 10 * metrics["bc_loss"], rtol=1e-4)


@pytest.mark.slow
def test_rlpd_likelihood_rises_with_large_bc_alpha_and_value_without(linear):
    ends = []
    for bc_alpha in (10.0, 0.0):
        agent, state = linear.make("rlpd", bc_alpha=bc_alpha)
        state, batch = linear.first_action_critic(state), linear.climb()
        _, start = linear.train(agent, state, batch, 1)
        state, end = linear.train(agent, state, batch, 300)
        actions = agent.sample_actions(state, jnp.zeros((300, 2)), _KEY)
        ends.append((float(end["bc_loss"]), float(actions[:, 0, 0].mean())))
    (cloned, clone_value), (free, free_value) = ends
    assert cloned < min(start["bc_loss"], free)
    assert free_value > 0.5 > clone_value + 0.3


def _module():
    module = TanhGaussian((4,))
    params = module.init(jax.random.PRNGKey(0), jnp.ones(3), jnp.ones(1))
    return module, jax.tree.map(lambda leaf: leaf + 0.1, params)


def test_density_at_given_actions_is_that_of_the_samples():
    module, params = _module()
    noise = jnp.linspace(-3, 3, 50)[:, None]
    inputs = jnp.ones((50, 3))
    sample = module.apply(params, inputs, noise)
    inside = np.abs(sample.value[:, 0]) < 0.999
    log_prob = module.apply(params, inputs, sample.value, method=module.log_prob)
    assert inside.sum() > 30
    np.testing.assert_allclose(log_prob[inside], sample.log_prob[inside], atol=2e-3)


def test_density_at_given_actions_integrates_to_one():
    module, params = _module()
    actions = np.tanh(np.linspace(-6, 6, 6001))
    log_prob = module.apply(
        params, jnp.ones((6001, 3)), jnp.asarray(actions, jnp.float32)[:, None],
        method=module.log_prob,
    )  # fmt: skip
    total = integrate.trapezoid(np.exp(np.float64(log_prob)), actions)
    np.testing.assert_allclose(total, 1, rtol=5e-3)


@pytest.mark.parametrize("action", [0.9, 1 - 1e-3, 1 - 1e-5, 1.0])
def test_density_holds_its_digits_at_the_borders(action):
    """Against float64 at both ends, with finite gradients in all parameters."""
    module, params = _module()
    actions = jnp.array([[action], [-action]], jnp.float32)

    def log_prob(params):
        return module.apply(params, jnp.ones((2, 3)), actions, method=module.log_prob)

    at_zero = module.apply(params, jnp.ones(3), jnp.zeros(1)).value
    at_one = module.apply(params, jnp.ones(3), jnp.ones(1)).value
    mean = np.arctanh(np.float64(at_zero))
    std = np.arctanh(np.float64(at_one)) - mean
    exact = np.clip(np.float64(actions[:, 0]), -np.float32(1 - 1e-5), np.float32(1 - 1e-5))
    scores = (np.arctanh(exact) - mean) / std
    expected = -0.5 * scores**2 - 0.5 * np.log(2 * np.pi) - np.log(std) - np.log(1 - exact**2)
    np.testing.assert_allclose(log_prob(params), expected, rtol=1e-3)
    gradients = jax.grad(lambda params: log_prob(params).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
