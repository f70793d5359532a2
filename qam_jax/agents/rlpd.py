"""Reinforcement learning with prior data (RLPD; Ball et al., arXiv 2302.02948).

Soft actor-critic with an ensemble of critics. It is meant to learn online, from batches that are
half from the dataset and half from the replay buffer. `bc_alpha` adds the likelihood of their
actions.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.critic import pessimistic_value
from qam_jax.networks import TanhGaussian, TanhGaussianSample, critic_values, make_init
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "RLPD"
CHANGES = [base.TANH_GAUSSIAN_CHANGE]
RANGES = {"bc_alpha": base.AT_LEAST_0}


def get_config() -> ConfigDict:
    """RLPD with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="rlpd",
        clip_grad_norm=0.0,
        bc_alpha=0.0,  # weight of the log-likelihood of the batch's actions
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by samples of its tanh-Gaussian actor."""
    critic = base.make_critic(config)
    actor = TanhGaussian(**base.network_fields(config, "actor"))

    def draw_actions(
        state: AgentState, params: Params, observations: Array, key: Key
    ) -> TanhGaussianSample:
        noise = base.draw_noise(state, observations, key)
        return actor.apply({"params": params["actor"]}, observations, noise)

    def policy(state: AgentState, observations: Array, key: Key) -> Array:
        return draw_actions(state, state.params, observations, key).value

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        observations = batch.observations
        drawn, log_prob = draw_actions(state, params, observations, key)
        q_values = critic_values(critic, state.params["critic"], observations, drawn)
        values = pessimistic_value(q_values, config.rho)
        loss, metrics = actor_critic.soft_actor_loss(
            values, log_prob, params["log_actor_temp"], state.action_dim, "actor"
        )
        variables = {"params": params["actor"]}
        likelihoods = actor.apply(variables, observations, actions, method=actor.log_prob)
        bc_loss = -jnp.mean(batch.weights * likelihoods)
        return loss + config.bc_alpha * bc_loss, {**metrics, "bc_loss": bc_loss}

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(actor=actor, log_actor_temp=0.0),
        actor_loss=actor_loss,
        policy=policy,
    )
