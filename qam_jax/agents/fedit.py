"""FEdit: edits on a cloned flow (a baseline of QAM, arXiv 2601.14234, after EXPO, 2507.07986).

A flow is cloned from the data and never trained on the critic. A tanh-Gaussian policy, trained
as in soft actor-critic, adds a small edit to the flow's action.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.networks import TanhGaussian, init_network, make_init, mean_critic_value
from qam_jax.types import Array, Batch, Key, Params

DISPLAY_NAME = "FEdit"
CHANGES = [base.TANH_GAUSSIAN_CHANGE]
RANGES = {"edit_scale": (0.0, 2.0)}


def get_config() -> ConfigDict:
    """FEdit with the paper's settings; the baseline does not clip gradients."""
    return values.critic_config(
        agent_name="fedit",
        clip_grad_norm=0.0,
        edit_scale=0.2,  # size of an edit, as a share of the action range
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under the behaviour flow, then the edit."""
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    editor = TanhGaussian(**base.network_fields(config, "actor"))
    behavior_policy = actor_critic.make_flow_policy(config, flow)

    def edited_actions(
        state: AgentState, editor_params: Params, observations: Array, key: Key
    ) -> tuple[Array, Array]:
        """Edited actions [..., D] of the behaviour flow, with the log-density of the edit."""
        flow_key, edit_key = jax.random.split(key)
        actions = behavior_policy(state, observations, flow_key)
        edit_noise = base.draw_noise(state, observations, edit_key)
        return actor_critic.edit_actions(
            config.edit_scale, editor, editor_params, observations, actions, edit_noise
        )

    def policy(state: AgentState, observations: Array, key: Key) -> Array:
        return edited_actions(state, state.params["editor"], observations, key)[0]

    def init_editor(key: Key, observation: Array, action: Array) -> Params:
        return init_network(editor, key, jnp.concatenate([observation, action]), action)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        bc_key, edit_key = jax.random.split(key)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        observations = batch.observations
        drawn, log_prob = edited_actions(state, params["editor"], observations, edit_key)
        values = mean_critic_value(critic, state.params["critic"], observations, drawn)
        loss, metrics = actor_critic.soft_actor_loss(
            values, log_prob, params["log_edit_temp"], state.action_dim, "edit"
        )
        return bc_loss + loss, {"bc_loss": bc_loss, **metrics}

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(behavior=flow, editor=init_editor, log_edit_temp=0.0),
        actor_loss=actor_loss,
        policy=policy,
    )
