"""Q-learning with Adjoint Matching (QAM; Li & Levine, arXiv 2601.14234).

A behaviour flow `f_beta` is cloned from the data, and critics are learned by TD backups. The
fine-tuned flow `f_theta` is regressed on the lean adjoint of the critic's action gradient, so
that its policy approaches `pi_beta * exp(inv_temp * Q)`. Two variants act with a further network:

- QAM-F (`fql_alpha` > 0): a one-step actor, distilled from `f_theta` and improved on the critic.
- QAM-E (`edit_scale` > 0): a tanh-Gaussian that edits the action of `f_theta`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.adjoint import adjoint_matching_loss, solve_lean_adjoint, terminal_adjoint
from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss, PolicyFn
from qam_jax.agents.qam_actors import Draws, TopActor, make_top_actor
from qam_jax.flow import MemorylessPath, sample_flow_and_sde, velocities_along
from qam_jax.networks import CriticEnsemble, VectorField, init_network, mean_critic_value
from qam_jax.types import Array, Batch, Key, Metrics, Params, VelocityFn

DISPLAY_NAME = "QAM"
RANGES = {"inv_temp": base.AT_LEAST_0, "fql_alpha": base.AT_LEAST_0, "edit_scale": (0.0, 2.0)}
CHANGES = [
    base.TANH_GAUSSIAN_CHANGE._replace(concerns=lambda config: config.get("edit_scale", 0) > 0)
]


def get_config() -> ConfigDict:
    """QAM with the paper's settings."""
    return values.critic_config(
        agent_name="qam",
        inv_temp=1.0,  # inverse temperature; with 0 the behaviour flow acts
        residual=False,  # f_theta is the behaviour flow plus a learned residual
        fql_alpha=0.0,  # weight of the one-step actor's distillation; above 0: QAM-F
        edit_scale=0.0,  # size of an edit, as a share of the action range; above 0: QAM-E
    )


def get_edit_config() -> ConfigDict:
    """QAM-E with the paper's settings."""
    fields = {name: value for name, value in get_config().items() if name != "fql_alpha"}
    return ConfigDict({**fields, "agent_name": "qam_e", "edit_scale": 0.1})


def get_one_step_config() -> ConfigDict:
    """QAM-F with the paper's settings."""
    fields = {name: value for name, value in get_config().items() if name != "edit_scale"}
    return ConfigDict({**fields, "agent_name": "qam_f", "fql_alpha": 300.0})


VARIANTS = {"qam_e": ("QAM-E", get_edit_config), "qam_f": ("QAM-F", get_one_step_config)}
VARIANT_FIELDS = {"edit_scale": "qam_e", "fql_alpha": "qam_f"}


MatchingLoss = Callable[[AgentState, MemorylessPath, Array, Array], Loss]
"""`(state, path, velocities [T, B, D], adjoints [T, B, D]) -> (loss, metrics)`."""


def matching_loss(_: AgentState, path: MemorylessPath, velocities: Array, adjoints: Array) -> Loss:
    """QAM's regression of the fine-tuned flow on the lean adjoint."""
    loss = jnp.mean(adjoint_matching_loss(velocities, path.base_velocities, adjoints))
    return loss, {"adjoint_matching_loss": loss}


def make_agent(config: ConfigDict, matching_loss: MatchingLoss = matching_loss) -> base.Agent:
    """Builds the agent; it acts by the ODE under the fine-tuned flow, or by the actor on top.

    Raises ValueError if both `fql_alpha` and `edit_scale` are set.
    """
    flow, critic, top = base.make_flow(config), base.make_critic(config), make_top_actor(config)
    learning, optimizer = values.make_value_learning(config, critic), base.make_optimizer(config)
    policy = _make_policy(config, flow, top)
    num_next = config.best_of_n if learning.needs_actions else 0  # actions per next observation

    def init(key: Key, example_observation: Array, example_action: Array) -> AgentState:
        shape = base.chunk_shape(config, example_action)
        inputs = example_observation, jnp.zeros(shape).reshape(-1)
        key, critic_key, behavior_key, flow_key, top_key = jax.random.split(key, 5)
        params = init_flows(flow, behavior_key, flow_key, *inputs) | top.init(top_key, *inputs)
        params |= learning.init(jax.random.fold_in(critic_key, 1), example_observation)
        params["critic"] = init_network(critic, critic_key, *inputs)
        target_names = ("critic", "behavior", *learning.target_names)
        return base.init_state(optimizer, params, target_names, key, shape)

    def update(state: AgentState, batch: Batch) -> tuple[AgentState, Metrics]:
        key, bc_key, act_key, path_key = jax.random.split(state.key, 4)
        observations, actions = batch.observations, base.flat_actions(config, batch)
        # 1. Sample: actions by the ODE, in the observations `acting`; paths by the memoryless SDE.
        nexts = actor_critic.repeat_observations(config, batch.next_observations)[:num_next]
        acting = jnp.concatenate([nexts, observations[None]]) if top.loss else nexts
        draws, path = _sample(config, flow, state, acting, observations, act_key, path_key)
        # 2. Solve the lean adjoint, backwards along the paths.
        adjoints, norms = _solve(config, flow, critic, state, observations, path)
        next_actions = next_best(state, batch, nexts, draws, act_key) if num_next else None
        value_loss = learning.loss(state, batch, next_actions, act_key)

        def loss_fn(params: Params) -> Loss:
            critic_loss, metrics = value_loss(params)
            bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
            # 3. Regress the flow on the adjoints.
            velocity = _velocity(config, flow, params, state.target_params, observations)
            velocities = velocities_along(velocity, path.states[:-1])
            am_loss, more = matching_loss(state, path, velocities, adjoints)
            loss = critic_loss + bc_loss + am_loss
            metrics |= {"bc_loss": bc_loss, **more, **norms}
            if top.loss:
                own_draws = jax.tree.map(lambda rows: rows[-1], draws)
                q_fn = partial(mean_critic_value, critic, state.params["critic"], observations)
                top_loss, more = top.loss(params, observations, own_draws, q_fn)
                loss, metrics = loss + top_loss, metrics | more
            return loss, metrics

        return base.apply_gradients(state, optimizer, loss_fn, key, config.tau)

    def next_best(state: AgentState, batch: Batch, nexts: Array, draws: Draws, key: Key) -> Array:
        """Best actions [B, D] in the next observations, which are repeated as `nexts`."""
        drawn = top.act(state.params, nexts, jax.tree.map(lambda rows: rows[:num_next], draws))
        if config.get("inv_temp") == 0:  # the behaviour flow acts instead
            drawn = policy(state, nexts, jax.random.fold_in(key, 0))
        params = state.params["critic"]
        return actor_critic.choose_best(critic, params, batch.next_observations, drawn)

    best_of_n = partial(actor_critic.best_of_n, config, critic)
    return base.Agent(init, update, **base.acting_by(policy, best_of_n))


def init_flows(
    flow: VectorField, behavior_key: Key, flow_key: Key, observation: Array, action: Array
) -> Params:
    """Parameters of the behaviour flow and of the fine-tuned flow, by name."""
    keys = {"behavior": behavior_key, "flow": flow_key}
    return {name: init_network(flow, key, observation, action) for name, key in keys.items()}


def _make_policy(config: ConfigDict, flow: VectorField, top: TopActor) -> PolicyFn:
    """The policy before best-of-n: the ODE under the acting flow, then the actor on top of it."""

    def velocity(state: AgentState, observations: Array) -> VelocityFn:
        if config.get("inv_temp") == 0:  # the critic has no influence
            return base.flow_velocity(flow, state.params["behavior"], observations)
        return _velocity(config, flow, state.params, state.params, observations)

    def flow_noise(state: AgentState, observations: Array, key: Key) -> Array:
        return _noises(state, observations, key)[0]

    def policy_on_top(state: AgentState, observations: Array, key: Key) -> Array:
        noise, own_noise = _noises(state, observations, key)
        actions = base.flow_actions(config, velocity(state, observations), noise)
        return top.act(state.params, observations, Draws(noise, actions, own_noise))

    return policy_on_top if top.loss else base.FlowPolicy(velocity, config.flow_steps, flow_noise)


def _velocity(
    config: ConfigDict, flow: VectorField, params: Params, others: Params, observations: Array
) -> VelocityFn:
    """`f_theta`; with `residual`, the trained network plus the behaviour flow of `others`."""
    velocity = base.flow_velocity(flow, params["flow"], observations)
    if not config.get("residual"):
        return velocity
    behavior_velocity = base.flow_velocity(flow, others["behavior"], observations)
    return lambda x, t: velocity(x, t) + behavior_velocity(x, t)


def _noises(state: AgentState, observations: Array, key: Key) -> list[Array]:
    """Noise for the flow, and noise for the actor on top of it."""
    return [base.draw_noise(state, observations, each) for each in jax.random.split(key)]


def path_noise(
    config: ConfigDict, state: AgentState, observations: Array, key: Key
) -> tuple[Array, Array]:
    """Noise of simulated paths: of their start [B, D], and of their steps [T - 1, B, D]."""
    noise = jax.random.normal(key, (config.flow_steps, len(observations), state.action_dim))
    return noise[0], noise[1:]


def _sample(
    config: ConfigDict,
    flow: VectorField,
    state: AgentState,
    acting: Array,
    observations: Array,
    act_key: Key,
    path_key: Key,
) -> tuple[Draws, MemorylessPath]:
    """Draws [N, B, D] in the observations `acting` [N, B, O], and paths in `observations`."""
    noise, own_noise = _noises(state, acting, act_key)
    base_velocity = base.flow_velocity(flow, state.target_params["behavior"], observations)
    velocity = base.flow_velocity(
        flow, state.params["flow"], jnp.concatenate([acting, observations[None]])
    )

    def residual_velocity(x: Array, t: Array) -> Array:
        """The behaviour flow acts by its parameters, and makes paths by their moving average."""
        behavior_velocity = base.flow_velocity(flow, state.params["behavior"], acting)
        behavior = behavior_velocity(x[:-1], t[:-1]), base_velocity(x[-1:], t[-1:])
        return velocity(x, t) + jnp.concatenate(behavior)

    flow_actions, path = sample_flow_and_sde(
        residual_velocity if config.get("residual") else velocity,
        base_velocity,
        noise,
        *path_noise(config, state, observations, path_key),
    )
    return Draws(noise, jnp.clip(flow_actions, -1, 1), own_noise), path


def _solve(
    config: ConfigDict,
    flow: VectorField,
    critic: CriticEnsemble,
    state: AgentState,
    observations: Array,
    path: MemorylessPath,
) -> tuple[Array, Metrics]:
    """Lean adjoints [T, B, D] along the paths, and metrics of their size."""
    base_velocity = base.flow_velocity(flow, state.target_params["behavior"], observations)
    q_fn = partial(mean_critic_value, critic, state.target_params["critic"], observations)
    terminal = terminal_adjoint(q_fn, path.states[-1], config.get("inv_temp", 1.0))
    adjoints = solve_lean_adjoint(base_velocity, path.states, terminal)
    norms = jnp.linalg.norm(jnp.stack([adjoints[0], terminal]), axis=-1)
    start, end = jnp.mean(norms, axis=-1)
    return adjoints, {"adjoint_norm_start": start, "adjoint_norm_end": end}
