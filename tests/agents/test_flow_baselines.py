"""FQL, FEdit, FBRAC, FAWAC and IFQL: all of them clone a flow from the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import base, get_config
from qam_jax.networks import VectorField

_NAMES = ("dsrl", "fawac", "fbrac", "fedit", "fql", "ifql")
_KEY = jax.random.PRNGKey(7)


def _float64(batch):
    return jax.tree.map(lambda column: np.asarray(column, np.float64), batch)


def _flow(dense, observations, noise, steps=2):
    """NumPy's Euler steps of a linear flow: the points [T + 1] and the layer's inputs [T]."""
    (kernel, bias), points, inputs = dense, [noise], []
    for index in range(steps):
        times = np.full((len(noise), 1), index / steps)
        inputs.append(np.concatenate([observations, points[-1], times], axis=-1))
        points.append(points[-1] + (inputs[-1] @ kernel + bias) / steps)
    return points, inputs


def _actor_key(state):
    return jax.random.split(state.key, 3)[2]


@pytest.mark.parametrize("name", _NAMES)
def test_a_pretrained_flow_becomes_the_behaviour_flow(name, linear):
    _, state = linear.make(name)
    behavior = jax.tree.map(lambda leaf: leaf + 1, state.params["behavior"])
    started = base.with_behavior(get_config(name), state, behavior)
    assert "flow" not in state.params
    jax.tree.map(np.testing.assert_array_equal, started.params["behavior"], behavior)
    jax.tree.map(np.testing.assert_array_equal, started.params["critic"], state.params["critic"])


@pytest.mark.parametrize("name", ["dsrl", "fbrac", "fedit", "fql"])
def test_cloning_and_backups_by_hand(name, linear):
    """TD loss against the policy's own actions by NumPy, and the loss of behaviour cloning."""
    agent, state = linear.make(name)
    state, _ = linear.train(agent, state, linear.batch(2), 1)  # targets differ from parameters
    batch, numbers = linear.batch(), _float64(linear.batch())
    _, metrics = linear.train(agent, state, batch, 1)
    _, target_key, actor_key = jax.random.split(state.key, 3)
    next_actions = linear.flat(agent.sample_actions(state, batch.next_observations, target_key))
    next_q = linear.q_values(state.target_params["critic"], numbers.next_observations, next_actions)
    backup = numbers.masks * (next_q.mean(axis=0) - 0.5 * next_q.std(axis=0))
    q = linear.q_values(state.params["critic"], numbers.observations, linear.flat(numbers.actions))
    errors = q - numbers.rewards - 0.99**2 * backup
    np.testing.assert_allclose(
        metrics["critic_loss"], (numbers.weights * errors**2).mean(), rtol=1e-4
    )
    bc_key = jax.random.split(actor_key, 3 if name == "dsrl" else 2)[0]
    noise_key, time_key = jax.random.split(bc_key)
    actions = linear.flat(numbers.actions)
    noise = np.asarray(jax.random.normal(noise_key, actions.shape))
    times = np.asarray(jax.random.uniform(time_key, (len(actions), 1)))
    kernel, bias = linear.dense(state.params["behavior"])
    points = (1 - times) * noise + times * actions
    velocity = np.concatenate([numbers.observations, points, times], axis=-1) @ kernel + bias
    losses = ((velocity - actions + noise) ** 2).mean(axis=-1)
    np.testing.assert_allclose(metrics["bc_loss"], (numbers.weights * losses).mean(), rtol=1e-4)


def test_fql_loss_and_gradient_by_hand(linear):
    """`alpha mean (mu - a_flow)^2 - mean_k Q_k(s, clip mu)`; no gradient outside the box."""
    agent, state = linear.make("fql")
    batch, numbers = linear.batch(), _float64(linear.batch())
    updated, metrics = linear.train(agent, state, batch, 1)
    noise_key = jax.random.split(_actor_key(state))[1]
    noise = np.asarray(jax.random.normal(noise_key, (32, 2)), np.float64)
    flow = linear.dense(state.params["behavior"])
    flow_actions = np.clip(_flow(flow, numbers.observations, noise)[0][-1], -1, 1)
    kernel, bias = linear.dense(state.params["one_step"])
    inputs = np.concatenate([numbers.observations, noise], axis=-1)
    mu = inputs @ kernel + bias
    distance = ((mu - flow_actions) ** 2).mean()
    critic = state.params["critic"]
    q = linear.q_values(critic, numbers.observations, np.clip(mu, -1, 1)).mean()
    np.testing.assert_allclose(metrics["one_step_distill_loss"], distance, rtol=1e-4)
    np.testing.assert_allclose(metrics["one_step_q"], q, rtol=1e-3, atol=1e-5)
    rest = float(metrics["critic_loss"] + metrics["bc_loss"])
    np.testing.assert_allclose(metrics["loss"], rest + 0.5 * distance - q, rtol=1e-4)
    slope = linear.dense(critic)[0][:, 2:, 0].mean(axis=0)  # of Q in the action
    mu_gradient = (0.5 * (mu - flow_actions) - slope * (np.abs(mu) < 1)) / 32
    gradients = linear.gradients(updated, "one_step")
    np.testing.assert_allclose(gradients[0], inputs.T @ mu_gradient, atol=1e-4)
    np.testing.assert_allclose(gradients[1], mu_gradient.sum(axis=0), atol=1e-4)


@pytest.mark.slow
def test_fql_clones_the_flow_with_large_alpha_and_climbs_with_small(linear):
    ends = {}
    for alpha in (0.5, 1e4):
        agent, state = linear.make("fql", alpha=alpha)
        _, start = linear.train(agent, linear.first_action_critic(state), linear.climb(), 1)
        ends[alpha] = linear.train(agent, linear.first_action_critic(state), linear.climb(), 300)
    (climber, climbed), (clone, cloned) = ends.values()
    assert cloned["one_step_distill_loss"] < 0.1 * start["one_step_distill_loss"]
    assert climbed["one_step_q"] > 0.9 > cloned["one_step_q"] + 0.5
    jax.tree.map(  # the flow that is distilled knows nothing of the critic
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        climber.params["behavior"],
        clone.params["behavior"],
    )


def test_fedit_loss_by_hand_and_no_gradient_in_the_flow(linear):
    agent, state = linear.make("fedit")
    state.params["log_edit_temp"] = jnp.float32(-0.7)
    batch = linear.batch(weights=np.zeros(32))  # no cloning, no TD errors
    numbers = _float64(batch)
    updated, metrics = linear.train(agent, state, batch, 1)
    flow_key, edit_key = jax.random.split(jax.random.split(_actor_key(state))[1])
    noise = np.asarray(jax.random.normal(flow_key, (32, 2)), np.float64)
    edit_noise = np.asarray(jax.random.normal(edit_key, (32, 2)), np.float64)
    flow = linear.dense(state.params["behavior"])
    action = np.clip(_flow(flow, numbers.observations, noise)[0][-1], -1, 1)
    kernel, bias = linear.dense(state.params["editor"])
    outputs = np.concatenate([numbers.observations, action], axis=-1) @ kernel + bias
    mean, log_std = np.split(outputs, 2, axis=-1)
    log_std = np.clip(log_std, -20, 2)
    raw = mean + np.exp(log_std) * edit_noise
    log_det = 2 * (np.log(2) - raw - np.logaddexp(0, -2 * raw))  # of tanh
    density = -0.5 * edit_noise**2 - 0.5 * np.log(2 * np.pi) - log_std - log_det
    edited = np.clip(action + 0.6 * np.tanh(raw), -1, 1)
    q = linear.q_values(state.params["critic"], numbers.observations, edited).mean()
    temp, entropy = np.exp(-0.7), -density.sum(axis=-1).mean()
    np.testing.assert_allclose(metrics["edit_loss"], -q - temp * entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["edit_temp_loss"], temp * (entropy + 1), rtol=1e-4)  # D/2
    assert (updated.params["log_edit_temp"] < -0.7) == (entropy > -1)
    for name in ("behavior", "critic"):
        jax.tree.map(np.testing.assert_array_equal, updated.params[name], state.params[name])


@pytest.mark.slow
def test_fedit_without_scale_acts_as_the_flow_and_climbs_further_with_more(linear):
    observations, values = jax.random.normal(_KEY, (200, 2)), []
    still, state = linear.make("fedit", edit_scale=0.0)
    cloned, _ = linear.make("bc")
    actions = still.sample_actions(state, observations, _KEY)
    expected = cloned.sample_actions(state, observations, jax.random.split(_KEY)[0])
    np.testing.assert_array_equal(actions, expected)
    for scale in (0.1, 0.6):
        agent, state = linear.make("fedit", edit_scale=scale)
        state, _ = linear.train(agent, linear.first_action_critic(state), linear.climb(), 300)
        edited = agent.sample_actions(state, observations, _KEY)
        cloned_actions = still.sample_actions(state, observations, _KEY)
        assert jnp.abs(edited - cloned_actions).max() <= scale + 1e-6
        values.append((edited - cloned_actions)[:, 0, 0].mean())
    assert 0.02 < values[0] < values[1] - 0.1


def test_fbrac_gradient_goes_through_every_step_of_the_ode(linear):
    agent, state = linear.make("fbrac")
    batch = linear.batch(weights=np.zeros(32))  # no cloning, no TD errors
    numbers = _float64(batch)
    updated, metrics = linear.train(agent, state, batch, 1)
    noise_key = jax.random.split(_actor_key(state))[1]
    noise = np.asarray(jax.random.normal(noise_key, (32, 2)), np.float64)
    kernel, bias = linear.dense(state.params["behavior"])
    points, inputs = _flow((kernel, bias), numbers.observations, noise)
    critic = state.params["critic"]
    values = linear.q_values(critic, numbers.observations, np.clip(points[-1], -1, 1))
    np.testing.assert_allclose(metrics["actor_q"], values.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], -2 * values.mean(), rtol=1e-4)
    slope = linear.dense(critic)[0][:, 2:, 0].mean(axis=0)
    last = -2 * slope * (np.abs(points[-1]) < 1) / 32  # d loss / d x_2
    first = last + 0.5 * last @ kernel[2:4].T  # d loss / d x_1
    expected = 0.5 * (inputs[1].T @ last + inputs[0].T @ first)
    gradients = linear.gradients(updated, "behavior")
    np.testing.assert_allclose(gradients[0], expected, atol=1e-5)
    np.testing.assert_allclose(gradients[1], 0.5 * (last + first).sum(axis=0), atol=1e-5)


@pytest.mark.slow
def test_fbrac_clones_with_large_alpha_and_climbs_with_small(linear):
    ends = []
    for alpha in (0.5, 1e4):
        agent, state = linear.make("fbrac", alpha=alpha)
        state = linear.first_action_critic(state)
        ends.append(linear.train(agent, state, linear.climb(), 300)[1])
    climbed, cloned = ends
    assert climbed["actor_q"] > 0.6 > cloned["actor_q"] + 0.4
    assert climbed["bc_loss"] > 1.5 * cloned["bc_loss"]
    with pytest.raises(ValueError, match="'alpha' must be above 0 for 'fbrac'"):
        linear.make("fbrac", alpha=0.0)


def _cloning_loss_and_gradients(state, batch, key):
    flow, actions = VectorField(()), batch.actions.reshape(32, 2)
    return jax.value_and_grad(
        lambda params: base.behavior_cloning_loss(flow, params, batch, actions, key)
    )(state.params["behavior"])


@pytest.mark.parametrize("inv_temp", [0.0, 4.0])
def test_fawac_losses_and_weights_by_hand(inv_temp, linear):
    """`inv_temp` 0 is plain behaviour cloning; no weight is above 100."""
    batch = linear.batch(observations=3 * np.random.default_rng(0).normal(size=(32, 2)))
    agent, state = linear.make("fawac", inv_temp=inv_temp)
    state, _ = linear.train(agent, state, linear.batch(2), 1)
    numbers = _float64(batch)
    state = state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    updated, metrics = linear.train(agent, state, batch, 1)
    actions = linear.flat(numbers.actions)
    kernel, bias = linear.dense(state.params["value"])
    values = (numbers.observations @ kernel + bias)[:, 0]
    q = linear.q_values(state.params["critic"], numbers.observations, actions).mean(axis=0)
    target = linear.q_values(state.target_params["critic"], numbers.observations, actions)
    errors = target - values
    weights = np.minimum(np.exp(inv_temp * (q - values)), 100)
    assert (weights.max() == 100) == (inv_temp > 0)
    np.testing.assert_allclose(metrics["advantage_weight"], weights.mean(), rtol=1e-3)
    np.testing.assert_allclose(
        metrics["value_loss"], (numbers.weights * errors**2).mean(), rtol=1e-4
    )
    gradient = linear.gradients(updated, "value")[0][:, 0]
    slopes = -2 * numbers.weights * errors.mean(axis=0)
    np.testing.assert_allclose(gradient, slopes @ numbers.observations / 32, rtol=1e-4)
    weighted = batch.replace(weights=jnp.asarray(numbers.weights * weights, jnp.float32))
    loss, expected = _cloning_loss_and_gradients(state, weighted, _actor_key(state))
    np.testing.assert_allclose(metrics["bc_loss"], loss, rtol=1e-3)
    gradient = linear.gradients(updated, "behavior")[0]
    np.testing.assert_allclose(gradient, linear.dense(expected)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fawac_moves_towards_actions_of_high_advantage(linear):
    observations, values = jax.random.normal(_KEY, (400, 2)), []
    for inv_temp in (0.0, 4.0):
        agent, state = linear.make("fawac", inv_temp=inv_temp)
        state, _ = linear.train(agent, linear.first_action_critic(state), linear.climb(), 300)
        values.append(agent.sample_actions(state, observations, _KEY)[:, 0, 0].mean())
    assert values[0] + 0.2 < values[1]


@pytest.mark.parametrize("kappa", [0.5, 0.9])
def test_ifql_losses_by_hand(kappa, linear):
    """The critics bootstrap from `V(s')`; `kappa` 0.5 is half of the squared error."""
    agent, state = linear.make("ifql", kappa=kappa)
    state, _ = linear.train(agent, state, linear.batch(2), 1)
    batch, numbers = linear.batch(), _float64(linear.batch())
    _, metrics = linear.train(agent, state, batch, 1)
    kernel, bias = linear.dense(state.params["value"])
    values = (numbers.observations @ kernel + bias)[:, 0]
    next_values = (numbers.next_observations @ kernel + bias)[:, 0]
    actions = linear.flat(numbers.actions)
    q = linear.q_values(state.params["critic"], numbers.observations, actions)
    errors = q - numbers.rewards - 0.99**2 * numbers.masks * next_values
    np.testing.assert_allclose(
        metrics["critic_loss"], (numbers.weights * errors**2).mean(), rtol=1e-4
    )
    target = linear.q_values(state.target_params["critic"], numbers.observations, actions)
    gaps = target.mean(axis=0) - 0.5 * target.std(axis=0) - values
    expected = (np.where(gaps > 0, kappa, 1 - kappa) * gaps**2).mean()
    np.testing.assert_allclose(metrics["value_loss"], expected, rtol=1e-4)
    if kappa == 0.5:
        np.testing.assert_allclose(metrics["value_loss"], 0.5 * (gaps**2).mean(), rtol=1e-4)


@pytest.mark.slow
def test_ifql_values_states_by_better_actions_with_a_higher_expectile(linear):
    """The reward is the first action, uniform on [-1, 1]; its expectile at 0.9 is near 0.5."""
    values = []
    for kappa in (0.5, 0.9):
        agent, state = linear.make("ifql", kappa=kappa, rho=0.0)
        state, _ = linear.train(agent, linear.first_action_critic(state), linear.climb(), 400)
        values.append(linear.dense(state.params["value"])[1][0])
    assert values[0] + 0.3 < values[1] < 0.8, values


def test_ifql_takes_the_action_whose_lowest_critic_is_highest(linear):
    agent, state = linear.make("ifql", best_of_n=16)
    single, _ = linear.make("ifql", best_of_n=1)
    slopes = jnp.array([[0, 0, 3, 1], [0, 0, -1, 1]], jnp.float32)[..., None]
    state.params["critic"] = jax.tree.map(
        lambda leaf: slopes if leaf.ndim == 3 else leaf, state.params["critic"]
    )
    observations = jax.random.normal(_KEY, (5, 2))
    repeated = jnp.broadcast_to(observations, (16, 5, 2))
    actions = np.asarray(single.sample_actions(state, repeated, _KEY)).reshape(16, 5, 2)
    q = np.stack([linear.q_values(state.params["critic"], observations, a) for a in actions])
    best = q.min(axis=1).argmax(axis=0)
    assert (best != q.mean(axis=1).argmax(axis=0)).any()  # else the test says nothing
    expected = actions[best, np.arange(5)]
    taken = linear.flat(agent.sample_actions(state, observations, _KEY))
    np.testing.assert_array_equal(taken, expected)
