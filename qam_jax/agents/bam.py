"""Basic adjoint matching (BAM, a baseline of QAM, arXiv 2601.14234).

Paths of QAM's memoryless SDE, differentiated step by step: the fine-tuned flow climbs the critic at
the ends of its paths, and pays for leaving the base flow.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, qam, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.critic import pessimistic_value
from qam_jax.flow import deviation_costs, sample_memoryless_sde, velocities_along
from qam_jax.networks import critic_values, make_init
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "BAM"
RANGES = {"inv_temp": base.AT_LEAST_0}


def get_config() -> ConfigDict:
    """BAM with the paper's settings."""
    return values.critic_config(
        agent_name="bam",
        inv_temp=10.0,  # inverse temperature; with 0 the behaviour flow acts
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under the fine-tuned flow, as QAM does."""
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    acting = "flow" if config.inv_temp > 0 else "behavior"

    def path_loss(flow_params: Params, state: AgentState, observations: Array, key: Key) -> Loss:
        """`-tau (mean_k Q - rho std_k Q)(s, x_T) + sum_{i<T-1} 2 ||f - f_base||^2 / sigma_i^2`."""
        velocity = base.flow_velocity(flow, flow_params, observations)
        base_velocity = base.flow_velocity(flow, state.target_params["behavior"], observations)
        noise = qam.path_noise(config, state, observations, key)
        states = sample_memoryless_sde(velocity, base_velocity, *noise)
        q_values = critic_values(critic, state.params["critic"], observations, states[-1])
        value = jnp.mean(pessimistic_value(q_values, config.rho))
        costs = deviation_costs(
            velocities_along(velocity, states[:-1]), velocities_along(base_velocity, states[:-1])
        )
        deviation = jnp.mean(jnp.sum(costs[:-1], axis=0))
        loss = -config.inv_temp * value + deviation
        return loss, {"path_loss": loss, "path_q": value, "path_deviation": deviation}

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_key, path_key = jax.random.split(key)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        loss, metrics = path_loss(params["flow"], state, batch.observations, path_key)
        return bc_loss + loss, {"bc_loss": bc_loss, **metrics}

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(behavior=flow, flow=flow),
        actor_loss=actor_loss,
        policy=actor_critic.make_flow_policy(config, flow, acting),
        target_names=("critic", "behavior"),
    )
