"""Parts that DAC and QSM share: a diffusion policy, trained by cloning and critic guidance."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax import diffusion
from qam_jax.agents import actor_critic, base
from qam_jax.agents.base import AgentState, Loss
from qam_jax.networks import NoisePredictor, make_init, mean_critic_value
from qam_jax.types import Array, Batch, Key, Params

CHANGES = [base.Change("0.2.0", "the diffusion step's features pass through an MLP of their own")]

SampleFn = Callable[[diffusion.EpsilonFn, diffusion.DiffusionSchedule, Array, Array], Array]
"""A sampler of `diffusion`: `(epsilon_fn, schedule, initial noise, step noise) -> [..., D]`."""

GuidanceFn = Callable[[diffusion.DiffusionSchedule, Array, Array, Array], Array]
"""The critic's loss: `(schedule, epsilon [B, D], grad Q [B, D], steps [B, 1]) -> [B]`."""


def make_diffusion_agent(
    config: ConfigDict, sample_fn: SampleFn, guidance_fn: GuidanceFn
) -> base.Agent:
    """Agent whose diffusion policy is trained by `guidance_fn` plus `alpha` times denoising.

    Args:
      config: with `alpha`, the weight of behaviour cloning; `flow_steps` is the number of
        diffusion steps.
      sample_fn: how actions are drawn.
      guidance_fn: how the target critics' gradient at noisy actions trains the noise predictor.
    """
    actor = NoisePredictor(**base.network_fields(config, "actor"))
    critic = base.make_critic(config)
    schedule = diffusion.vp_schedule(config.flow_steps)

    def predict_noise(params: Params, observations: Array) -> diffusion.EpsilonFn:
        return lambda x, t: actor.apply({"params": params["actor"]}, observations, x, t)

    def policy(state: AgentState, observations: Array, key: Key) -> Array:
        initial_key, step_key = jax.random.split(key)
        initial = base.draw_noise(state, observations, initial_key)
        step_noise = jax.random.normal(step_key, (config.flow_steps - 1, *initial.shape))
        epsilon_fn = predict_noise(state.params, observations)
        return sample_fn(epsilon_fn, schedule, initial, step_noise)

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        noise_key, step_key = jax.random.split(key)
        observations = batch.observations
        noise = base.draw_noise(state, observations, noise_key)
        steps = jax.random.randint(step_key, (len(actions), 1), 1, config.flow_steps + 1)
        noisy = diffusion.add_noise(schedule, actions, noise, steps)
        value_fn = partial(mean_critic_value, critic, state.target_params["critic"], observations)
        q_gradients = actor_critic.action_gradient(value_fn, noisy)
        epsilon = predict_noise(params, observations)(noisy, steps.astype(noisy.dtype))
        guidance = guidance_fn(schedule, epsilon, q_gradients, steps)
        guidance_loss = jnp.mean(batch.weights * guidance)
        bc_loss = jnp.mean(batch.weights * diffusion.denoising_loss(epsilon, noise))
        metrics = {"bc_loss": bc_loss, "guidance_loss": guidance_loss}
        return guidance_loss + config.alpha * bc_loss, metrics

    return actor_critic.make_actor_critic(
        config, critic, init_actor=make_init(actor=actor), actor_loss=actor_loss, policy=policy
    )
