"""What the algorithms that fine-tune a flow on simulated paths share: QAM, TRQAM and BAM."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax import adjoint
from qam_jax.agents import actor_critic, base
from qam_jax.flow import (
    memoryless_noise_scale,
    sample_memoryless_sde,
    trace_memoryless_sde,
)
from qam_jax.networks import CriticEnsemble, VectorField
from qam_jax.types import Array, Metrics, Params, VelocityFn


def make_policy(config: ConfigDict, flow: VectorField) -> actor_critic.PolicyFn:
    """Acting by the ODE under the fine-tuned flow."""

    def policy(state, observations, key):
        noise = actor_critic.draw_noise(state, observations, key)
        velocity = base.flow_velocity(flow, state.params["flow"], observations)
        return base.flow_actions(config, velocity, noise)

    return policy


def init_flows(
    flow: VectorField,
    behavior_key: chex.PRNGKey,
    flow_key: chex.PRNGKey,
    observation: Array,
    action: Array,
) -> Params:
    """Parameters of the behaviour flow and of the fine-tuned flow.

    Args:
      flow: network of both.
      behavior_key: of the behaviour flow's parameters.
      flow_key: of the fine-tuned flow's.
      observation: [O], an example.
      action: [D], an example.

    Returns:
      By the names `behavior` and `flow`.
    """
    keys = {"behavior": behavior_key, "flow": flow_key}
    return {
        name: flow.init(key, observation, action, action[:1])["params"]
        for name, key in keys.items()
    }


def simulate_paths(
    config: ConfigDict,
    velocity_fn: VelocityFn,
    base_velocity_fn: VelocityFn,
    shape: tuple[int, ...],
    key: chex.PRNGKey,
) -> Array:
    """States [T + 1, *shape] of the memoryless SDE, whose last step is the base flow's.

    Args:
      config: the algorithm's; its `flow_steps` is `T`.
      velocity_fn: the flow of all steps but the last.
      base_velocity_fn: the flow of the last step.
      shape: of the actions, [B, D].
      key: source of the paths' noise.
    """
    return sample_memoryless_sde(velocity_fn, base_velocity_fn, *path_noise(config, shape, key))


def path_noise(
    config: ConfigDict, shape: tuple[int, ...], key: chex.PRNGKey
) -> tuple[Array, Array]:
    """Noise of paths: where they start, [*shape], and of their steps, [T - 1, *shape]."""
    initial_key, step_key = jax.random.split(key)
    steps = jax.random.normal(step_key, (config.flow_steps - 1, *shape))
    return jax.random.normal(initial_key, shape), steps


class Matching(NamedTuple):
    """What adjoint matching regresses, and on what: each [T, B, D], along simulated paths.

    Attributes:
      velocities: of the fine-tuned flow; alone can be differentiated.
      base_velocities: of the base flow.
      adjoints: lean adjoints.
      metrics: of the adjoints' size.
    """

    velocities: Array
    base_velocities: Array
    adjoints: Array
    metrics: Metrics


def match_adjoints(
    config: ConfigDict,
    flow: VectorField,
    critic: CriticEnsemble,
    state: base.AgentState,
    velocity_fn: VelocityFn,
    observations: Array,
    key: chex.PRNGKey,
    inv_temp: float,
) -> Matching:
    """Simulates paths and solves for their lean adjoints.

    Args:
      config: the algorithm's.
      flow: network of the base flow, whose parameters are the targets' `behavior`.
      critic: network of the critics, whose parameters are the targets' `critic`.
      state: the agent's.
      velocity_fn: the fine-tuned flow in the observations.
      observations: [B, O].
      key: source of the paths' noise.
      inv_temp: inverse temperature.
    """
    base_of = partial(base.flow_velocity, flow, state.target_params["behavior"])
    value_fn = partial(base.mean_value, critic, state.target_params["critic"], observations)
    noise = path_noise(config, (len(observations), state.action_dim), key)
    states, velocities = trace_memoryless_sde(velocity_fn, *noise)
    base_velocities = path_velocities(base_of, observations, states)
    final = states[-1] + base_velocities[-1] / config.flow_steps
    terminal = adjoint.terminal_adjoint(value_fn, final, inv_temp)
    path = jnp.concatenate([states, final[None]])
    adjoints = adjoint.solve_lean_adjoint(base_of(observations), path, terminal)
    metrics = {
        "adjoint_norm_start": jnp.mean(jnp.linalg.norm(adjoints[0], axis=-1)),
        "adjoint_norm_end": jnp.mean(jnp.linalg.norm(terminal, axis=-1)),
    }
    return Matching(velocities, base_velocities, adjoints, metrics)


def path_velocities(
    velocity_of: Callable[[Array], VelocityFn], observations: Array, states: Array
) -> Array:
    """A flow's velocities [T, B, D] at the states `x_0 .. x_{T-1}` of paths, each at its time.

    Args:
      velocity_of: `(observations [T, B, O]) -> velocity function`.
      observations: [B, O], of each path.
      states: [T, B, D].
    """
    num_steps = len(states)
    times = jnp.arange(num_steps)[:, None, None] / num_steps
    times = jnp.broadcast_to(times, (*states.shape[:-1], 1))
    observations = jnp.broadcast_to(observations, (*states.shape[:-1], observations.shape[-1]))
    return velocity_of(observations)(states, times)


def deviation_costs(velocities: Array, base_velocities: Array) -> Array:
    """`2 ||f_i - f_base_i||^2 / sigma_i^2` [T, B] of velocities [T, B, D].

    `h` times their sum over the steps is the KL divergence between the paths' distributions
    (Girsanov; TRQAM, arXiv 2605.27079).
    """
    noise_scales = memoryless_noise_scale(velocities.shape[0])[:, None]
    squares = jnp.sum(jnp.square(velocities - base_velocities), axis=-1)
    return 2 * squares / jnp.square(noise_scales)
