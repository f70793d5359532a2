"""Q-learning with Adjoint Matching (QAM; Li & Levine, arXiv 2601.14234).

A behaviour flow `f_beta` is cloned from the data, critics are learned by TD backups, and the
fine-tuned flow `f_theta` is regressed on the lean adjoint of the critic's action gradient, so
that its policy approaches `pi_beta * exp(inv_temp * Q)`. Two variants act with a further network:

- QAM-F (`fql_alpha` > 0): a one-step actor, distilled from `f_theta` and improved on the critic.
- QAM-E (`edit_scale` > 0): a tanh-Gaussian that edits the action of `f_theta`.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax import adjoint
from qam_jax.agents import base
from qam_jax.flow import sample_flow, sample_memoryless_sde
from qam_jax.networks import OneStepActor, TanhGaussian
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
    actor_dims = tuple(config.actor_hidden_dims)
    one_step = OneStepActor(actor_dims, config.actor_layer_norm)
    editor = TanhGaussian(actor_dims, config.actor_layer_norm)
    optimizer = base.make_optimizer(config)

    def velocity_fn(params: Params, behavior: Params, observations: Array):
        """`f_theta` over actions; `behavior` is the flow that a residual is added to."""

        def velocity(x, t):
            fine_tuned = flow.apply({"params": params["flow"]}, observations, x, t)
            if config.residual:
                fine_tuned += flow.apply({"params": behavior}, observations, x, t)
            return fine_tuned

        return velocity

    def flow_actions(params, observations, noise):
        velocity = velocity_fn(params, params["behavior"], observations)
        return jnp.clip(sample_flow(velocity, noise, config.flow_steps), -1, 1)

    def edit(params, observations, actions, noise):
        """Edited actions and the log-density of the edit."""
        inputs = jnp.concatenate([observations, actions], axis=-1)
        sample = editor.apply({"params": params["editor"]}, inputs, noise)
        return jnp.clip(actions + config.edit_scale * sample.value, -1, 1), sample.log_prob

    def policy(params, action_dim, observations, key):
        """Actions [..., D] of the policy that acts, before best-of-n."""
        noise_key, edit_key = jax.random.split(key)
        noise_shape = (*observations.shape[:-1], action_dim)
        noise = jax.random.normal(noise_key, noise_shape)
        if config.fql_alpha > 0:
            actions = one_step.apply({"params": params["one_step"]}, observations, noise)
            return jnp.clip(actions, -1, 1)
        actions = flow_actions(params, observations, noise)
        if config.edit_scale > 0:
            edit_noise = jax.random.normal(edit_key, noise_shape)
            actions, _ = edit(params, observations, actions, edit_noise)
        return actions

    def best_actions(params, action_dim, observations, key):
        return base.best_of_n(
            lambda observations, key: policy(params, action_dim, observations, key),
            lambda observations, actions: base.mean_value(
                critic, params["critic"], observations, actions
            ),
            observations,
            key,
            config.best_of_n,
        )

    def init(key, example_observation, example_action):
        action_shape = base.chunk_shape(config, example_action)
        action = jnp.zeros(action_shape).reshape(-1)
        observation, time = example_observation, action[:1]
        key, critic_key, behavior_key, flow_key, actor_key = jax.random.split(key, 5)
        params = {
            "critic": critic.init(critic_key, observation, action)["params"],
            "behavior": flow.init(behavior_key, observation, action, time)["params"],
            "flow": flow.init(flow_key, observation, action, time)["params"],
        }
        if config.fql_alpha > 0:
            params["one_step"] = one_step.init(actor_key, observation, action)["params"]
        if config.edit_scale > 0:
            inputs = jnp.concatenate([observation, action])
            params["editor"] = editor.init(actor_key, inputs, action)["params"]
            params["log_edit_temp"] = jnp.zeros(())
        return base.init_state(optimizer, params, ("critic", "behavior"), key, action_shape)

    def adjoint_targets(state, observations, key):
        """Simulates paths and solves for their adjoints: states [T+1, B, D], g_0..g_T."""
        initial_key, step_key = jax.random.split(key)
        shape = (observations.shape[0], state.action_dim)
        base_flow = state.target_params["behavior"]

        def base_velocity(x, t):
            return flow.apply({"params": base_flow}, observations, x, t)

        states = sample_memoryless_sde(
            velocity_fn(state.params, base_flow, observations),
            base_velocity,
            jax.random.normal(initial_key, shape),
            jax.random.normal(step_key, (config.flow_steps - 1, *shape)),
        )
        terminal = adjoint.terminal_adjoint(
            lambda actions: base.mean_value(
                critic, state.target_params["critic"], observations, actions
            ),
            states[-1],
            config.inv_temp,
        )
        adjoints = adjoint.solve_lean_adjoint(base_velocity, states, terminal)
        return states[:-1], adjoints, terminal

    def adjoint_loss(state, params, observations, states, adjoints):
        times = jnp.arange(config.flow_steps)[:, None, None] / config.flow_steps
        times = jnp.broadcast_to(times, (*states.shape[:-1], 1))
        observations = jnp.broadcast_to(observations, (*states.shape[:-1], observations.shape[-1]))
        base_flow = state.target_params["behavior"]
        velocities = velocity_fn(params, base_flow, observations)(states, times)
        base_velocities = flow.apply({"params": base_flow}, observations, states, times)
        return jnp.mean(adjoint.adjoint_matching_loss(velocities, base_velocities, adjoints))

    def one_step_loss(params, frozen, observations, noise):
        """QAM-F: `alpha mean (mu(s, z) - ODE_theta(s, z))^2 - mean_k Q_k(s, clip mu(s, z))`."""
        actions = one_step.apply({"params": params["one_step"]}, observations, noise)
        distilled = jnp.mean(jnp.square(actions - flow_actions(frozen, observations, noise)))
        value = jnp.mean(
            base.mean_value(critic, frozen["critic"], observations, jnp.clip(actions, -1, 1))
        )
        metrics = {"one_step_distill_loss": distilled, "one_step_q": value}
        return config.fql_alpha * distilled - value, metrics

    def edit_loss(params, frozen, observations, noise, edit_noise):
        """QAM-E: soft actor-critic on the edit, with its temperature tuned to `-D / 2`."""
        flow_action = flow_actions(frozen, observations, noise)
        actions, log_prob = edit(params, observations, flow_action, edit_noise)
        value = jnp.mean(base.mean_value(critic, frozen["critic"], observations, actions))
        temp = jnp.exp(params["log_edit_temp"])
        entropy = -jnp.mean(log_prob)
        actor_loss = -value - jax.lax.stop_gradient(temp) * entropy
        target_entropy = -0.5 * noise.shape[-1]
        temp_loss = temp * jax.lax.stop_gradient(entropy - target_entropy)
        metrics = {
            "edit_loss": actor_loss,
            "edit_temp_loss": temp_loss,
            "edit_temp": temp,
            "edit_entropy": entropy,
        }
        return actor_loss + temp_loss, metrics

    def update(state, batch):
        keys = jax.random.split(state.key, 6)
        key, next_key, bc_key, adjoint_key, noise_key, edit_key = keys
        observations, actions = batch.observations, base.flat_actions(config, batch)
        frozen = state.params
        next_actions = best_actions(frozen, state.action_dim, batch.next_observations, next_key)
        targets = base.critic_target(
            config, critic, state.target_params["critic"], batch, next_actions
        )
        states, adjoints, terminal = adjoint_targets(state, observations, adjoint_key)

        def loss_fn(params):
            loss, metrics = base.critic_loss(critic, params["critic"], batch, actions, targets)
            bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
            am_loss = adjoint_loss(state, params, observations, states, adjoints)
            loss += bc_loss + am_loss
            metrics |= {"bc_loss": bc_loss, "adjoint_matching_loss": am_loss}
            noise = jax.random.normal(noise_key, actions.shape)
            if config.fql_alpha > 0:
                extra, more = one_step_loss(params, frozen, observations, noise)
                loss, metrics = loss + extra, metrics | more
            if config.edit_scale > 0:
                edit_noise = jax.random.normal(edit_key, actions.shape)
                extra, more = edit_loss(params, frozen, observations, noise, edit_noise)
                loss, metrics = loss + extra, metrics | more
            return loss, metrics

        state, metrics = base.apply_gradients(state, optimizer, loss_fn, key, config.tau)
        metrics["adjoint_norm_start"] = jnp.mean(jnp.linalg.norm(adjoints[0], axis=-1))
        metrics["adjoint_norm_end"] = jnp.mean(jnp.linalg.norm(terminal, axis=-1))
        return state, metrics

    def sample_actions(state, observations, key):
        actions = best_actions(state.params, state.action_dim, observations, key)
        return base.split_chunks(state, actions)

    return base.Agent(init, update, sample_actions)
