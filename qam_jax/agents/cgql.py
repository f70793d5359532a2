"""Classifier-guided Q-learning (CGQL, a baseline of QAM, arXiv 2601.14234).

A flow is cloned from the data and never trained on the critic. While it samples, its velocity is
turned along the action gradient of the critic (classifier guidance, arXiv 2105.05233). Two
variants also learn a critic of noisy actions, `Q(s, x_t, t)`, and are guided by it. CGQL-M learns
it by squared errors, CGQL-L by a linex loss, whose optimum is `log E exp(inv_temp Q) / inv_temp`.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.networks import TimedCriticEnsemble, VectorField, critic_values, make_init
from qam_jax.types import Array, Batch, Key, Params, VelocityFn

DISPLAY_NAME = "CGQL"
CRITIC = TimedCriticEnsemble
RANGES = {
    "inv_temp": base.AT_LEAST_0,
    "guidance_coef": base.AT_LEAST_0,
    "noisy_coef": base.AT_LEAST_0,
}

_NOISY_LOSSES = ("none", "mse", "linex")
_LINEX_LIMIT = 5.0  # beyond this error the linex loss is a line


def get_config() -> ConfigDict:
    """CGQL with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="cgql",
        clip_grad_norm=0.0,
        inv_temp=10.0,  # inverse temperature of the guidance; 0 is none
        guidance_coef=0.1,  # size of the guidance; 0 is behaviour cloning
        noisy_loss="none",  # of the critic at noisy actions: "none", "mse" or "linex"
        noisy_coef=0.0,  # weight of the loss at noisy actions
    )


def get_mse_config() -> ConfigDict:
    """CGQL-M with the paper's settings."""
    own = {"agent_name": "cgql_m", "noisy_loss": "mse", "noisy_coef": 0.1}
    return ConfigDict({**get_config(), **own})


def get_linex_config() -> ConfigDict:
    """CGQL-L with the paper's settings."""
    own = {"agent_name": "cgql_l", "noisy_loss": "linex", "noisy_coef": 0.001}
    return ConfigDict({**get_config(), **own})


VARIANTS = {"cgql_m": ("CGQL-M", get_mse_config), "cgql_l": ("CGQL-L", get_linex_config)}


def linex_loss(values: Array, targets: Array, inv_temp: float) -> Array:
    """`exp(delta) + inv_temp Q` with `delta = inv_temp (target - Q)`; `delta` itself above 5."""
    delta = inv_temp * (targets - values)
    loss = jnp.exp(jnp.minimum(delta, _LINEX_LIMIT)) + inv_temp * values
    return jnp.where(delta > _LINEX_LIMIT, delta, loss)


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the guided ODE of the behaviour flow's moving average.

    Raises:
      ValueError: if `noisy_loss` is unknown.
    """
    if config.noisy_loss not in _NOISY_LOSSES:
        raise ValueError(
            f"config field 'noisy_loss' must be one of {', '.join(_NOISY_LOSSES)}, "
            f"got {config.noisy_loss!r}."
        )
    flow = base.make_flow(config)
    critic = base.make_critic(config, CRITIC)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_key, noisy_key = jax.random.split(key)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        if config.noisy_loss == "none":
            return bc_loss, {"bc_loss": bc_loss}
        critics = params["critic"], state.target_params["critic"]
        noisy_loss = _noisy_critic_loss(config, critic, *critics, batch, actions, noisy_key)
        metrics = {"bc_loss": bc_loss, "noisy_critic_loss": noisy_loss}
        return bc_loss + config.noisy_coef * noisy_loss, metrics

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(behavior=flow),
        actor_loss=actor_loss,
        policy=_make_guided_policy(config, flow, critic),
        target_names=("critic", "behavior"),
    )


def _make_guided_policy(
    config: ConfigDict, flow: VectorField, critic: TimedCriticEnsemble
) -> base.FlowPolicy:
    def acting_velocity(state: AgentState, observations: Array) -> VelocityFn:
        behavior = base.flow_velocity(flow, state.target_params["behavior"], observations)

        def value(actions: Array, times: Array) -> Array:
            own = None if config.noisy_loss == "none" else times
            params = state.params["critic"]
            return jnp.mean(critic_values(critic, params, observations, actions, own), axis=0)

        def velocity(x: Array, t: Array) -> Array:
            gradient = actor_critic.action_gradient(lambda actions: value(actions, t), x)
            guidance = ((1 - t) * config.inv_temp * gradient + x) * config.guidance_coef
            return behavior(x, t) + jnp.where(t > 0, guidance / jnp.where(t > 0, t, 1), 0)

        return velocity if config.inv_temp > 0 else behavior

    return base.FlowPolicy(acting_velocity, config.flow_steps)


def _noisy_critic_loss(
    config: ConfigDict,
    critic: TimedCriticEnsemble,
    params: Params,
    target_params: Params,
    batch: Batch,
    actions: Array,
    key: Key,
) -> Array:
    """Regression of each critic at noisy actions on its own target at the clean actions."""
    noise_key, time_key = jax.random.split(key)
    times = jax.random.uniform(time_key, (len(actions), 1))
    points, _ = base.straight_path(actions, times, noise_key)
    values = critic_values(critic, params, batch.observations, points, times)
    targets = critic_values(critic, target_params, batch.observations, actions)
    if config.noisy_loss == "mse":
        losses = jnp.square(values - targets)
    else:
        losses = linex_loss(values, targets, config.inv_temp)
    return jnp.mean(batch.weights * losses)
