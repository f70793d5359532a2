"""Flow matching and the samplers of a flow policy.

A flow carries noise `x_0 = z ~ N(0, I)` at time 0 to an action `x_1` at time 1 along
`dx/dt = f(x, t)`. With `T` steps the grid is `t_i = i h`, `h = 1/T`.

Shapes: `...` is any batch shape, `D` the action dimension, `T` the number of flow steps. Functions
raise ValueError, which names the argument, if a shape does not fit or a number is out of range.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qam_jax.types import Array, VelocityFn, check_positive, check_shape


def flow_matching_loss(
    velocity_fn: VelocityFn, noise: Array, actions: Array, times: Array
) -> Array:
    """Conditional flow matching on straight paths (Lipman et al., arXiv 2210.02747, eq. 23).

    `mean_D (f((1 - t) z + t a, t) - (a - z))^2`.

    Args:
      velocity_fn: the flow, `(x [..., D], t [..., 1]) -> [..., D]`.
      noise: [..., D], `z ~ N(0, I)`.
      actions: [..., D], the data.
      times: [..., 1] in [0, 1].

    Returns:
      [...], the loss of each sample.

    Examples:
      The exact velocity of a straight path from 0 to 1 has no loss there:

      >>> noise, actions, times = jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.full((1, 1), 0.3)
      >>> print(flow_matching_loss(lambda x, t: jnp.ones_like(x), noise, actions, times))
      [0.]
    """
    check_shape("noise", noise, actions.shape)
    check_shape("times", times, (*actions.shape[:-1], 1))
    points = (1 - times) * noise + times * actions
    errors = velocity_fn(points, times) - (actions - noise)
    return jnp.mean(jnp.square(errors), axis=-1)


def sample_flow(velocity_fn: VelocityFn, noise: Array, num_steps: int) -> Array:
    """Integrates the flow from noise to actions by `num_steps` Euler steps.

    Args:
      velocity_fn: the flow, `(x [..., D], t [..., 1]) -> [..., D]`.
      noise: [..., D].
      num_steps: `T`, at least 1.

    Returns:
      [..., D], not clipped.

    Examples:
      Two steps of `dx/dt = x` multiply by 1.5 each:

      >>> print(sample_flow(lambda x, t: x, jnp.ones(1), num_steps=2))
      [2.25]
    """
    check_positive("num_steps", num_steps)
    step_size = 1 / num_steps

    def step(x: Array, index: Array) -> tuple[Array, None]:
        return x + step_size * velocity_fn(x, _time_like(x, index, num_steps)), None

    actions, _ = jax.lax.scan(step, noise, jnp.arange(num_steps), unroll=unroll(num_steps))
    return actions


def sample_flow_inpainted(
    velocity_fn: VelocityFn,
    noise: Array,
    num_steps: int,
    known: Array,
    weights: Array,
    max_guidance: float = 5.0,
) -> Array:
    """Integrates the flow towards an end that is known in part.

    Each Euler step of `sample_flow` is guided (real-time chunking, arXiv 2506.07339, eq. 2 to 4;
    pseudoinverse guidance, PiGDM): with the end `x_1(x) = x + (1 - t) f(x, t)` that one long step
    would reach, and `r^2 = (1 - t)^2 / (t^2 + (1 - t)^2)`, the velocity is

    `f(x, t) + min(max_guidance, (1 - t) / (t r^2)) (w (known - x_1))^T d x_1 / d x`.

    Args:
      velocity_fn: the flow, `(x [..., D], t [..., 1]) -> [..., D]`; differentiated in `x`.
      noise: [..., D].
      num_steps: `T`, at least 1.
      known: [..., D], the known end; of no effect where the weight is 0.
      weights: [..., D] in [0, 1], `w`; with 0 everywhere the result is that of `sample_flow`.
      max_guidance: limit of the factor before the product, which has no bound at `t = 0`; above 0.

    Returns:
      [..., D], not clipped. It is close to `known` where the weight is 1, not equal to it.

    Examples:
      >>> known, weights = jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0])
      >>> still = lambda x, t: 0 * x
      >>> print(sample_flow_inpainted(still, jnp.zeros(2), 10, known, weights).round(1))
      [1. 0.]
    """
    check_positive("num_steps", num_steps)
    check_positive("max_guidance", max_guidance)
    check_shape("known", known, noise.shape)
    check_shape("weights", weights, noise.shape)
    times = jnp.arange(num_steps, dtype=noise.dtype) / num_steps
    limits = (times**2 + (1 - times) ** 2) / (jnp.where(times > 0, times, 1) * (1 - times))
    strengths = jnp.where(times > 0, jnp.minimum(max_guidance, limits), max_guidance)

    def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        index, strength = inputs
        time = _time_like(x, index, num_steps)

        def end(x: Array) -> tuple[Array, Array]:
            velocity = velocity_fn(x, time)
            return x + (1 - time) * velocity, velocity

        reached, pull_back, velocity = jax.vjp(end, x, has_aux=True)
        (correction,) = pull_back(weights * (known - reached))
        return x + 1 / num_steps * (velocity + strength * correction), None

    inputs = jnp.arange(num_steps), strengths
    actions, _ = jax.lax.scan(step, noise, inputs, unroll=unroll(num_steps))
    return actions


def reverse_flow(
    velocity_fn: VelocityFn, actions: Array, distances: Array, num_steps: int
) -> Array:
    """Follows the flow backwards from actions, by `num_steps` steps (RQL, arXiv 2606.17551).

    `x <- x - (d / T) f(x, t)`, `t <- t - d / T`, from `t = 1` on; each step takes the velocity at
    the point that it leaves.

    Args:
      velocity_fn: the flow, `(x [..., D], t [..., 1]) -> [..., D]`.
      actions: [..., D], at time 1.
      distances: [..., 1] in [0, 1], `d`, how far back each sample goes.
      num_steps: `T`, at least 1.

    Returns:
      [..., D], the points at time `1 - d`; not clipped.

    Examples:
      Half of the way back along a constant velocity:

      >>> print(reverse_flow(lambda x, t: 2 + 0 * x, jnp.ones((1, 1)), jnp.full((1, 1), 0.5), 4))
      [[0.]]
    """
    check_positive("num_steps", num_steps)
    check_shape("distances", distances, (*actions.shape[:-1], 1))
    step_sizes = distances / num_steps

    def step(x: Array, index: Array) -> tuple[Array, None]:
        return x - step_sizes * velocity_fn(x, 1 - index * step_sizes), None

    points, _ = jax.lax.scan(step, actions, jnp.arange(num_steps), unroll=unroll(num_steps))
    return points


def memoryless_noise_scale(num_steps: int) -> Array:
    """Noise scale [T] under which the end of the SDE is independent of its start, float32.

    `sigma_i = sqrt(2 (1 - t_i + h) / (t_i + h))` (adjoint matching, arXiv 2409.08861, sec. 4.3,
    shifted by `h` so that it is finite at `t = 0`, as in QAM, arXiv 2601.14234).

    Args:
      num_steps: `T`, at least 1.

    Examples:
      >>> print((memoryless_noise_scale(4) ** 2).round())
      [10.  4.  2.  1.]
    """
    check_positive("num_steps", num_steps)
    shifted_times = (jnp.arange(num_steps, dtype=jnp.float32) + 1) / num_steps
    return jnp.sqrt(2 * (1 - shifted_times + 2 / num_steps) / shifted_times)


def sample_memoryless_sde(
    velocity_fn: VelocityFn,
    final_velocity_fn: VelocityFn,
    initial_noise: Array,
    step_noise: Array,
) -> Array:
    """Simulates the memoryless SDE of a flow (QAM, arXiv 2601.14234; Euler-Maruyama).

    `x_{i+1} = x_i + h (2 f(x_i, t_i) - x_i / (t_i + h)) + sqrt(h) sigma_i eps_i` for
    `i < T - 1`; the last step is a plain Euler step of `final_velocity_fn`, without noise.

    Args:
      velocity_fn: the flow of all steps but the last.
      final_velocity_fn: the flow of the last step (QAM: the base flow).
      initial_noise: [..., D], `x_0`.
      step_noise: [T - 1, ..., D], `eps_i ~ N(0, I)`; its length sets `T`.

    Returns:
      [T + 1, ..., D], the states `x_0 .. x_T`.

    Examples:
      >>> def velocity(x, t):
      ...     return -x
      >>> start, noise = jax.random.split(jax.random.PRNGKey(0))
      >>> noises = jax.random.normal(start, (64, 2)), jax.random.normal(noise, (9, 64, 2))
      >>> print(sample_memoryless_sde(velocity, velocity, *noises).shape)
      (11, 64, 2)
    """
    num_steps = len(step_noise) + 1
    check_shape("step_noise", step_noise, (num_steps - 1, *initial_noise.shape))

    def step(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        index, noise_scale, noise = inputs
        time = _time_like(x, index, num_steps)
        x = _sde_step(x, velocity_fn(x, time), time, 1 / num_steps, noise_scale * noise)
        return x, x

    inputs = _sde_inputs(initial_noise, step_noise)
    last, states = jax.lax.scan(step, initial_noise, inputs, unroll=unroll(num_steps))
    final = last + final_velocity_fn(last, _time_like(last, num_steps - 1, num_steps)) / num_steps
    return jnp.concatenate([initial_noise[None], states, final[None]])


class MemorylessPath(NamedTuple):
    """Simulated paths of a fine-tuned flow, with the base flow's velocities on them.

    Attributes:
      states: [T + 1, ..., D], `x_0 .. x_T`.
      base_velocities: [T, ..., D], of the base flow at `x_0 .. x_{T-1}`.
    """

    states: Array
    base_velocities: Array


def sample_flow_and_sde(
    velocity_fn: VelocityFn,
    base_velocity_fn: VelocityFn,
    flow_noise: Array,
    initial_noise: Array,
    step_noise: Array,
) -> tuple[Array, MemorylessPath]:
    """Samples actions by the ODE and paths by the memoryless SDE in the same calls of the flow.

    The results equal those of `sample_flow` and `sample_memoryless_sde`, with half the calls.

    Args:
      velocity_fn: the fine-tuned flow, called on [N + 1, ..., D]: the ODE's, then the SDE's.
      base_velocity_fn: the base flow, for the SDE's last step; called once, on [T, ..., D].
      flow_noise: [N, ..., D], where the ODE starts.
      initial_noise: [..., D], `x_0` of the SDE.
      step_noise: [T - 1, ..., D], `eps_i ~ N(0, I)`; its length sets `T`.

    Returns:
      Actions [N, ..., D] of the ODE, not clipped, and the paths of the SDE.
    """
    num_steps = len(step_noise) + 1
    check_shape("step_noise", step_noise, (num_steps - 1, *initial_noise.shape))

    def step(rows: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        index, noise_scale, noise = inputs
        time = _time_like(rows, index, num_steps)
        velocities = velocity_fn(rows, time)
        actions = rows[:-1] + velocities[:-1] / num_steps
        x = _sde_step(rows[-1], velocities[-1], time[-1], 1 / num_steps, noise_scale * noise)
        return jnp.concatenate([actions, x[None]]), x

    start = jnp.concatenate([flow_noise, initial_noise[None]])
    inputs = _sde_inputs(initial_noise, step_noise)
    rows, states = jax.lax.scan(step, start, inputs, unroll=unroll(num_steps))
    last_velocities = velocity_fn(rows, _time_like(rows, num_steps - 1, num_steps))
    actions = (rows + last_velocities / num_steps)[:-1]
    states = jnp.concatenate([initial_noise[None], states])
    base_velocities = velocities_along(base_velocity_fn, states)
    final = states[-1] + base_velocities[-1] / num_steps
    return actions, MemorylessPath(jnp.concatenate([states, final[None]]), base_velocities)


def velocities_along(velocity_fn: VelocityFn, states: Array) -> Array:
    """Velocities [T, ..., D] of a flow at the states `x_0 .. x_{T-1}` of paths, in one call.

    Args:
      velocity_fn: the flow, called on [T, ..., D] and times [T, ..., 1].
      states: [T, ..., D]; `x_i` has the time `i / T`.
    """
    num_steps = len(states)
    times = jnp.arange(num_steps).reshape(num_steps, *[1] * (states.ndim - 1)) / num_steps
    return velocity_fn(states, jnp.broadcast_to(times, (*states.shape[:-1], 1)))


def deviation_costs(velocities: Array, base_velocities: Array) -> Array:
    """Costs [T, ...] of leaving the base flow, `2 ||f_i - f_base_i||^2 / sigma_i^2`.

    `h` times their sum over the steps is the KL divergence between the paths' distributions
    (Girsanov; TRQAM, arXiv 2605.27079).

    Args:
      velocities: [T, ..., D], of the fine-tuned flow along paths.
      base_velocities: [T, ..., D], of the base flow there.
    """
    noise_scales = memoryless_noise_scale(len(velocities))
    noise_scales = noise_scales.reshape(-1, *[1] * (velocities.ndim - 2))
    squares = jnp.sum(jnp.square(velocities - base_velocities), axis=-1)
    return 2 * squares / jnp.square(noise_scales)


def unroll(num_steps: int) -> int:
    """Number of steps in each round of a sampler's loop: up to 16 steps need no loop."""
    return min(num_steps, 16)


def _sde_inputs(initial_noise: Array, step_noise: Array) -> tuple[Array, Array, Array]:
    """Index, noise scale and noise of every step of the SDE but the last."""
    noise_scales = memoryless_noise_scale(len(step_noise) + 1)[:-1].astype(initial_noise.dtype)
    return jnp.arange(len(step_noise)), noise_scales, step_noise


def _sde_step(x: Array, velocity: Array, time: Array, step_size: float, noise: Array) -> Array:
    """Takes one Euler-Maruyama step; the noise has the scale `sigma_i`."""
    drift = 2 * velocity - x / (time + step_size)
    return x + step_size * drift + step_size**0.5 * noise


def _time_like(x: Array, index: Array | int, num_steps: int) -> Array:
    """The time `index / num_steps` for every sample of `x` [..., D], as [..., 1]."""
    time = jnp.asarray(index, x.dtype) / num_steps
    return jnp.broadcast_to(time, (*x.shape[:-1], 1))
