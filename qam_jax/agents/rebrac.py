"""ReBRAC: TD3 with behaviour cloning, tuned anew (Tarasov et al., arXiv 2305.09836).

A deterministic actor climbs the critic's value, scaled to about 1, and stays near the data's
actions; noise smooths the actions that the critics are backed up from.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.critic import pessimistic_value
from qam_jax.networks import TanhActor, critic_values
from qam_jax.types import Array, Batch, Key, Metrics, Params

DISPLAY_NAME = "ReBRAC"
RANGES = {
    "alpha_actor": base.AT_LEAST_0,
    "actor_noise": base.AT_LEAST_0,
    "actor_interval": base.AT_LEAST_1,
    "target_interval": base.AT_LEAST_1,
}
CHANGES = [
    base.Change("0.2.0", "the value has another scale, cloning other windows", losses_only=True)
]
LATER_FIELDS = {"target_interval": 1}

_NOISE_LIMIT = 0.5
_MIN_SCALE = 1e-6


def get_config() -> ConfigDict:
    """ReBRAC with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="rebrac",
        clip_grad_norm=0.0,
        alpha_actor=0.01,  # weight of cloning
        actor_noise=0.0,  # standard deviation of the noise on actions
        actor_interval=1,  # updates for each step of the actor; ReBRAC's paper: 2
        target_interval=2,  # updates for each step of the moving averages; 1: every update
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by its actor, with noise."""
    critic = base.make_critic(config)
    actor = TanhActor(**base.network_fields(config, "actor"))

    def noisy_actions(params: Params, state: AgentState, observations: Array, key: Key) -> Array:
        actions = actor.apply({"params": params}, observations, state.action_dim)
        noise = config.actor_noise * base.draw_noise(state, observations, key)
        return jnp.clip(actions + jnp.clip(noise, -_NOISE_LIMIT, _NOISE_LIMIT), -1, 1)

    def policy(state: AgentState, observations: Array, key: Key) -> Array:
        return noisy_actions(state.params["actor"], state, observations, key)

    def target_policy(state: AgentState, observations: Array, key: Key) -> Array:
        return noisy_actions(state.target_params["actor"], state, observations, key)

    def init_actor(key: Key, observation: Array, action: Array) -> Params:
        return {"actor": actor.init(key, observation, action.size)["params"]}

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        del key  # there is no randomness
        due = state.step % config.actor_interval == 0  # else no gradient
        actor_params = jax.tree.map(
            lambda leaf: jnp.where(due, leaf, jax.lax.stop_gradient(leaf)), params["actor"]
        )
        drawn = actor.apply({"params": actor_params}, batch.observations, state.action_dim)
        q_values = critic_values(critic, state.params["critic"], batch.observations, drawn)
        values = pessimistic_value(q_values, config.rho)
        value, scale = jnp.mean(values), jax.lax.stop_gradient(jnp.mean(jnp.abs(values)))
        bc_loss = jnp.mean(batch.weights * jnp.sum(jnp.square(drawn - actions), axis=-1))
        loss = -value / jnp.maximum(scale, _MIN_SCALE) + config.alpha_actor * bc_loss
        return loss, {"actor_loss": loss, "bc_loss": bc_loss, "actor_q": value}

    agent = actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=init_actor,
        actor_loss=actor_loss,
        policy=policy,
        target_names=("critic", "actor"),
        target_policy=target_policy,
        optimizer=_make_optimizer(config),
    )

    def update(state: AgentState, batch: Batch) -> tuple[AgentState, Metrics]:
        moved, metrics = agent.update(state, batch)
        due = moved.step % config.target_interval == 0  # else the moving averages stand still
        targets = jax.tree.map(partial(jnp.where, due), moved.target_params, state.target_params)
        return dataclasses.replace(moved, target_params=targets), metrics

    return agent._replace(update=update)


def _make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam; the actor's moments and step count stand still between the actor's steps."""
    adam = optax.adam(config.lr)
    delayed = optax.conditionally_mask(adam, lambda step: step % config.actor_interval == 0)

    def labels(params: Params) -> dict[str, str]:
        return {name: "delayed" if name == "actor" else "always" for name in params}

    return base.make_optimizer(
        config, optax.partition({"always": adam, "delayed": delayed}, labels)
    )
