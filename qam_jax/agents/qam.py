"""Q-learning with Adjoint Matching (QAM; Li & Levine, arXiv 2601.14234).

A behaviour flow `f_beta` is cloned from the data, critics are learned by TD backups, and the
fine-tuned flow `f_theta` is regressed on the lean adjoint of the critic's action gradient, so
that its policy approaches `pi_beta * exp(inv_temp * Q)`. Two variants act with a further network:

- QAM-F (`fql_alpha` > 0): a one-step actor, distilled from `f_theta` and improved on the critic.
- QAM-E (`edit_scale` > 0): a tanh-Gaussian that edits the action of `f_theta`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax import adjoint
from qam_jax.agents import actor_critic, adjoint_parts, base
from qam_jax.types import Array, Params


def get_config() -> ConfigDict:
    """QAM with the paper's settings."""
    return ConfigDict(
        {
            "agent_name": "qam",
            **base.base_config(),
            **base.critic_config(),
            "inv_temp": 1.0,  # inverse temperature
            "residual": False,  # f_theta is the behaviour flow plus a learned residual
            "fql_alpha": 0.0,  # weight of the one-step actor's distillation; above 0: QAM-F
            "edit_scale": 0.0,  # size of an edit, as a share of the action range; above 0: QAM-E
        }
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent.

    Raises:
      ValueError: if both `fql_alpha` and `edit_scale` are set.
    """
    if config.fql_alpha > 0 and config.edit_scale > 0:
        raise ValueError(
            f"fql_alpha = {config.fql_alpha} and edit_scale = {config.edit_scale} exclude each "
            "other: QAM-F acts with a one-step actor, QAM-E edits the flow's action. Set one to 0."
        )
    flow = base.make_flow(config)
    critic = base.make_critic(config)
    one_step = actor_critic.make_one_step_actor(config)
    editor = actor_critic.make_tanh_gaussian(config)
    optimizer = base.make_optimizer(config)

    def velocity_fn(params: Params, behavior: Params, observations: Array):
        """`f_theta` over actions; `behavior` is the flow that a residual is added to."""
        velocity = base.flow_velocity(flow, params["flow"], observations)
        if not config.residual:
            return velocity
        behavior_velocity = base.flow_velocity(flow, behavior, observations)
        return lambda x, t: velocity(x, t) + behavior_velocity(x, t)

    def flow_actions(params, observations, noise):
        velocity = velocity_fn(params, params["behavior"], observations)
        return base.flow_actions(config, velocity, noise)

    def policy(state, observations, key):
        params = state.params
        noise_key, edit_key = jax.random.split(key)
        noise = actor_critic.draw_noise(state, observations, noise_key)
        if config.fql_alpha > 0:
            actions = one_step.apply({"params": params["one_step"]}, observations, noise)
            return jnp.clip(actions, -1, 1)
        actions = flow_actions(params, observations, noise)
        if config.edit_scale > 0:
            edit_noise = actor_critic.draw_noise(state, observations, edit_key)
            actions, _ = actor_critic.edit_actions(
                config.edit_scale, editor, params["editor"], observations, actions, edit_noise
            )
        return actions

    def init(key, example_observation, example_action):
        action_shape = base.chunk_shape(config, example_action)
        observation, action = example_observation, jnp.zeros(action_shape).reshape(-1)
        key, critic_key, behavior_key, flow_key, actor_key = jax.random.split(key, 5)
        params = {
            "critic": critic.init(critic_key, observation, action)["params"],
            **adjoint_parts.init_flows(flow, behavior_key, flow_key, observation, action),
        }
        if config.fql_alpha > 0:
            params["one_step"] = one_step.init(actor_key, observation, action)["params"]
        if config.edit_scale > 0:
            inputs = jnp.concatenate([observation, action])
            params["editor"] = editor.init(actor_key, inputs, action)["params"]
            params["log_edit_temp"] = jnp.zeros(())
        return base.init_state(optimizer, params, ("critic", "behavior"), key, action_shape)

    def adjoint_loss(state, params, observations, key):
        velocity = velocity_fn(params, state.target_params["behavior"], observations)
        matching = adjoint_parts.match_adjoints(
            config, flow, critic, state, velocity, observations, key, config.inv_temp
        )
        losses = adjoint.adjoint_matching_loss(
            matching.velocities, matching.base_velocities, matching.adjoints
        )
        return jnp.mean(losses), matching.metrics

    def actor_loss(state, params, observations, noise_key, edit_key):
        """Of the network that acts on top of `f_theta`: QAM-F's actor or QAM-E's edit."""
        frozen = state.params
        value_fn = partial(base.mean_value, critic, frozen["critic"], observations)
        noise = actor_critic.draw_noise(state, observations, noise_key)
        flow_action = flow_actions(frozen, observations, noise)
        if config.fql_alpha > 0:
            actions = one_step.apply({"params": params["one_step"]}, observations, noise)
            return actor_critic.one_step_loss(config.fql_alpha, actions, flow_action, value_fn)
        edit_noise = actor_critic.draw_noise(state, observations, edit_key)
        actions, log_prob = actor_critic.edit_actions(
            config.edit_scale, editor, params["editor"], observations, flow_action, edit_noise
        )
        values, log_temp = value_fn(actions), params["log_edit_temp"]
        return actor_critic.soft_actor_loss(values, log_prob, log_temp, state.action_dim, "edit")

    def update(state, batch):
        keys = jax.random.split(state.key, 6)
        key, next_key, bc_key, adjoint_key, noise_key, edit_key = keys
        observations, actions = batch.observations, base.flat_actions(config, batch)
        targets = actor_critic.policy_targets(config, critic, policy, state, batch, next_key)

        def loss_fn(params):
            loss, metrics = base.critic_loss(critic, params["critic"], batch, actions, targets)
            bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
            am_loss, norms = adjoint_loss(state, params, observations, adjoint_key)
            loss += bc_loss + am_loss
            metrics |= {"bc_loss": bc_loss, "adjoint_matching_loss": am_loss, **norms}
            if config.fql_alpha > 0 or config.edit_scale > 0:
                extra, more = actor_loss(state, params, observations, noise_key, edit_key)
                loss, metrics = loss + extra, metrics | more
            return loss, metrics

        return base.apply_gradients(state, optimizer, loss_fn, key, config.tau)

    return base.Agent(init, update, actor_critic.make_sampler(config, critic, policy))
