"""Basic adjoint matching (BAM, a baseline of QAM, arXiv 2601.14234).

The same memoryless SDE as QAM's, but simulated differentiably: the fine-tuned flow ascends the
critic at the end of its paths, backwards through every step, and pays for leaving the base flow.
"""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, adjoint_parts, base
from qam_jax.critic import pessimistic_value


def get_config() -> ConfigDict:
    """BAM with the paper's settings."""
    return ConfigDict(
        {
            "agent_name": "bam",
            **base.base_config(),
            **base.critic_config(),
            "inv_temp": 10.0,  # inverse temperature
        }
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under the fine-tuned flow."""
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    velocity_fn = partial(base.flow_velocity, flow)

    def init_actor(key, observation, action):
        return adjoint_parts.init_flows(flow, *jax.random.split(key), observation, action)

    def path_loss(flow_params, state, observations, key):
        """`-tau (mean_k Q - rho std_k Q)(s, x_T) + sum_{i<T-1} 2 ||f - f_base||^2 / sigma_i^2`."""
        flow_of = partial(velocity_fn, flow_params)
        base_of = partial(velocity_fn, state.target_params["behavior"])
        shape = (len(observations), state.action_dim)
        states = adjoint_parts.simulate_paths(
            config, flow_of(observations), base_of(observations), shape, key
        )
        q_values = critic.apply({"params": state.params["critic"]}, observations, states[-1])
        value = jnp.mean(pessimistic_value(q_values, config.rho))
        costs = adjoint_parts.deviation_costs(
            adjoint_parts.path_velocities(flow_of, observations, states[:-1]),
            adjoint_parts.path_velocities(base_of, observations, states[:-1]),
        )
        deviation = jnp.mean(jnp.sum(costs[:-1], axis=0))
        loss = -config.inv_temp * value + deviation
        return loss, {"path_loss": loss, "path_q": value, "path_deviation": deviation}

    def actor_loss(state, params, batch, actions, key):
        bc_key, path_key = jax.random.split(key)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        loss, metrics = path_loss(params["flow"], state, batch.observations, path_key)
        return bc_loss + loss, {"bc_loss": bc_loss, **metrics}

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=init_actor,
        actor_loss=actor_loss,
        policy=adjoint_parts.make_policy(config, flow),
        target_names=("critic", "behavior"),
    )
