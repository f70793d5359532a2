"""Adjoint matching with a lean adjoint: how a critic's gradient trains a flow.

The critic's action gradient at the end of a simulated path is carried back along the path by
vector-Jacobian products of the *base* flow alone (adjoint matching, arXiv 2409.08861, sec. 5;
QAM, arXiv 2601.14234). The fine-tuned flow is then regressed on the result, step by step, so that
nothing is ever differentiated through the many denoising steps. At the optimum
`pi ~ pi_base * exp(inv_temp * Q)`.

Shapes: `...` is any batch shape, `D` the action dimension, `T` the number of flow steps. Functions
raise ValueError, which names the argument, if a shape does not fit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qam_jax.flow import memoryless_noise_scale, unroll
from qam_jax.types import Array, QFn, VelocityFn, check_shape


def terminal_adjoint(q_fn: QFn, actions: Array, inv_temp: float | Array) -> Array:
    """Adjoint [..., D] at the end of a path, `g_T = -inv_temp * grad_a Q(clip(a))`.

    The actions are clipped to [-1, 1] inside the gradient, which is therefore zero for every
    coordinate outside the box.

    Args:
      q_fn: value of actions, `(actions [..., D]) -> [...]`.
      actions: [..., D], the last states of the paths, not clipped.
      inv_temp: inverse temperature `tau`; or one for each action, [..., 1].

    Examples:
      The second action lies outside of the box, where nothing is gained:

      >>> actions = jnp.array([[0.5], [1.5]])
      >>> print(terminal_adjoint(lambda a: 3 * a[..., 0], actions, inv_temp=2.0).ravel())
      [-6. -0.]
    """

    def total(actions: Array) -> Array:
        values = q_fn(jnp.clip(actions, -1, 1))
        check_shape("the result of q_fn", values, actions.shape[:-1])
        return jnp.sum(values)

    return -inv_temp * jax.grad(total)(actions)


def solve_lean_adjoint(base_velocity_fn: VelocityFn, states: Array, terminal: Array) -> Array:
    """Solves the lean adjoint ODE backwards along fixed states.

    `g_i = g_{i+1} + h J_i^T g_{i+1}` with `J_i = d/dx [2 f(x, t_i + h) - x / (t_i + h)]` at
    `x_i`, for `i = T - 1 .. 0` (QAM, arXiv 2601.14234). Costs one vector-Jacobian product of the
    base flow per step.

    Args:
      base_velocity_fn: the base flow, `(x [..., D], t [..., 1]) -> [..., D]`.
      states: [T + 1, ..., D], the path `x_0 .. x_T`.
      terminal: [..., D], `g_T`.

    Returns:
      [T, ..., D], `g_0 .. g_{T-1}`.

    Examples:
      With two steps of the flow `f = x`, whose drift is `2 x - x / (t + h)`:

      >>> states, terminal = jnp.zeros((3, 1)), jnp.ones(1)
      >>> print(solve_lean_adjoint(lambda x, t: x, states, terminal).ravel())
      [1.5 1.5]
    """
    num_steps = states.shape[0] - 1
    if num_steps < 1:
        raise ValueError(
            f"states must hold at least 2 states, [T + 1, ..., D], got {states.shape}."
        )
    check_shape("terminal", terminal, states.shape[1:])
    times = (jnp.arange(num_steps, dtype=terminal.dtype) + 1) / num_steps

    def linearize(x: Array, time: Array) -> Callable[[Array], tuple[Array]]:
        times = jnp.broadcast_to(time, (*x.shape[:-1], 1))
        return jax.vjp(lambda x: 2 * base_velocity_fn(x, times) - x / times, x)[1]

    def step(adjoint: Array, vjp_fn: Callable[[Array], tuple[Array]]) -> tuple[Array, Array]:
        adjoint = adjoint + vjp_fn(adjoint)[0] / num_steps
        return adjoint, adjoint

    vjp_fns = jax.vmap(linearize)(states[:-1], times)
    _, adjoints = jax.lax.scan(step, terminal, vjp_fns, reverse=True, unroll=unroll(num_steps))
    return adjoints


def adjoint_matching_loss(velocities: Array, base_velocities: Array, adjoints: Array) -> Array:
    """Regression of the fine-tuned flow on the lean adjoint.

    `sum_{i<T} || 2 (f_i - f_base_i) / sigma_i + sigma_i g_i ||^2` with the memoryless noise
    scale `sigma_i` (QAM, arXiv 2601.14234; adjoint matching, arXiv 2409.08861, eq. 37).

    Args:
      velocities: [T, ..., D], the fine-tuned flow at the states `x_0 .. x_{T-1}`.
      base_velocities: [T, ..., D], the base flow there.
      adjoints: [T, ..., D], from `solve_lean_adjoint`.

    Returns:
      [...], summed over T and D; each sample's loss.

    Examples:
      It is 0 where `f = f_base - sigma^2 g / 2`, here with one step, where `sigma^2 = 4`:

      >>> base, adjoints = jnp.zeros((1, 2)), jnp.ones((1, 2))
      >>> print(adjoint_matching_loss(base - 2 * adjoints, base, adjoints))
      0.0
    """
    check_shape("base_velocities", base_velocities, velocities.shape)
    check_shape("adjoints", adjoints, velocities.shape)
    num_steps = velocities.shape[0]
    noise_scales = memoryless_noise_scale(num_steps).astype(velocities.dtype)
    noise_scales = noise_scales.reshape(num_steps, *[1] * (velocities.ndim - 1))
    residuals = 2 * (velocities - base_velocities) / noise_scales + noise_scales * adjoints
    return jnp.sum(jnp.square(residuals), axis=(0, -1))
