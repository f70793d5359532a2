"""TRQAM and BAM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import adjoint, flow, networks
from qam_jax.agents import base, get_config, parameter_count, qam, trqam


def _path_key(state, name):
    if name == "trqam":
        return jax.random.split(state.key, 4)[3]
    _, _, actor_key = jax.random.split(state.key, 3)
    return jax.random.split(actor_key)[1]


class _Path:
    """The path of two steps that an update simulates, and both flows on it, in NumPy."""

    def __init__(self, state, observations, name):
        s = np.asarray(observations, np.float64)
        x, noise = np.float64(jax.random.normal(_path_key(state, name), (2, 32, 2)))
        self.sigmas = np.sqrt([6.0, 2.0])  # h = 1/2
        tuned, cloned = state.params["flow"], state.target_params["behavior"]
        self.tuned, self.cloned = [self._f(tuned, s, x, 0)], [self._f(cloned, s, x, 0)]
        x = x + 0.5 * (2 * self.tuned[0] - 2 * x) + np.sqrt(0.5) * self.sigmas[0] * noise
        self.tuned.append(self._f(tuned, s, x, 0.5))
        self.cloned.append(self._f(cloned, s, x, 0.5))
        self.end = x + 0.5 * self.cloned[1]

    @staticmethod
    def _f(params, s, x, t):
        layer = jax.tree.map(np.float64, params["MLP_0"]["Dense_0"])
        times = np.full((32, 1), t)
        return np.concatenate([s, x, times], axis=-1) @ layer["kernel"] + layer["bias"]

    def costs(self):
        """`2 ||f - f_base||^2 / sigma_i^2` [T, B]."""
        pairs = zip(self.tuned, self.cloned, self.sigmas, strict=True)
        return np.stack([2 * ((f - g) ** 2).sum(axis=-1) / sigma**2 for f, g, sigma in pairs])


def test_bam_loss_by_hand(linear):
    agent, state = linear.make("bam", inv_temp=3.0, rho=0.4)
    batch = linear.batch(masks=np.zeros(32))
    path = _Path(state, batch.observations, "bam")
    q = linear.q_values(state.params["critic"], batch.observations, path.end)
    value = np.mean(q.mean(axis=0) - 0.4 * q.std(axis=0))
    deviation = path.costs()[0].mean()  # of all steps but the last
    _, metrics = agent.update(state, batch)
    np.testing.assert_allclose(metrics["path_q"], value, rtol=1e-3)
    np.testing.assert_allclose(metrics["path_deviation"], deviation, rtol=1e-3)
    np.testing.assert_allclose(metrics["path_loss"], -3 * value + deviation, rtol=1e-3)
    total = metrics["path_loss"] + metrics["bc_loss"] + metrics["critic_loss"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"), [("bam", {}), ("qam", {}), ("qam", {"edit_scale": 0.3}), ("cgql", {})]
)
def test_without_the_critic_the_behaviour_flow_acts(linear, name, changes):
    """Also where the critics are backed up from: there the fine-tuned flow is not asked."""
    agent, state = linear.make(name, inv_temp=0.0, **changes)
    cloned, _ = linear.make("bc")
    observations, key = linear.batch().observations, jax.random.PRNGKey(4)
    behavior = state.target_params if name == "cgql" else state.params
    behavior = state.replace(params={"behavior": behavior["behavior"]})
    own = jax.random.split(key)[0] if name == "qam" else key
    expected = cloned.sample_actions(behavior, observations, own)
    actions = agent.sample_actions(state, observations, key)
    np.testing.assert_allclose(actions, expected, atol=1e-6 + 0.3 * ("edit_scale" in changes))
    if name != "cgql":
        other = state.replace(params={**state.params, "flow": linear.apart(state.params["flow"])})
        _, metrics = linear.train(agent, state, linear.batch(), 1)
        _, others = linear.train(agent, other, linear.batch(), 1)
        np.testing.assert_array_equal(metrics["critic_loss"], others["critic_loss"])


@pytest.mark.slow
def test_bam_without_the_critic_stays_at_the_base(linear):
    agent, state = linear.make("bam", inv_temp=0.0, tau=0.0, flow_steps=3)
    state = base.with_behavior(get_config("bam"), state, state.params["behavior"])
    update, batch = agent.update, linear.batch(masks=np.zeros(32))
    start = jax.tree.map(jnp.copy, state.params["flow"])
    for _ in range(3):
        state, metrics = update(state, batch)
    assert metrics["path_deviation"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params["flow"], start)


@pytest.mark.slow
def test_bam_climbs_the_critic_through_the_path(linear):
    """Where no window has weight, only the fine-tuned flow learns; more so with a higher tau.

    The critics agree everywhere, where the gradient of their spread has to stay finite.
    """
    means, deviations = [], []
    batch = linear.batch(weights=np.zeros(32))
    for inv_temp in (1.0, 10.0):
        agent, state = linear.make("bam", inv_temp=inv_temp, lr=0.01, flow_steps=3)
        state = linear.first_action_critic(state)
        state = base.with_behavior(get_config("bam"), state, state.params["behavior"])
        state, metrics = linear.train(agent, state, batch, 100)
        actions = agent.sample_actions(state, batch.observations, jax.random.PRNGKey(0))
        means.append(actions[:, 0, 0].mean())
        deviations.append(metrics["path_deviation"])
    assert means[0] < means[1] - 0.1, means
    assert deviations[0] < deviations[1], deviations


def test_trqam_divergence_by_hand(linear):
    agent, state = linear.make("trqam", kl_budget=0.2, horizon_length=2)
    batch = linear.batch(masks=np.zeros(32))
    state = state.replace(lam=jnp.float32(2.0), kl_ema=jnp.float32(0.3))
    kl = (
        _Path(state, batch.observations, "trqam").costs().sum(axis=0).mean() / 2 / 2
    )  # h, and two actions
    assert kl > 0.4  # the clip at twice the budget is in use
    moved, metrics = agent.update(state, batch)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-3)
    np.testing.assert_allclose(metrics["kl_ema"], 0.9 * 0.3 + 0.1 * 0.4, rtol=1e-5)
    np.testing.assert_allclose(metrics["lam"], 2 + 0.01 * (0.31 - 0.2), rtol=1e-6)
    assert (moved.lam, moved.kl_ema) == (metrics["lam"], metrics["kl_ema"])


@pytest.mark.slow
def test_trqam_divergence_is_per_action_of_a_chunk(linear):
    """Two agents of the same networks on D = 4: chunks of two actions, and of one."""
    chunks = np.random.default_rng(0).uniform(-1, 1, size=(32, 2, 2))
    kls = []
    for horizon, actions in ((2, chunks), (1, chunks.reshape(32, 1, 4))):
        agent, state = linear.make("trqam", horizon_length=horizon)
        state = agent.init(jax.random.PRNGKey(0), jnp.zeros(2), jnp.zeros(actions.shape[-1]))
        batch = linear.batch(actions=actions, masks=np.zeros(32))
        kls.append(agent.update(state, batch)[1]["kl"])
    np.testing.assert_allclose(2 * kls[0], kls[1], rtol=1e-5)


@pytest.mark.slow
def test_trqam_at_a_fixed_lambda_is_qam_at_its_inverse(linear):
    """Loss and gradient of the flow are `Lambda` times QAM's, on the same paths."""
    temp = 3.0 * 0.8
    agent, state = linear.make("trqam", flow_steps=3)
    state = state.replace(lam=jnp.float32(0.8))
    batch, config = linear.batch(), get_config("trqam")
    config.flow_steps = 3
    flow_net, critic = networks.VectorField(()), networks.CriticEnsemble((), 2)
    observations = batch.observations

    def qam_loss(params):
        tuned, cloned = (
            base.flow_velocity(flow_net, p, observations)
            for p in (params, state.target_params["behavior"])
        )
        noise = qam.path_noise(config, state, observations, _path_key(state, "trqam"))
        held = base.flow_velocity(flow_net, state.params["flow"], observations)
        states = flow.sample_memoryless_sde(held, cloned, *noise)
        value_fn = functools.partial(
            networks.mean_critic_value, critic, state.target_params["critic"], observations
        )
        terminal = adjoint.terminal_adjoint(value_fn, states[-1], 1 / temp)
        adjoints = adjoint.solve_lean_adjoint(cloned, states, terminal)
        norms = {"adjoint_norm_end": jnp.mean(jnp.linalg.norm(terminal, axis=-1))}
        velocities = [flow.velocities_along(f, states[:-1]) for f in (tuned, cloned)]
        return adjoint.adjoint_matching_loss(*velocities, adjoints).mean(), norms

    (loss, norms), gradient = jax.jit(jax.value_and_grad(qam_loss, has_aux=True))(
        state.params["flow"]
    )
    moved, metrics = agent.update(state, batch)
    np.testing.assert_allclose(metrics["adjoint_matching_loss"], temp * loss, rtol=1e-4)
    np.testing.assert_allclose(
        metrics["adjoint_norm_end"], temp * norms["adjoint_norm_end"], rtol=1e-4
    )
    for mine, theirs in zip(linear.gradients(moved, "flow"), linear.dense(gradient), strict=True):
        np.testing.assert_allclose(mine, temp * theirs, rtol=1e-3, atol=1e-4)


def test_scaled_loss_replaces_the_noise_scale():
    f, g, adjoints = jax.random.normal(jax.random.PRNGKey(0), (3, 4, 32, 2))
    sigmas = np.asarray(flow.memoryless_noise_scale(4))[:, None, None] / np.sqrt(1.7)
    expected = np.sum((2 * (f - g) / sigmas + sigmas * adjoints) ** 2, axis=(0, -1))
    loss = trqam.scaled_matching_loss(f, g, adjoints, jnp.float32(1.7))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize(("kl", "budget", "limit"), [(1.0, 0.05, 100.0), (0.0, 1.0, 0.01)])
def test_lambda_rises_above_the_budget_and_falls_below_it(kl, budget, limit):
    start = {"lam": jnp.float32(1), "kl_ema": jnp.float32(budget)}
    first = trqam.update_trust_region(**start, kl=kl, kl_budget=budget)
    assert (first["lam"] > 1) == (kl > budget)

    def step(moved, _):
        moved = trqam.update_trust_region(**moved, kl=kl, kl_budget=budget)
        return moved, moved["lam"]

    _, lams = jax.lax.scan(step, start, length=300_000)
    assert (np.diff(lams) * np.sign(kl - budget) >= 0).all()
    np.testing.assert_allclose(lams[-1], limit, rtol=1e-5)


def test_trqam_starts_from_a_cloned_flow_without_divergence(linear):
    agent, state = linear.make("trqam")
    cloned = jax.tree.map(lambda x: x + 1, state.params["behavior"])
    state = base.with_behavior(get_config("trqam"), state, cloned)
    assert (state.lam, state.kl_ema) == (1, 0)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * parameter_count(state)
    moved, metrics = agent.update(state, linear.batch(masks=np.zeros(32)))
    assert metrics["kl"] == 0
    assert moved.lam < 1  # within the budget
    assert jax.tree.structure(moved) == jax.tree.structure(state)


@pytest.mark.slow
def test_trqam_climbs_further_with_a_larger_budget(linear):
    observations, key = jax.random.normal(jax.random.PRNGKey(1), (256, 2)), jax.random.PRNGKey(3)
    moved = []
    for budget in (0.01, 1.0):
        agent, state = linear.make("trqam", kl_budget=budget)
        state = linear.first_action_critic(state)
        params = {**state.params, "flow": state.params["behavior"]}
        state = state.replace(params=params, lam=jnp.float32(0.5))
        state, _ = linear.train(agent, state, linear.climb(), 300)
        moved.append(agent.sample_actions(state, observations, key)[:, 0, 0].mean())
    assert moved[0] + 0.1 < moved[1], moved
