"""FBRAC: flow behaviour-regularised actor-critic (a baseline of FQL, arXiv 2502.02538).

One flow is cloned from the data and, in the same loss, improved on the critic by backpropagation
through every step of its ODE.
"""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.networks import make_init, mean_critic_value
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "FBRAC"
ACTS_BY_BEHAVIOR = True
RANGES = {"alpha": base.AT_LEAST_0}


def get_config() -> ConfigDict:
    """FBRAC with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="fbrac",
        clip_grad_norm=0.0,
        alpha=0.1,  # weight of cloning against the value, above 0
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under its flow.

    Raises:
      ValueError: if `alpha` is 0.
    """
    if config.alpha == 0:
        raise ValueError("config field 'alpha' must be above 0 for 'fbrac', which divides by it.")
    flow = base.make_flow(config)
    critic = base.make_critic(config)

    policy = actor_critic.make_flow_policy(config, flow)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_key, noise_key = jax.random.split(key)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        drawn = policy(dataclasses.replace(state, params=params), batch.observations, noise_key)
        values = mean_critic_value(critic, state.params["critic"], batch.observations, drawn)
        value = jnp.mean(values)
        return bc_loss - value / config.alpha, {"bc_loss": bc_loss, "actor_q": value}

    return actor_critic.make_actor_critic(
        config, critic, init_actor=make_init(behavior=flow), actor_loss=actor_loss, policy=policy
    )
