"""Flow-anchored noise-conditioned Q-learning (FAN; arXiv 2605.01663).

A one-step actor `mu(s, z)` is anchored to a cloned flow: on the straight path from the noise `z` to
the actor's action, the velocities of the flow and of the path should agree. No ODE is solved. The
critics `Q_k(s, a, n)` are conditioned on noise; upper values `Z_k(s, a)` are expectiles over it.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss, ParamsLoss
from qam_jax.critic import expectile_loss, td_loss
from qam_jax.networks import (
    CriticEnsemble,
    InitFn,
    OneStepActor,
    critic_values,
    init_network,
    make_init,
)
from qam_jax.types import Array, Batch, Key, Params, VelocityFn

DISPLAY_NAME = "FAN"
CRITIC = None  # its critics take noise beside the action
NO_VALUE_LEARNING = (
    "its critics are conditioned on noise, which only the regression of its own teaches them"
)
RANGES = {
    "actor_anchor": base.AT_LEAST_0,
    "critic_anchor": base.AT_LEAST_0,
    "kappa": base.SHARE,
}


def get_config() -> ConfigDict:
    """FAN with the defaults of its code: single actions, two critics, no clipping of gradients.

    The code sets both anchors for each domain. With chunks of actions the critics' anchor is
    divided by their length, since it is a sum over the action's dimensions.
    """
    config = base.critic_config(
        agent_name="fan",
        clip_grad_norm=0.0,
        discount=0.995,
        horizon_length=1,
        num_qs=2,
        rho=0.0,  # pessimism of the upper values in the backup, in standard deviations
        actor_anchor=10.0,  # weight of the actor's distance from the flow
        critic_anchor=10.0,  # weight of the next action's distance, in the backup
        kappa=0.9,  # expectile of the upper values; 0.5 is the mean over noise
    )
    del config["best_of_n"]  # FAN draws a single action
    return config


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts with the one-step actor."""
    flow, critic, upper = base.make_flow(config), base.make_critic(config), base.make_critic(config)
    actor = OneStepActor(**base.network_fields(config, "actor"))

    def draw(params: Params, observations: Array, noise: Array) -> Array:
        return actor.apply({"params": params["actor"]}, observations, noise)

    def policy(state: AgentState, observations: Array, key: Key) -> Array:
        noise = base.draw_noise(state, observations, key)
        return jnp.clip(draw(state.params, observations, noise), -1, 1)

    def value_loss(state: AgentState, batch: Batch, _: Array | None, key: Key) -> ParamsLoss:
        noise_key, time_key, upper_key = jax.random.split(key, 3)
        actions, next_observations = base.flat_actions(config, batch), batch.next_observations
        noise = base.draw_noise(state, next_observations, noise_key)
        next_actions = jnp.clip(draw(state.params, next_observations, noise), -1, 1)
        velocity = base.flow_velocity(flow, state.params["behavior"], next_observations)
        errors = anchor_errors(velocity, noise, next_actions, time_key)
        penalty = config.critic_anchor / state.action_shape[0] * jnp.sum(errors**2, axis=-1)
        next_values = critic_values(upper, state.params["upper"], next_observations, next_actions)
        targets = values.bootstrap(config, batch, next_values - penalty)
        observations, fresh = batch.observations, base.draw_noise(state, actions, upper_key)
        target = _noisy_values(critic, state.target_params["critic"], observations, actions, fresh)

        def loss(params: Params) -> Loss:
            q_values = _noisy_values(critic, params["critic"], observations, actions, noise)
            uppers = critic_values(upper, params["upper"], observations, actions)
            critic_loss = td_loss(q_values, targets, batch.weights)
            losses = batch.weights * expectile_loss(target.mean(axis=0) - uppers, config.kappa)
            metrics = values.critic_metrics(critic_loss, q_values)
            metrics |= {"upper_loss": jnp.mean(losses), "upper_mean": jnp.mean(uppers)}
            return critic_loss + metrics["upper_loss"], metrics

        return loss

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_key, noise_key, time_key, value_key = jax.random.split(key, 4)
        observations, frozen = batch.observations, state.params
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        noise, fresh = (base.draw_noise(state, observations, k) for k in (noise_key, value_key))
        velocity = base.flow_velocity(flow, frozen["behavior"], observations)
        drawn = draw(params, observations, noise)
        anchor = jnp.mean(jnp.square(anchor_errors(velocity, noise, drawn, time_key)))
        clipped = jnp.clip(drawn, -1, 1)
        q_value = jnp.mean(_noisy_values(critic, frozen["critic"], observations, clipped, fresh))
        upper_value = jnp.mean(critic_values(upper, frozen["upper"], observations, clipped))
        loss = bc_loss + config.actor_anchor * anchor - q_value - upper_value
        metrics = {"bc_loss": bc_loss, "anchor_loss": anchor, "actor_q": q_value}
        return loss, metrics | {"actor_upper": upper_value}

    init_actor = make_init(behavior=flow, actor=actor, critic=_noisy_init(critic), upper=upper)
    return actor_critic.make_actor_critic(
        config, critic, init_actor=init_actor, actor_loss=actor_loss, policy=policy,
        value_learning=values.ValueLearning(value_loss),
    )  # fmt: skip


def anchor_errors(velocity_fn: VelocityFn, noise: Array, actions: Array, key: Key) -> Array:
    """`a - z - f(s, (1 - t) z + t a, t)` [B, D] at one random time per sample.

    Args:
      velocity_fn: the cloned flow, `(x [B, D], t [B, 1]) -> [B, D]`.
      noise: [B, D], `z`, the actor's input.
      actions: [B, D], `a`; the gradient reaches them through the flow's argument too.
      key: source of the times.
    """
    times = jax.random.uniform(key, (len(actions), 1))
    return actions - noise - velocity_fn((1 - times) * noise + times * actions, times)


def _noisy_init(critic: CriticEnsemble) -> InitFn:
    """Initial parameters of a critic whose input is an action with noise of the same size."""
    return lambda key, observation, action: init_network(
        critic, key, observation, jnp.concatenate([action, action])
    )


def _noisy_values(
    critic: CriticEnsemble, params: Params, observations: Array, actions: Array, noise: Array
) -> Array:
    """`Q_k(s, a, n)` [K, B]."""
    inputs = jnp.concatenate([actions, noise], axis=-1)
    return critic_values(critic, params, observations, inputs)
