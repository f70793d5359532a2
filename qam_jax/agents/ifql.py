"""IFQL: implicit Q-learning with a flow policy (a baseline of FQL, arXiv 2502.02538).

IDQL (arXiv 2304.10573) with a flow for the diffusion policy. A value network learns an upper
expectile of the critics, and the critics bootstrap from it. The policy takes the best of many
actions of a flow that is cloned from the data.
"""

from functools import partial

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base
from qam_jax.agents.actor_critic import Loss
from qam_jax.agents.base import AgentState
from qam_jax.critic import pessimistic_value
from qam_jax.networks import StateValue
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "IFQL"
RANGES = {"kappa": base.SHARE}


def get_config() -> ConfigDict:
    """IFQL with the paper's settings; the baseline does not clip gradients."""
    return ConfigDict(
        {
            "agent_name": "ifql",
            **base.base_config(),
            **base.critic_config(),
            "clip_grad_norm": 0.0,
            "best_of_n": 32,  # actions drawn per decision; the lowest critic keeps one
            "kappa": 0.9,  # expectile of the value; 0.5 is the mean
        }
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; of the flow's actions it takes the one whose lowest critic is highest."""
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    value = StateValue(**base.network_fields(config, "critic"))

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, key)
        return bc_loss, {"bc_loss": bc_loss}

    pool = partial(pessimistic_value, rho=config.rho)
    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=partial(actor_critic.init_flow_and_value, flow, value),
        actor_loss=actor_loss,
        policy=actor_critic.make_flow_policy(config, flow),
        value_learning=actor_critic.implicit_learning(
            config, critic, value, pool, weigh_values=False
        ),
        rank=jnp.min,
    )
