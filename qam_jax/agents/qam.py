"""Q-learning with Adjoint Matching (QAM; Li & Levine, arXiv 2601.14234).

A behaviour flow `f_beta` is cloned from the data, critics are learned by TD backups, and the
fine-tuned flow `f_theta` is regressed on the lean adjoint of the critic's action gradient, so
that its policy approaches `pi_beta * exp(inv_temp * Q)`. Two variants act with a further network:

- QAM-F (`fql_alpha` > 0): a one-step actor, distilled from `f_theta` and improved on the critic.
- QAM-E (`edit_scale` > 0): a tanh-Gaussian that edits the action of `f_theta`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.adjoint import adjoint_matching_loss, solve_lean_adjoint, terminal_adjoint
from qam_jax.agents import actor_critic, base
from qam_jax.agents.actor_critic import Loss
from qam_jax.agents.base import AgentState
from qam_jax.agents.qam_actors import Draws, make_top_actor
from qam_jax.flow import MemorylessPath, trace_memoryless_sde
from qam_jax.networks import CriticEnsemble, VectorField, mean_critic_value
from qam_jax.types import Array, Batch, Key, Metrics, Params, VelocityFn

DISPLAY_NAME = "QAM"
RANGES = {"inv_temp": base.AT_LEAST_0, "fql_alpha": base.AT_LEAST_0, "edit_scale": (0.0, 2.0)}


def get_config() -> ConfigDict:
    """QAM with the paper's settings."""
    return ConfigDict(
        {
            "agent_name": "qam",
            **base.base_config(),
            **base.critic_config(),
            "inv_temp": 1.0,  # inverse temperature
            "residual": False,  # f_theta is the behaviour flow plus a learned residual
            "fql_alpha": 0.0,  # weight of the one-step actor's distillation; above 0: QAM-F
            "edit_scale": 0.0,  # size of an edit, as a share of the action range; above 0: QAM-E
        }
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


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under the fine-tuned flow, or by the actor on top.

    Raises:
      ValueError: if both `fql_alpha` and `edit_scale` are set.
    """
    flow, critic, top = base.make_flow(config), base.make_critic(config), make_top_actor(config)
    optimizer = base.make_optimizer(config)
    draw = partial(_draw, config, flow)

    def policy(state: AgentState, observations: Array, key: Key) -> Array:
        draws = draw(state, observations, *jax.random.split(key))
        return top.act(state.params, observations, draws) if top else draws.flow_actions

    def init(key: Key, example_observation: Array, example_action: Array) -> AgentState:
        action_shape = base.chunk_shape(config, example_action)
        inputs = example_observation, jnp.zeros(action_shape).reshape(-1)
        key, critic_key, behavior_key, flow_key, actor_key = jax.random.split(key, 5)
        params = {
            "critic": critic.init(critic_key, *inputs)["params"],
            **init_flows(flow, behavior_key, flow_key, *inputs),
            **(top.init(actor_key, *inputs) if top else {}),
        }
        return base.init_state(optimizer, params, ("critic", "behavior"), key, action_shape)

    def update(state: AgentState, batch: Batch) -> tuple[AgentState, Metrics]:
        key, next_key, bc_key, path_key, *actor_keys = jax.random.split(state.key, 6)
        observations, actions = batch.observations, base.flat_actions(config, batch)
        targets = actor_critic.policy_targets(config, critic, policy, state, batch, next_key)

        def loss_fn(params: Params) -> Loss:
            td_loss, metrics = actor_critic.critic_loss(
                critic, params["critic"], batch, actions, targets
            )
            bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
            velocity = _velocity(config, flow, params, state.target_params, observations)
            path, adjoints, norms = match_adjoints(
                config, flow, critic, state, velocity, observations, path_key, config.inv_temp
            )
            am_loss = jnp.mean(
                adjoint_matching_loss(path.velocities, path.base_velocities, adjoints)
            )
            loss = td_loss + (bc_loss + am_loss)
            metrics |= {"bc_loss": bc_loss, "adjoint_matching_loss": am_loss, **norms}
            if top:
                draws = draw(state, observations, *actor_keys)
                q_fn = partial(mean_critic_value, critic, state.params["critic"], observations)
                top_loss, more = top.loss(params, observations, draws, q_fn)
                loss, metrics = loss + top_loss, metrics | more
            return loss, metrics

        return base.apply_gradients(state, optimizer, loss_fn, key, config.tau)

    return base.Agent(init, update, actor_critic.make_sampler(config, critic, policy))


def init_flows(
    flow: VectorField, behavior_key: Key, flow_key: Key, observation: Array, action: Array
) -> Params:
    """Parameters of the behaviour flow and of the fine-tuned flow, by name."""
    keys, inputs = {"behavior": behavior_key, "flow": flow_key}, (observation, action, action[:1])
    return {name: flow.init(key, *inputs)["params"] for name, key in keys.items()}


def path_noise(
    config: ConfigDict, state: AgentState, observations: Array, key: Key
) -> tuple[Array, Array]:
    """Noise of simulated paths: of their start [B, D], and of their steps [T - 1, B, D]."""
    initial_key, step_key = jax.random.split(key)
    initial = base.draw_noise(state, observations, initial_key)
    return initial, jax.random.normal(step_key, (config.flow_steps - 1, *initial.shape))


def match_adjoints(
    config: ConfigDict,
    flow: VectorField,
    critic: CriticEnsemble,
    state: AgentState,
    velocity_fn: VelocityFn,
    observations: Array,
    key: Key,
    inv_temp: float,
) -> tuple[MemorylessPath, Array, Metrics]:
    """Simulates paths of the fine-tuned flow and solves for their lean adjoints.

    Args:
      config: of the algorithm.
      flow: network of the base flow; its parameters are the target `behavior`.
      critic: the ensemble; its parameters are the target `critic`.
      state: of the agent.
      velocity_fn: the fine-tuned flow in the observations.
      observations: [B, O].
      key: source of the paths' noise.
      inv_temp: inverse temperature.

    Returns:
      The paths, their adjoints [T, B, D], and metrics of the adjoints' size.
    """
    base_velocity = base.flow_velocity(flow, state.target_params["behavior"], observations)
    q_fn = partial(mean_critic_value, critic, state.target_params["critic"], observations)
    noise = path_noise(config, state, observations, key)
    path = trace_memoryless_sde(velocity_fn, base_velocity, *noise)
    terminal = terminal_adjoint(q_fn, path.states[-1], inv_temp)
    adjoints = solve_lean_adjoint(base_velocity, path.states, terminal)
    norms = {
        "adjoint_norm_start": jnp.mean(jnp.linalg.norm(adjoints[0], axis=-1)),
        "adjoint_norm_end": jnp.mean(jnp.linalg.norm(terminal, axis=-1)),
    }
    return path, adjoints, norms


def _velocity(
    config: ConfigDict, flow: VectorField, params: Params, others: Params, observations: Array
) -> VelocityFn:
    """`f_theta`; a residual is added to the behaviour flow of `others`."""
    velocity = base.flow_velocity(flow, params["flow"], observations)
    if not config.residual:
        return velocity
    behavior_velocity = base.flow_velocity(flow, others["behavior"], observations)
    return lambda x, t: velocity(x, t) + behavior_velocity(x, t)


def _draw(
    config: ConfigDict,
    flow: VectorField,
    state: AgentState,
    observations: Array,
    noise_key: Key,
    own_key: Key,
) -> Draws:
    """Draws actions of the flow, and noise for the actor on top of it."""
    noise = base.draw_noise(state, observations, noise_key)
    velocity = _velocity(config, flow, state.params, state.params, observations)
    own_noise = base.draw_noise(state, observations, own_key)
    return Draws(noise, base.flow_actions(config, velocity, noise), own_noise)
