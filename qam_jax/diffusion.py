"""Diffusion policies: the variance-preserving DDPM schedule, its samplers and their losses.

Noise is added to a clean action `x_0 = a` in `T` steps until `x_T` is close to `N(0, I)`:
`x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps` (DDPM, arXiv 2006.11239). A network predicts `eps`
from `x_t` and the step `t = 1 .. T`; samplers go from `t = T` down to 1.

Shapes: `...` is any batch shape, `D` the action dimension, `T` the number of diffusion steps.
Functions raise ValueError, which names the argument, if a shape does not fit or a number is out of
range.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qam_jax.flow import unroll
from qam_jax.types import Array, check_positive, check_shape

EpsilonFn = Callable[[Array, Array], Array]
"""Predicted noise: `(x [..., D], t [..., 1]) -> [..., D]`, observations closed over."""


class DiffusionSchedule(NamedTuple):
    """Noise of every step; entry `t - 1` belongs to step `t`.

    Attributes:
      betas: [T], share of the variance that step `t` replaces by noise.
      alpha_bars: [T], `prod_{s <= t} (1 - beta_s)`, the share of the clean action's variance.
    """

    betas: Array
    alpha_bars: Array


def vp_schedule(
    num_steps: int, *, beta_min: float = 0.1, beta_max: float = 10.0
) -> DiffusionSchedule:
    """The variance-preserving SDE's schedule, exact on a grid of `num_steps` steps, float32.

    The noise rate rises linearly from `beta_min` to `beta_max` over unit time (Song et al., arXiv
    2011.13456, app. C), so `abar_t = exp(-beta_min u - (beta_max - beta_min) u^2 / 2)`, `u = t/T`.

    Args:
      num_steps: `T`, at least 1.
      beta_min: noise rate at the clean end.
      beta_max: noise rate at the noisy end.
    """
    check_positive("num_steps", num_steps)
    times = jnp.arange(num_steps + 1, dtype=jnp.float32) / num_steps
    log_alpha_bars = -beta_min * times - 0.5 * (beta_max - beta_min) * jnp.square(times)
    betas = -jnp.expm1(log_alpha_bars[1:] - log_alpha_bars[:-1])
    return DiffusionSchedule(betas, jnp.exp(log_alpha_bars[1:]))


def add_noise(schedule: DiffusionSchedule, actions: Array, noise: Array, steps: Array) -> Array:
    """Noisy actions [..., D], `sqrt(abar_t) a + sqrt(1 - abar_t) eps` (arXiv 2006.11239, eq. 4).

    Args:
      schedule: from `vp_schedule`.
      actions: [..., D], clean.
      noise: [..., D], `eps ~ N(0, I)`.
      steps: [..., 1] whole numbers in 1 .. T.
    """
    check_shape("noise", noise, actions.shape)
    check_shape("steps", steps, (*actions.shape[:-1], 1))
    alpha_bars = schedule.alpha_bars[steps - 1].astype(actions.dtype)
    return jnp.sqrt(alpha_bars) * actions + jnp.sqrt(1 - alpha_bars) * noise


def predict_clean(schedule: DiffusionSchedule, noisy: Array, epsilon: Array, steps: Array) -> Array:
    """Clean actions [..., D] from which `noisy` was made if its noise is `epsilon`.

    The inverse of `add_noise`: `(x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)`.

    Args:
      schedule: from `vp_schedule`.
      noisy: [..., D], `x_t`.
      epsilon: [..., D], its noise as predicted.
      steps: whole numbers in 1 .. T, [..., 1] or a scalar.
    """
    alpha_bars = schedule.alpha_bars[steps - 1].astype(noisy.dtype)
    return (noisy - jnp.sqrt(1 - alpha_bars) * epsilon) / jnp.sqrt(alpha_bars)


def posterior_step(
    schedule: DiffusionSchedule, noisy: Array, clean: Array, noise: Array, steps: Array
) -> Array:
    """Draws `x_{t-1}` [..., D] given `x_t` and the clean action (DDPM, arXiv 2006.11239, eq. 7).

    Its mean is the posterior's. Its deviation is `sqrt(beta_t)`, the larger of the two that DDPM
    gives (sec. 3.2). At `t = 1` the mean is the clean action itself.

    Args:
      schedule: from `vp_schedule`.
      noisy: [..., D], `x_t`.
      clean: [..., D], `x_0`.
      noise: [..., D], `~ N(0, I)`.
      steps: whole numbers in 1 .. T, [..., 1] or a scalar.
    """
    betas, alpha_bars = schedule
    before = jnp.concatenate([jnp.ones(1), alpha_bars])[steps - 1].astype(noisy.dtype)
    beta, after = (table[steps - 1].astype(noisy.dtype) for table in (betas, alpha_bars))
    clean_weight = jnp.sqrt(before) * beta / (1 - after)
    noisy_weight = jnp.sqrt(1 - beta) * (1 - before) / (1 - after)
    return clean_weight * clean + noisy_weight * noisy + jnp.sqrt(beta) * noise


def sample_ddpm(
    epsilon_fn: EpsilonFn,
    schedule: DiffusionSchedule,
    initial_noise: Array,
    step_noise: Array,
    *,
    clip: float | None = 1.0,
) -> Array:
    """Samples by posterior steps around the predicted clean action (as in DAC, arXiv 2405.20555).

    Args:
      epsilon_fn: predicted noise, `(x [..., D], t [..., 1]) -> [..., D]`.
      schedule: from `vp_schedule`, of `T` steps.
      initial_noise: [..., D], `x_T`.
      step_noise: [T - 1, ..., D], `~ N(0, I)`; the last step has none.
      clip: the predicted clean action is clipped to this box before each posterior step; None is
        no clipping.

    Returns:
      [..., D], within the box if there is one.
    """

    def step(x: Array, epsilon: Array, noise: Array, index: Array) -> Array:
        clean = predict_clean(schedule, x, epsilon, index)
        clean = clean if clip is None else jnp.clip(clean, -clip, clip)
        return posterior_step(schedule, x, clean, noise, index)

    return _denoise(step, epsilon_fn, schedule, initial_noise, step_noise)


def sample_by_jumps(
    epsilon_fn: EpsilonFn,
    schedule: DiffusionSchedule,
    initial_noise: Array,
    step_noise: Array,
    *,
    clip: float | None = 1.0,
) -> Array:
    """Samples by jumping to the predicted clean action, then adding a step's noise (QSM).

    `x_{t-1} = clip(predicted clean action + sigma_t z)`, `sigma_t = sqrt(beta_t)`, and no noise at
    `t = 1`. Unlike `sample_ddpm` it forgets `x_t` at every step (QSM, arXiv 2312.11752, as run by
    QAM, arXiv 2601.14234).

    Arguments are those of `sample_ddpm`, with `step_noise` as `z`. The result of every step is
    clipped to the box `clip`; None is no clipping.
    """

    def step(x: Array, epsilon: Array, noise: Array, index: Array) -> Array:
        noise_scale = jnp.sqrt(schedule.betas[index - 1]).astype(x.dtype)
        x = predict_clean(schedule, x, epsilon, index) + noise_scale * noise
        return x if clip is None else jnp.clip(x, -clip, clip)

    return _denoise(step, epsilon_fn, schedule, initial_noise, step_noise)


def denoising_loss(epsilon: Array, noise: Array) -> Array:
    """Loss [...] of behaviour cloning, `mean_D (eps - eps_theta)^2` (arXiv 2006.11239, eq. 14).

    Args:
      epsilon: [..., D], the predicted noise.
      noise: [..., D], the noise that was added.
    """
    check_shape("noise", noise, epsilon.shape)
    return jnp.mean(jnp.square(noise - epsilon), axis=-1)


def q_score_matching_loss(epsilon: Array, q_gradients: Array, inv_temp: float) -> Array:
    """Matches the score to the critic's gradient, `mean_D (-inv_temp grad Q - eps_theta)^2`.

    (QSM, arXiv 2312.11752, eq. 8, with the sign and scale of predicted noise.)

    Args:
      epsilon: [..., D], the noise predicted at `x_t`.
      q_gradients: [..., D], `grad_a Q` at `x_t`, held fixed by the caller.
      inv_temp: inverse temperature `tau`.

    Returns:
      [...], the loss of each sample.
    """
    check_shape("q_gradients", q_gradients, epsilon.shape)
    return jnp.mean(jnp.square(-inv_temp * q_gradients - epsilon), axis=-1)


def soft_guidance_loss(
    schedule: DiffusionSchedule, epsilon: Array, q_gradients: Array, steps: Array
) -> Array:
    """Turns predicted noise against the critic's gradient, by less the cleaner the action.

    `sqrt(1 - abar_t) mean_D (grad Q * eps_theta)` (soft Q-guidance of DAC, arXiv 2405.20555).

    Args:
      schedule: from `vp_schedule`.
      epsilon: [..., D], the noise predicted at `x_t`.
      q_gradients: [..., D], `grad_a Q` at `x_t`, held fixed by the caller.
      steps: [..., 1] whole numbers in 1 .. T.

    Returns:
      [...], the loss of each sample.
    """
    check_shape("q_gradients", q_gradients, epsilon.shape)
    check_shape("steps", steps, (*epsilon.shape[:-1], 1))
    alpha_bars = schedule.alpha_bars[steps - 1].astype(epsilon.dtype)
    return jnp.mean(jnp.sqrt(1 - alpha_bars) * q_gradients * epsilon, axis=-1)


def _denoise(
    step_fn: Callable[[Array, Array, Array, Array], Array],
    epsilon_fn: EpsilonFn,
    schedule: DiffusionSchedule,
    initial_noise: Array,
    step_noise: Array,
) -> Array:
    """Applies `step_fn(x, epsilon, noise, t)` for `t = T .. 1`; at `t = 1` the noise is zero."""
    num_steps = schedule.betas.shape[0]
    check_shape("step_noise", step_noise, (num_steps - 1, *initial_noise.shape))

    def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        index, noise = inputs
        time = jnp.broadcast_to(index.astype(x.dtype), (*x.shape[:-1], 1))
        return step_fn(x, epsilon_fn(x, time), noise, index), None

    noise = jnp.concatenate([step_noise, jnp.zeros_like(initial_noise)[None]])
    inputs = jnp.arange(num_steps, 0, -1), noise
    actions, _ = jax.lax.scan(step, initial_noise, inputs, unroll=unroll(num_steps))
    return actions
