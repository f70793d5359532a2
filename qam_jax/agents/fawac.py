"""FAWAC: advantage-weighted flow matching (a baseline of FQL, arXiv 2502.02538).

AWAC (arXiv 2006.09359) with a flow policy: a value network `V` is regressed on the critics, and
the flow clones the data's actions with weights that grow with their advantage.
"""

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.critic import td_loss
from qam_jax.networks import StateValue, critic_values, make_init, mean_critic_value
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "FAWAC"
ACTS_BY_BEHAVIOR = True
RANGES = {"inv_temp": base.AT_LEAST_0}
CHANGES = [
    base.Change(
        "0.2.0", "V is regressed on every critic, in windows within an episode", losses_only=True
    )
]

_MAX_WEIGHT = 100.0


def get_config() -> ConfigDict:
    """FAWAC with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="fawac",
        clip_grad_norm=0.0,
        inv_temp=0.8,  # inverse temperature of the advantage; 0 is behaviour cloning
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under its flow."""
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    value = StateValue(**base.network_fields(config, "critic"))

    def advantage_weights(params: Params, observations: Array, actions: Array) -> Array:
        """`min(exp(inv_temp (mean_k Q - V)), 100)` [B]."""
        q_values = mean_critic_value(critic, params["critic"], observations, actions)
        values = value.apply({"params": params["value"]}, observations)
        return jnp.minimum(jnp.exp(config.inv_temp * (q_values - values)), _MAX_WEIGHT)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        observations = batch.observations
        weights = advantage_weights(state.params, observations, actions)
        weighted = dataclasses.replace(batch, weights=batch.weights * weights)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], weighted, actions, key)
        metrics = {"bc_loss": bc_loss, "advantage_weight": jnp.mean(weights)}
        if config.value_learning == "iql":  # which regresses this value itself
            return bc_loss, metrics
        target_critic = state.target_params["critic"]
        q_values = critic_values(critic, target_critic, observations, actions)
        values = value.apply({"params": params["value"]}, observations)
        value_loss = td_loss(q_values, values, batch.weights)
        metrics |= {"value_loss": value_loss, "v_mean": jnp.mean(values)}
        return bc_loss + value_loss, metrics

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(behavior=flow, value=value),
        actor_loss=actor_loss,
        policy=actor_critic.make_flow_policy(config, flow),
    )
