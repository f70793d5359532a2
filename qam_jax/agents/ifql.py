"""IFQL: implicit Q-learning with a flow policy (a baseline of FQL, arXiv 2502.02538).

IDQL (arXiv 2304.10573) with a flow for the diffusion policy. A value network learns an upper
expectile of the critics, and the critics bootstrap from it. The policy takes the best of many
actions of a flow that is cloned from the data.
"""

from functools import partial

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "IFQL"
RANGES = {"kappa": base.SHARE}
LATER_FIELDS = {"value_learning": "iql"}


def get_config() -> ConfigDict:
    """IFQL with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="ifql",
        value_learning="iql",
        clip_grad_norm=0.0,
        best_of_n=32,  # actions drawn per decision; the lowest critic keeps one
        kappa=0.9,  # expectile of the value; 0.5 is the mean
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; of the flow's actions it takes the one whose lowest critic is highest."""
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    learning = values.make_value_learning(config, critic, weigh_values=False)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, key)
        return bc_loss, {"bc_loss": bc_loss}

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=partial(actor_critic.init_flow_and_value, flow, learning.init),
        actor_loss=actor_loss,
        policy=actor_critic.make_flow_policy(config, flow),
        value_learning=learning,
        choose=partial(actor_critic.best_of_n, config, critic, rank=jnp.min),
    )
