"""Flow Q-learning (FQL; Park et al., arXiv 2502.02538).

A flow is cloned from the data. A one-step actor `mu(s, z)` is distilled from its ODE and, in the
same loss, improved on the critic; it acts, so that no gradient goes through the ODE.
"""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.networks import OneStepActor, make_init, mean_critic_value
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "FQL"
RANGES = {"alpha": base.AT_LEAST_0}


def get_config() -> ConfigDict:
    """FQL with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="fql",
        clip_grad_norm=0.0,
        alpha=30.0,  # weight of the distillation against the value
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts with the one-step actor."""
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    one_step = OneStepActor(**base.network_fields(config, "actor"))

    def policy(state: AgentState, observations: Array, key: Key) -> Array:
        noise = base.draw_noise(state, observations, key)
        actions = one_step.apply({"params": state.params["one_step"]}, observations, noise)
        return jnp.clip(actions, -1, 1)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_key, noise_key = jax.random.split(key)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        frozen, observations = state.params, batch.observations
        noise = base.draw_noise(state, observations, noise_key)
        velocity = base.flow_velocity(flow, frozen["behavior"], observations)
        flow_actions = base.flow_actions(config, velocity, noise)
        drawn = one_step.apply({"params": params["one_step"]}, observations, noise)
        value_fn = partial(mean_critic_value, critic, frozen["critic"], observations)
        loss, metrics = actor_critic.one_step_loss(config.alpha, drawn, flow_actions, value_fn)
        return bc_loss + loss, {"bc_loss": bc_loss, **metrics}

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(behavior=flow, one_step=one_step),
        actor_loss=actor_loss,
        policy=policy,
    )
