"""EDP for flows: the flow climbs the critic at the clean action that one step predicts.

The flow version (arXiv 2606.11087) of efficient diffusion policies (arXiv 2305.20081). The clean
action is `clip(x_t + (1 - t) f(s, x_t, t))`, so that no gradient goes through an ODE.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, qgf
from qam_jax.agents.base import AgentState, Loss
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "EDP"
ACTS_BY_BEHAVIOR = True
RANGES = {"bc_weight": base.AT_LEAST_0, "kappa": base.SHARE}
LATER_FIELDS = qgf.LATER_FIELDS


def get_config() -> ConfigDict:
    """EDP with the settings of the runs of its code, which have larger networks and batches."""
    return qgf.implicit_config(
        agent_name="edp",
        kappa=0.9,  # expectile of the value; 0.5 is the mean
        bc_weight=100.0,  # weight of cloning against the value
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE of its flow."""
    flow, critic = base.make_flow(config), base.make_critic(config)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        points, times, velocities = qgf.draw_points(config, actions, key)
        velocity = base.flow_velocity(flow, params["behavior"], batch.observations)(points, times)
        bc_loss = jnp.mean(jnp.square(velocity - velocities))
        clean = jnp.clip(points + (1 - times) * velocity, -1, 1)
        value = jnp.mean(qgf.lowest_value(critic, state, batch.observations, clean))
        return config.bc_weight * bc_loss - value, {"bc_loss": bc_loss, "actor_q": value}

    policy = actor_critic.make_flow_policy(config, flow)
    return qgf.make_implicit_agent(config, flow, critic, actor_loss, policy)
