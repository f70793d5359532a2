"""RQL, FAN, QGF and EDP: losses by hand in NumPy, what trains what, and their limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import agents
from qam_jax.agents import fan, rql

_KEY = jax.random.PRNGKey(7)


def _keys(state):
    """Keys of the critics' loss and of the actor's."""
    return jax.random.split(state.key, 3)[1:]


def _normal(key, size=32):
    return np.asarray(jax.random.normal(key, (size, 2)), np.float64)


def _velocity(linear, params, observations, x, t):
    kernel, bias = linear.dense(params)
    return np.concatenate([observations, x, t], axis=-1) @ kernel + bias


def _timed_q(linear, params, observations, x, t):
    return linear.q_values(
        params["CriticEnsemble_0"], observations, np.concatenate([x, t], axis=-1)
    )


def _expectile(errors, kappa):
    return np.where(errors < 0, 1 - kappa, kappa) * errors**2


def test_rql_losses_by_hand(linear):
    agent, state = linear.make("rql", kappa=0.7, alpha=3.0, rho=0.5)
    batch = linear.batch()
    s, actions = np.asarray(batch.observations), linear.flat(batch.actions)
    value_key, actor_key = _keys(state)
    distance_key, target_key = jax.random.split(value_key)
    distances = np.asarray(rql.draw_distances(distance_key, 32, 2))
    x = actions
    for step in range(2):
        times = 1 - step * distances / 2
        x = x - distances / 2 * _velocity(linear, state.params["flow"], s, x, times)
    q = _timed_q(linear, state.params["critic"], s, x, 1 - distances)
    target_critic, ends = state.target_params["critic"], np.zeros((32, 1))
    next_noise = _normal(target_key)
    next_q = _timed_q(linear, target_critic, batch.next_observations, next_noise, ends)
    backup = batch.masks * (next_q.mean(axis=0) - 0.5 * next_q.std(axis=0))
    errors = batch.rewards + 0.99**2 * backup - q
    noise_key, time_key = jax.random.split(actor_key)
    noise, times = _normal(noise_key), np.asarray(jax.random.uniform(time_key, (32, 1)))
    points = (1 - times) * noise + times * actions
    u = _velocity(linear, state.params["flow"], s, points, times)
    bc_loss = (batch.weights * ((u - (actions - noise)) ** 2).mean(axis=-1)).mean()
    steps = np.minimum(0.5, 1 - times)
    beyond = _timed_q(linear, state.params["critic"], s, points + steps * u, times + steps)
    _, metrics = agent.update(state, batch)
    expected = (batch.weights * _expectile(errors, 0.7)).mean()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["bc_loss"], bc_loss, rtol=1e-4)
    value = (batch.weights * beyond.mean(axis=0)).mean()
    np.testing.assert_allclose(metrics["actor_q"], value, rtol=1e-4, atol=1e-5)
    total = metrics["critic_loss"] + 3 * metrics["bc_loss"] - metrics["actor_q"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


def test_distances_are_half_uniform_and_half_whole_steps():
    distances = np.asarray(rql.draw_distances(_KEY, 2000, 4))[:, 0]
    assert set(distances[1000:]) == {0, 0.25, 0.5, 0.75, 1}
    assert len(set(distances[:1000])) > 900
    assert 0 <= distances.min() <= distances.max() <= 1


def test_rql_evaluates_by_the_average_and_explores_by_the_flow(linear):
    agent, state = linear.make("rql", flow_tau=0.1, tau=0.2)
    moved, _ = agent.update(state, linear.batch())
    for name, rate in (("flow", 0.1), ("critic", 0.2)):
        expected = jax.tree.map(
            lambda new, old, rate=rate: rate * new + (1 - rate) * old,
            moved.params[name], state.target_params[name],
        )  # fmt: skip
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            moved.target_params[name], expected,
        )  # fmt: skip
    observations = linear.batch().observations
    swapped = dataclasses.replace(
        state, params={**state.params, "flow": state.target_params["flow"]}
    )
    acted, explored = (f(state, observations, _KEY) for f in (agent.sample_actions, agent.explore))
    np.testing.assert_array_equal(agent.explore(swapped, observations, _KEY), acted)
    assert not np.allclose(acted, explored)


@pytest.mark.parametrize(("name", "actors"), [("rql", ["flow"]), ("fan", ["behavior", "actor"])])
def test_rewards_reach_the_critics_alone(name, actors, linear):
    agent, state = linear.make(name)
    batch = linear.batch()
    other = dataclasses.replace(batch, rewards=batch.rewards + 1)
    moved, expected = (agent.update(state, each)[0] for each in (batch, other))
    for actor in actors:
        jax.tree.map(np.testing.assert_array_equal, moved.params[actor], expected.params[actor])
    leaves = [jax.tree.leaves(each.params["critic"]) for each in (moved, expected)]
    assert not all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize("name", ["rql", "fan", "qgf", "edp"])
def test_a_completed_task_is_not_looked_beyond(name, linear):
    agent, state = linear.make(name)
    batch = linear.batch(masks=np.zeros(32))
    other = dataclasses.replace(batch, next_observations=batch.next_observations + 1)
    losses = [agent.update(state, each)[1]["critic_loss"] for each in (batch, other)]
    assert losses[0] == losses[1]


def test_anchor_is_zero_for_the_flow_that_leads_to_the_action():
    noise, target = jax.random.normal(_KEY, (2, 32, 3))

    def leads_there(x, t):
        return (target - x) / (1 - t)

    errors = fan.anchor_errors(leads_there, noise, target, _KEY)
    np.testing.assert_allclose(errors, 0, atol=1e-3)
    still = fan.anchor_errors(lambda x, t: 0 * x, noise, target, _KEY)
    np.testing.assert_allclose(still, target - noise)


def test_fan_losses_by_hand(linear):
    agent, state = linear.make("fan", kappa=0.9, rho=0.5, actor_anchor=2.0, critic_anchor=0.6)
    batch = linear.batch()
    s, actions = np.asarray(batch.observations), linear.flat(batch.actions)
    params, next_s = state.params, np.asarray(batch.next_observations)
    value_key, actor_key = _keys(state)

    def act(s, noise):
        kernel, bias = linear.dense(params["actor"])
        return np.concatenate([s, noise], axis=-1) @ kernel + bias

    def q(critic, s, a, noise):
        return linear.q_values(critic, s, np.concatenate([a, noise], axis=-1))

    def anchor(s, noise, a, key):
        t = np.asarray(jax.random.uniform(key, (32, 1)))
        return (
            a - noise - _velocity(linear, params["behavior"], s, (1 - t) * noise + t * a, t)
        ) ** 2

    noise_key, time_key, upper_key = jax.random.split(value_key, 3)
    noise = _normal(noise_key)
    next_actions = np.clip(act(next_s, noise), -1, 1)
    z = linear.q_values(params["upper"], next_s, next_actions)
    penalty = 0.6 / 2 * anchor(next_s, noise, next_actions, time_key).sum(axis=-1)
    target = batch.rewards + 0.995**2 * batch.masks * (z.mean(0) - 0.5 * z.std(0) - penalty)
    errors = q(params["critic"], s, actions, noise) - target
    upper_target = q(state.target_params["critic"], s, actions, _normal(upper_key)).mean(axis=0)
    upper = upper_target - linear.q_values(params["upper"], s, actions)
    _, noise_key, time_key, fresh_key = jax.random.split(actor_key, 4)
    noise = _normal(noise_key)
    drawn = act(s, noise)
    clipped = np.clip(drawn, -1, 1)
    expected = {
        "critic_loss": (batch.weights * errors**2).mean(),
        "upper_loss": (batch.weights * _expectile(upper, 0.9)).mean(),
        "anchor_loss": anchor(s, noise, drawn, time_key).mean(),
        "actor_q": q(params["critic"], s, clipped, _normal(fresh_key)).mean(),
        "actor_upper": linear.q_values(params["upper"], s, clipped).mean(),
    }
    _, metrics = agent.update(state, batch)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    weights = {"critic_loss": 1, "upper_loss": 1, "bc_loss": 1, "anchor_loss": 2}
    total = sum(weight * metrics[name] for name, weight in weights.items())
    total -= metrics["actor_q"] + metrics["actor_upper"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


def test_guidance_of_weight_zero_is_cloning(linear):
    guided, state = linear.make("qgf", guidance_weight=0.0)
    plain, _ = linear.make("edp")
    observations = linear.batch().observations
    actions = guided.sample_actions(state, observations, _KEY)
    np.testing.assert_array_equal(actions, plain.sample_actions(state, observations, _KEY))


def test_guidance_by_a_linear_critic_adds_its_slope(linear):
    """The lower of two critics with one slope; a flow of zeros leaves the noise where it is."""
    agent, state = linear.make("qgf", guidance_weight=0.25)
    state = linear.first_action_critic(state)
    still = jax.tree.map(jnp.zeros_like, state.params["behavior"])
    state = dataclasses.replace(state, params={**state.params, "behavior": still})
    actions = agent.sample_actions(state, linear.batch().observations, _KEY)
    noise = jax.random.normal(_KEY, (1, 32, 2))[0]
    expected = np.clip(noise + np.array([0.25, 0.0]), -1, 1)
    np.testing.assert_allclose(linear.flat(actions), expected, rtol=1e-5)


def test_implicit_q_learning_and_edp_by_hand(linear):
    agent, state = linear.make("edp", kappa=0.8, bc_weight=5.0)
    batch = linear.batch()
    s, actions = np.asarray(batch.observations), linear.flat(batch.actions)
    params, target_critic = state.params, state.target_params["critic"]

    def value(s):
        kernel, bias = linear.dense(params["value"])
        return (s @ kernel + bias)[:, 0]

    backup = batch.masks * value(np.asarray(batch.next_observations))
    errors = linear.q_values(params["critic"], s, actions) - batch.rewards - 0.999**2 * backup
    lowest = linear.q_values(target_critic, s, actions).min(axis=0)
    noise_key, time_key = jax.random.split(_keys(state)[1])
    noise, t = _normal(noise_key), np.asarray(jax.random.randint(time_key, (32, 1), 0, 3)) / 2
    points = (1 - t) * noise + t * actions
    u = _velocity(linear, params["behavior"], s, points, t)
    clean = np.clip(points + (1 - t) * u, -1, 1)
    expected = {
        "critic_loss": (batch.weights * errors**2).mean(),
        "value_loss": (batch.weights * _expectile(lowest - value(s), 0.8)).mean(),
        "bc_loss": ((u - (actions - noise)) ** 2).mean(),
        "actor_q": linear.q_values(target_critic, s, clean).min(axis=0).mean(),
    }
    _, metrics = agent.update(state, batch)
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-4, atol=1e-5, err_msg=name)
    total = expected["critic_loss"] + expected["value_loss"]
    total += 5 * expected["bc_loss"] - expected["actor_q"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)


def _behavior_state(linear, name):
    """A state of an algorithm, with the networks that cloning has too."""
    _, state = linear.make(name)
    cloned = dataclasses.replace(state, params={"behavior": state.params["behavior"]})
    return state, cloned


@pytest.mark.parametrize("name", ["qam", "fql", "ifql", "cgql", "dsrl", "qgf"])
def test_any_behavior_flow_can_be_guided(linear, name):
    """Weight 0 is the behaviour flow, bit for bit; another weight is not."""
    config = linear.config(name, best_of_n=1)
    state, cloned = _behavior_state(linear, name)
    observations = linear.batch().observations
    plain = jax.jit(linear.make("bc")[0].sample_actions)(cloned, observations, _KEY)

    def act(weight):
        agent = agents.make_guided_agent(config, state, weight)
        return jax.jit(agent.sample_actions)(state, observations, _KEY)

    np.testing.assert_array_equal(act(0.0), plain)
    assert np.abs(act(0.1) - plain).max() > 1e-4


def test_guidance_of_a_qgf_run_is_its_own(linear):
    config = linear.config("qgf", guidance_weight=0.3, best_of_n=3)
    own, (_, state) = agents.make_agent(config), linear.make("qgf")
    other = agents.make_guided_agent(linear.config("qgf", best_of_n=3), state, 0.3)
    observations = linear.batch().observations
    expected = own.sample_actions(state, observations, _KEY)
    np.testing.assert_array_equal(other.sample_actions(state, observations, _KEY), expected)


def test_guidance_needs_a_behavior_flow_and_a_critic_of_actions(linear):
    lacks = {
        "bc": "has no critic at this step",
        "fan": "has critics that take more than an action",
        "rebrac": "has no behaviour flow",
        "rql": "has no behaviour flow",
    }
    for name, reason in lacks.items():
        _, state = linear.make(name)
        with pytest.raises(ValueError, match=f"'{name}' {reason}"):
            agents.make_guided_agent(linear.config(name), state, 0.1)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be finite and at least 0"):
            agents.make_guided_agent(linear.config("qgf"), linear.make("qgf")[1], weight)
