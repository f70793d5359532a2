"""Behaviour cloning with a flow policy: the behaviour flow of the other algorithms, alone.

Flow matching (Lipman et al., arXiv 2210.02747) on action chunks (Q-chunking, arXiv 2507.07969).
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base
from qam_jax.agents.base import AgentState, Loss
from qam_jax.networks import make_init
from qam_jax.types import Array, Batch, Key, Metrics, Params

DISPLAY_NAME = "BC"
ACTS_BY_BEHAVIOR = True
NO_VALUE_LEARNING = "it has no critic"


def get_config() -> ConfigDict:
    """Behaviour cloning with the paper's network and optimiser."""
    return base.base_config(agent_name="bc")


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under the behaviour flow."""
    flow = base.make_flow(config)
    policy = actor_critic.make_flow_policy(config, flow)
    optimizer = base.make_optimizer(config)

    def init(key: Key, example_observation: Array, example_action: Array) -> AgentState:
        key, flow_key = jax.random.split(key)
        action_shape = base.chunk_shape(config, example_action)
        action = jnp.zeros(action_shape).reshape(-1)
        params = make_init(behavior=flow)(flow_key, example_observation, action)
        return base.init_state(optimizer, params, (), key, action_shape)

    def update(state: AgentState, batch: Batch) -> tuple[AgentState, Metrics]:
        key, noise_key = jax.random.split(state.key)
        actions = base.flat_actions(config, batch)

        def loss_fn(params: Params) -> Loss:
            loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, noise_key)
            return loss, {"bc_loss": loss}

        return base.apply_gradients(state, optimizer, loss_fn, key)

    return base.Agent(init, update, **base.acting_by(policy))
