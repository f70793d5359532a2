"""Diffusion steering via reinforcement learning (DSRL; arXiv 2506.15799), on a flow.

A flow is cloned from the data and stays as it is; a latent actor chooses the noise that its ODE
starts from. It is trained as in soft actor-critic on a latent critic `Q_z(s, z)`, which is
regressed on the value of the action that the flow makes of `z` ("noise aliasing").
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.networks import TanhGaussian, critic_values, make_init, mean_critic_value
from qam_jax.types import Array, Batch, Key, Params, VelocityFn

DISPLAY_NAME = "DSRL"
CHANGES = [base.TANH_GAUSSIAN_CHANGE]
RANGES = {"noise_scale": base.AT_LEAST_0}


def get_config() -> ConfigDict:
    """DSRL with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="dsrl",
        clip_grad_norm=0.0,
        noise_scale=1.0,  # the latent actor's noise lies in (-noise_scale, noise_scale)
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the target flow's ODE from the latent actor's noise."""
    flow = base.make_flow(config)
    critic, latent_critic = base.make_critic(config), base.make_critic(config)
    latent_actor = TanhGaussian(**base.network_fields(config, "actor"))

    def velocity(state: AgentState, observations: Array) -> VelocityFn:
        return base.flow_velocity(flow, state.target_params["behavior"], observations)

    def draw_latents(
        state: AgentState, params: Params, observations: Array, key: Key
    ) -> tuple[Array, Array]:
        """Latents [..., D], and the log-density of the actor's sample before it is scaled."""
        noise = base.draw_noise(state, observations, key)
        sample = latent_actor.apply({"params": params["latent_actor"]}, observations, noise)
        return config.noise_scale * sample.value, sample.log_prob

    def acting_latents(state: AgentState, observations: Array, key: Key) -> Array:
        return draw_latents(state, state.params, observations, key)[0]

    def latent_critic_loss(
        state: AgentState, params: Params, observations: Array, key: Key
    ) -> Array:
        """Each latent critic's regression on its own critic."""
        latents = base.draw_noise(state, observations, key)
        actions = base.flow_actions(config, velocity(state, observations), latents)
        targets = critic_values(critic, state.params["critic"], observations, actions)
        values = critic_values(latent_critic, params["latent_critic"], observations, latents)
        return jnp.mean(jnp.square(values - targets))

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_key, critic_key, actor_key = jax.random.split(key, 3)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        critic_loss = latent_critic_loss(state, params, batch.observations, critic_key)
        latents, log_prob = draw_latents(state, params, batch.observations, actor_key)
        frozen = state.params["latent_critic"]
        values = mean_critic_value(latent_critic, frozen, batch.observations, latents)
        loss, metrics = actor_critic.soft_actor_loss(
            values, log_prob, params["log_latent_temp"], state.action_dim, "latent"
        )
        metrics |= {"bc_loss": bc_loss, "latent_critic_loss": critic_loss}
        return bc_loss + critic_loss + loss, metrics

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(
            behavior=flow,
            latent_critic=latent_critic,
            latent_actor=latent_actor,
            log_latent_temp=0.0,
        ),
        actor_loss=actor_loss,
        policy=base.FlowPolicy(velocity, config.flow_steps, acting_latents),
        target_names=("critic", "behavior"),
    )
