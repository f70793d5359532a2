"""Q-guided flow (QGF; arXiv 2606.11087): a cloned flow, guided by the critics only as it acts.

Critics are learned by implicit Q-learning, and nothing couples them to the flow in training. Each
step of the ODE adds the critics' gradient at the clean action that the flow's velocity points to.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.actor_critic import LossFn
from qam_jax.agents.base import AgentState, Loss, PolicyFn
from qam_jax.networks import CriticEnsemble, VectorField, critic_values
from qam_jax.types import Array, Batch, Key, Params, VelocityFn

DISPLAY_NAME = "QGF"
RANGES = {"guidance_weight": base.AT_LEAST_0, "kappa": base.SHARE}
LATER_FIELDS = {"value_learning": "iql"}


def get_config() -> ConfigDict:
    """QGF with the settings of the runs of its code, which have larger networks and batches."""
    return implicit_config(
        agent_name="qgf",
        kappa=0.9,  # expectile of the value; 0.5 is the mean
        guidance_weight=0.02,  # of the critics' gradient in each step of the ODE
    )


def implicit_config(**own: Any) -> ConfigDict:
    """Fields of QGF and EDP: two critics by implicit Q-learning, no clipping of gradients."""
    implicit = {"value_learning": "iql", "clip_grad_norm": 0.0, "discount": 0.999, "num_qs": 2}
    config = values.critic_config(**implicit, **own)
    del config["rho"]  # the lowest critic counts here, not the mean less deviations
    return config


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the guided ODE of the cloned flow."""
    flow, critic = base.make_flow(config), base.make_critic(config)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        points, times, velocities = draw_points(config, actions, key)
        velocity = base.flow_velocity(flow, params["behavior"], batch.observations)
        bc_loss = jnp.mean(jnp.square(velocity(points, times) - velocities))
        return bc_loss, {"bc_loss": bc_loss}

    policy = guided_policy(config, flow, critic, config.guidance_weight)
    return make_implicit_agent(config, flow, critic, actor_loss, policy)


def guided_policy(
    config: ConfigDict, flow: VectorField, critic: CriticEnsemble, weight: float
) -> base.FlowPolicy:
    """Policy that acts by the ODE of the behaviour flow, guided by the lowest target critic.

    With weight 0 it is the behaviour flow's own policy, bit for bit.
    """

    def velocity(state: AgentState, observations: Array) -> VelocityFn:
        plain = base.flow_velocity(flow, state.params["behavior"], observations)
        value_fn = partial(lowest_value, critic, state, observations)

        def guided(x: Array, t: Array) -> Array:
            velocity = plain(x, t)
            clean = jnp.clip(x + (1 - t) * velocity, -1, 1)
            return velocity + weight * actor_critic.action_gradient(value_fn, clean)

        return guided if weight else plain

    return base.FlowPolicy(velocity, config.flow_steps)


def make_implicit_agent(
    config: ConfigDict,
    flow: VectorField,
    critic: CriticEnsemble,
    actor_loss: LossFn,
    policy: PolicyFn,
) -> base.Agent:
    """Agent of one flow beside implicit Q-learning; the lowest target critic picks best of n."""
    learning = values.make_value_learning(config, critic, pool=partial(jnp.min, axis=0))
    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=partial(actor_critic.init_flow_and_value, flow, learning.init),
        actor_loss=actor_loss,
        policy=policy,
        value_learning=learning,
        choose=partial(choose_lowest, config, critic),
    )


def choose_lowest(config: ConfigDict, critic: CriticEnsemble, policy: PolicyFn) -> PolicyFn:
    """Best of n actions by the lowest target critic."""
    return actor_critic.best_of_n(config, critic, policy, rank=jnp.min, by_target=True)


def draw_points(config: ConfigDict, actions: Array, key: Key) -> tuple[Array, Array, Array]:
    """Points [B, D] of straight paths to the actions, their times [B, 1], and velocities [B, D].

    The times lie on the grid of the ODE, with both of its ends.
    """
    noise_key, time_key = jax.random.split(key)
    times = jax.random.randint(time_key, (len(actions), 1), 0, config.flow_steps + 1)
    times = times / config.flow_steps
    points, velocities = base.straight_path(actions, times, noise_key)
    return points, times, velocities


def lowest_value(
    critic: CriticEnsemble, state: AgentState, observations: Array, actions: Array
) -> Array:
    """The lowest target critic's value [...] of actions [..., D]."""
    params = state.target_params["critic"]
    return jnp.min(critic_values(critic, params, observations, actions), axis=0)
