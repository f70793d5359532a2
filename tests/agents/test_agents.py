import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qam_jax import adjoint, critic, flow, networks
from qam_jax.agents import (
    actor_critic,
    algorithm_names,
    base,
    get_config,
    make_agent,
    parameter_count,
)
from qam_jax.types import Batch

_BATCH, _OBS, _ACT, _HORIZON = 16, 4, 2, 3

_VARIANTS = {
    "qam": ("qam", {}),
    "qam-residual": ("qam", {"residual": True}),
    "qam-best-of-n": ("qam", {"best_of_n": 4}),
    "qam-no-chunking": ("qam", {"action_chunking": False}),
    "qam-one-step": ("qam", {"flow_steps": 1}),
    "qam-f": ("qam", {"fql_alpha": 10.0}),
    "qam-e": ("qam", {"edit_scale": 0.3}),
    "qam-e-best-of-n": ("qam", {"edit_scale": 0.3, "best_of_n": 2}),
    "bc": ("bc", {}),
}


def _config(agent_name="qam", **changes):
    config = get_config(agent_name)
    small = {
        "actor_hidden_dims": (16, 16),
        "critic_hidden_dims": (16, 16),
        "num_qs": 2,
        "flow_steps": 4,
        "horizon_length": _HORIZON,
        "batch_size": _BATCH,
    }
    config.update({name: value for name, value in small.items() if name in config})
    config.update(changes)
    return config


def _batch(seed=0, **changes):
    rng = np.random.default_rng(seed)
    columns = {
        "observations": rng.normal(size=(_BATCH, _OBS)),
        "actions": rng.uniform(-1, 1, size=(_BATCH, _HORIZON, _ACT)),
        "rewards": rng.normal(size=_BATCH),
        "masks": (rng.uniform(size=_BATCH) < 0.8).astype(float),
        "weights": (rng.uniform(size=_BATCH) < 0.8).astype(float),
        "next_observations": rng.normal(size=(_BATCH, _OBS)),
        **changes,
    }
    return Batch(**{name: jnp.asarray(column, jnp.float32) for name, column in columns.items()})


def _init(agent, seed=0):
    return agent.init(jax.random.PRNGKey(seed), jnp.zeros(_OBS), jnp.zeros(_ACT))


@pytest.fixture(params=_VARIANTS, name="variant")
def _variant(request):
    name, changes = _VARIANTS[request.param]
    config = _config(name, **changes)
    return config, make_agent(config)


def test_every_variant_learns_acts_and_keeps_its_structure(variant):
    config, agent = variant
    state = _init(agent)
    update = jax.jit(agent.update)
    updated, metrics = update(state, _batch())
    assert jax.tree.structure(updated) == jax.tree.structure(state)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert updated.step == 1
    assert not np.array_equal(updated.key, state.key)
    for name, params in state.params.items():
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, updated.params[name])
        assert any(jax.tree.leaves(moved)), f"{name} was not trained"
    key, observations = jax.random.PRNGKey(1), jnp.zeros((5, 2, _OBS))
    chunk = _HORIZON if config.action_chunking else 1
    actions = jax.jit(agent.sample_actions)(updated, observations, key)
    assert actions.shape == (5, 2, chunk, _ACT)
    assert agent.sample_actions(updated, observations[0, 0], key).shape == (chunk, _ACT)
    assert jnp.abs(actions).max() <= 1
    assert actions.std() > 0.05  # different noise for different rows


@pytest.mark.parametrize("name", algorithm_names())
def test_shapes_without_chunking_and_for_any_batch_of_observations(name):
    agent = make_agent(_config(name, action_chunking=False))
    state = jax.eval_shape(agent.init, jax.random.PRNGKey(0), jnp.zeros(_OBS), jnp.zeros(_ACT))
    updated, metrics = jax.eval_shape(agent.update, state, _batch())
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, state)
    assert all(metric.shape == () for metric in metrics.values())
    for shape in ((), (2, 3)):
        observations = jnp.zeros((*shape, _OBS))
        actions = jax.eval_shape(agent.sample_actions, state, observations, state.key)
        assert actions.shape == (*shape, 1, _ACT)


def test_metrics_cover_every_loss_and_both_ends_of_the_adjoint():
    expected = {"loss", "critic_loss", "bc_loss", "adjoint_matching_loss", "grad_norm"}
    expected |= {"q_mean", "q_min", "q_max", "adjoint_norm_start", "adjoint_norm_end"}
    for changes, more in (
        ({}, set()),
        ({"fql_alpha": 1.0}, {"one_step_distill_loss", "one_step_q"}),
        ({"edit_scale": 0.1}, {"edit_loss", "edit_temp_loss", "edit_temp", "edit_entropy"}),
    ):
        agent = make_agent(_config(**changes))
        _, metrics = jax.eval_shape(agent.update, _init(agent), _batch())
        assert metrics.keys() == expected | more


def test_targets_follow_the_new_parameters_and_are_not_trained():
    config = _config(tau=0.1)
    agent = make_agent(config)
    state = _init(agent)
    state = state.replace(target_params=jax.tree.map(jnp.zeros_like, state.target_params))
    updated, _ = jax.jit(agent.update)(state, _batch())
    for name in ("critic", "behavior"):
        expected = jax.tree.map(lambda new: 0.1 * new, updated.params[name])
        jax.tree.map(np.testing.assert_allclose, updated.target_params[name], expected)
    assert "flow" not in updated.target_params
    moments = [leaf for leaf in jax.tree.leaves(updated.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * parameter_count(updated)


@pytest.mark.parametrize("residual", [False, True])
def test_losses_equal_those_of_the_pure_core(residual):
    """The update's losses, computed again here from the core functions and the same keys."""
    config = _config(inv_temp=2.0, residual=residual)
    agent, batch = make_agent(config), _batch()
    state = _init(agent)
    state, _ = jax.jit(agent.update)(state, _batch(1))  # so that targets differ from parameters
    _, metrics = jax.jit(agent.update)(state, batch)

    _, _, act_key, path_key = jax.random.split(state.key, 4)
    critic_net, flow_net = base.make_critic(config), base.make_flow(config)
    targets, dim = state.target_params, _HORIZON * _ACT

    def q_values(params, observations, actions):
        return critic_net.apply({"params": params}, observations, actions)

    def velocity(params, observations):
        return lambda x, t: flow_net.apply({"params": params}, observations, x, t)

    noise = jax.random.normal(jax.random.split(act_key)[0], (_BATCH, dim))
    initial_noise, *step_noise = jax.random.normal(path_key, (4, _BATCH, dim))

    def policy_velocity(behavior, observations):
        """The fine-tuned flow; a residual is added to the given behaviour flow."""
        own = velocity(state.params["flow"], observations)
        other = velocity(behavior, observations)
        return lambda x, t: own(x, t) + (other(x, t) if residual else 0)

    next_velocity = policy_velocity(state.params["behavior"], batch.next_observations)
    next_actions = jnp.clip(flow.sample_flow(next_velocity, noise, 4), -1, 1)
    target = critic.td_target(
        batch.rewards,
        batch.masks,
        q_values(targets["critic"], batch.next_observations, next_actions),
        discount=config.discount,
        horizon_length=_HORIZON,
        rho=config.rho,
    )
    q = q_values(state.params["critic"], batch.observations, batch.actions.reshape(_BATCH, dim))
    expected = critic.td_loss(q, target, batch.weights)
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)

    fine_tuned = policy_velocity(targets["behavior"], batch.observations)
    base_flow = velocity(targets["behavior"], batch.observations)
    states = flow.sample_memoryless_sde(fine_tuned, base_flow, initial_noise, jnp.stack(step_noise))
    terminal = adjoint.terminal_adjoint(
        lambda a: q_values(targets["critic"], batch.observations, a).mean(axis=0), states[-1], 2.0
    )
    adjoints = adjoint.solve_lean_adjoint(base_flow, states, terminal)
    times = [jnp.full((_BATCH, 1), i / 4) for i in range(4)]
    velocities, base_velocities = (
        jnp.stack([f(x, t) for x, t in zip(states[:-1], times, strict=True)])
        for f in (fine_tuned, base_flow)
    )
    losses = adjoint.adjoint_matching_loss(velocities, base_velocities, adjoints)
    np.testing.assert_allclose(metrics["adjoint_matching_loss"], losses.mean(), rtol=1e-4)
    norm = jnp.linalg.norm(adjoints[0], axis=-1).mean()
    np.testing.assert_allclose(metrics["adjoint_norm_start"], norm, rtol=1e-4)


def test_one_step_and_edit_losses_are_as_defined():
    """QAM-F and QAM-E: their metrics, computed again here from the same keys."""
    batch, dim = _batch(), _HORIZON * _ACT
    for changes in ({"fql_alpha": 7.0}, {"edit_scale": 0.3}):
        config = _config(**changes)
        agent = make_agent(config)
        state = _init(agent)
        state = state.replace(target_params=jax.tree.map(lambda x: x + 0.1, state.target_params))
        if "edit_scale" in changes:
            state.params["log_edit_temp"] = jnp.float32(-0.7)
        _, metrics = jax.jit(agent.update)(state, batch)
        act_key = jax.random.split(state.key, 4)[2]
        noise, edit_noise = (
            jax.random.normal(key, (2, _BATCH, dim))[1] for key in jax.random.split(act_key)
        )
        params, s = state.params, batch.observations
        flow_net, critic_net = base.make_flow(config), base.make_critic(config)

        def velocity(x, t, params=params, flow_net=flow_net):
            return flow_net.apply({"params": params["flow"]}, batch.observations, x, t)

        flow_action = jnp.clip(flow.sample_flow(velocity, noise, 4), -1, 1)
        if "fql_alpha" in changes:
            actor = networks.OneStepActor((16, 16))
            mu = actor.apply({"params": params["one_step"]}, s, noise)
            value = critic_net.apply({"params": params["critic"]}, s, jnp.clip(mu, -1, 1)).mean()
            distance = jnp.mean((mu - flow_action) ** 2)
            np.testing.assert_allclose(metrics["one_step_distill_loss"], distance, rtol=1e-4)
            extra = 7.0 * distance - value
        else:
            editor = networks.TanhGaussian((16, 16))
            inputs = jnp.concatenate([s, flow_action], axis=-1)
            edit = editor.apply({"params": params["editor"]}, inputs, edit_noise)
            edited = jnp.clip(flow_action + 0.3 * edit.value, -1, 1)
            value = critic_net.apply({"params": params["critic"]}, s, edited).mean()
            temp, entropy = np.exp(-0.7), -edit.log_prob.mean()
            np.testing.assert_allclose(metrics["edit_entropy"], entropy, rtol=1e-4)
            np.testing.assert_allclose(
                metrics["edit_temp_loss"], temp * (entropy + 0.5 * dim), rtol=1e-4
            )
            extra = -value + temp * edit.log_prob.mean() + temp * (entropy + 0.5 * dim)
        rest = sum(metrics[name] for name in ("critic_loss", "bc_loss", "adjoint_matching_loss"))
        np.testing.assert_allclose(metrics["loss"] - rest, extra, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"fql_alpha": 7.0}, {"edit_scale": 0.3}])
@pytest.mark.slow
def test_actors_do_not_train_the_critic_or_the_flow(changes):
    """One update moves what the actors look at exactly as plain QAM does."""
    plain, variant = (
        make_agent(_config(clip_grad_norm=0.0)),
        make_agent(_config(clip_grad_norm=0.0, **changes)),
    )
    state = _init(variant)
    shared = {name: state.params[name] for name in ("critic", "behavior", "flow")}
    simple = _init(plain).replace(params=shared, target_params=state.target_params, key=state.key)
    batch = _batch(masks=np.zeros(_BATCH))  # the two act differently: no targets of actions
    moved, _ = jax.jit(variant.update)(state, batch)
    expected, _ = jax.jit(plain.update)(simple, batch)
    for name in shared:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            moved.params[name],
            expected.params[name],
        )


@pytest.mark.slow
def test_edit_temperature_falls_while_entropy_is_above_its_target():
    agent = make_agent(_config(edit_scale=0.3))
    state = _init(agent)
    updated, metrics = jax.jit(agent.update)(state, _batch())
    above = metrics["edit_entropy"] > -0.5 * _HORIZON * _ACT
    assert (updated.params["log_edit_temp"] < state.params["log_edit_temp"]) == above


@pytest.mark.parametrize("residual", [False, True])
def test_each_network_is_trained_by_its_own_loss_alone(residual):
    """A critic that is not to learn (weights 0, lr of the rest) stays; only weights drive it."""
    agent = make_agent(_config(fql_alpha=5.0, clip_grad_norm=0.0, residual=residual))
    state = _init(agent)
    updated, metrics = jax.jit(agent.update)(state, _batch(weights=np.zeros(_BATCH)))
    assert metrics["critic_loss"] == 0
    for name, moved in (("critic", False), ("behavior", False), ("flow", True), ("one_step", True)):
        change = optax.global_norm(
            jax.tree.map(jnp.subtract, updated.params[name], state.params[name])
        )
        assert (change > 0) == moved, name


def test_gradient_is_clipped_jointly_before_adam():
    config = _config(clip_grad_norm=1.0)
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    optimizer = base.make_optimizer(config)
    grads = {"a": jnp.full(3, 30.0), "b": jnp.full(2, 40.0)}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    norm = np.sqrt(3 * 30**2 + 2 * 40**2)
    first_moment = state[1][0].mu
    np.testing.assert_allclose(first_moment["a"], 0.1 * 30 / norm * np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(first_moment["b"], 0.1 * 40 / norm * np.ones(2), rtol=1e-5)


def test_best_of_n_keeps_the_action_of_highest_value():
    config = _config(best_of_n=6)
    state, ensemble = _init(make_agent(config)), base.make_critic(config)
    drawn = jax.random.normal(jax.random.PRNGKey(0), (6, 5, _HORIZON * _ACT))
    observations, key = jax.random.normal(jax.random.PRNGKey(1), (5, _OBS)), jax.random.PRNGKey(2)

    def policy(state, repeated, key):
        assert (repeated == observations).all()
        return drawn

    best = actor_critic.best_of_n(config, ensemble, policy)(state, observations, key)
    params = {"params": state.params["critic"]}
    values = [np.mean(ensemble.apply(params, observations, each), axis=0) for each in drawn]
    expected = np.asarray(drawn)[np.argmax(values, axis=0), np.arange(5)]
    np.testing.assert_array_equal(best, expected)


def test_residual_adds_to_the_behaviour_flow():
    """With a residual network of zeros the policy is that of behaviour cloning."""
    config = _config(residual=True)
    agent = make_agent(config)
    state = _init(agent)
    state.params["flow"] = jax.tree.map(jnp.zeros_like, state.params["flow"])
    observations, key = jax.random.normal(jax.random.PRNGKey(0), (7, _OBS)), jax.random.PRNGKey(3)
    noise_key, _ = jax.random.split(key)
    behavior = make_agent(_config("bc"))
    expected = behavior.sample_actions(state, observations, noise_key)
    np.testing.assert_allclose(agent.sample_actions(state, observations, key), expected, rtol=1e-5)


def test_edits_are_no_larger_than_their_scale():
    agent = make_agent(_config(edit_scale=0.05))
    plain = make_agent(_config())
    state = _init(agent)
    observations, key = jax.random.normal(jax.random.PRNGKey(0), (64, _OBS)), jax.random.PRNGKey(3)
    edited = agent.sample_actions(state, observations, key)
    unedited = plain.sample_actions(state, observations, key)
    change = jnp.abs(edited - unedited)
    assert 0 < change.max() <= 0.05 + 1e-6


@pytest.mark.slow
def test_higher_inverse_temperature_moves_the_policy_towards_value():
    """On a one-state task whose reward is the first action, QAM climbs and more so with tau."""
    rng = np.random.default_rng(0)
    rewards = {}
    for inv_temp in (0.0, 1.0, 10.0):
        config = _config(inv_temp=inv_temp, lr=3e-3, tau=0.05, horizon_length=1, discount=0.0)
        agent = make_agent(config)
        state, update = _init(agent), jax.jit(agent.update)
        for _ in range(400):
            actions = rng.uniform(-1, 1, size=(_BATCH, 1, _ACT))
            ones, zeros = np.ones(_BATCH), np.zeros((_BATCH, _OBS))
            batch = _batch(
                observations=zeros, actions=actions, rewards=actions[:, 0, 0], weights=ones,
                next_observations=zeros, masks=0 * ones,
            )  # fmt: skip
            state, _ = update(state, batch)
        actions = agent.sample_actions(state, jnp.zeros((512, _OBS)), jax.random.PRNGKey(0))
        rewards[inv_temp] = float(actions[:, 0, 0].mean())
    assert rewards[0.0] < 0.2 < rewards[1.0] + 0.1 < rewards[10.0], rewards


@pytest.mark.slow
def test_behavior_cloning_learns_two_modes():
    config = _config("bc", lr=3e-3, flow_steps=10, horizon_length=1, actor_hidden_dims=(32, 32))
    agent = make_agent(config)
    rng = np.random.default_rng(0)
    state, update = _init(agent), jax.jit(agent.update)
    observations, weights = np.zeros((256, _OBS)), np.ones(256)
    for _ in range(800):
        side = rng.choice([-0.6, 0.6], size=(256, 1, 1))
        actions = np.concatenate([side, side], axis=-1)
        state, _ = update(
            state, _batch(observations=observations, actions=actions, weights=weights)
        )
    actions = agent.sample_actions(state, jnp.zeros((512, _OBS)), jax.random.PRNGKey(0))[:, 0]
    near = jnp.abs(jnp.abs(actions) - 0.6) < 0.25
    assert near.mean() > 0.8
    assert 0.3 < (actions[:, 0] > 0).mean() < 0.7
