"""Layout of products and ensembles for a processor; called by `networks.py` alone.

An accelerator is fastest with one stacked product for all critics of an ensemble. On the CPU the
critics of a large ensemble take turns: each is evaluated with its gradient while its weights and
activations are in the cache. XLA's stacked products are slower there, and so is keeping the
activations of all critics for the backward pass.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qam_jax.critic import td_loss
from qam_jax.types import Array, Params

_SMALL_KERNEL = 64 * 64  # weights; for fewer, a transposed copy costs more than it saves
_SMALL_WIDTH = 64  # for narrower critics, a loop over the ensemble costs more than it saves


def take_turns(hidden_dims: Sequence[int]) -> bool:
    """Whether the critics of an ensemble are evaluated one after the other."""
    return max(hidden_dims, default=0) >= _SMALL_WIDTH and jax.default_backend() == "cpu"


def values_by_turns(
    critic: nn.Module, params: Params, observations: Array, actions: Array
) -> Array:
    """Values [K, ...] of actions [..., D]; slow to differentiate."""
    return jax.lax.map(lambda single: critic.single(single, observations, actions), params)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def mean_by_turns(critic: nn.Module, params: Params, observations: Array, actions: Array) -> Array:
    """Mean of the values [...], made for gradients in the actions."""
    q_values = values_by_turns(critic, params, observations, actions)
    return jnp.mean(q_values, axis=0)


def _mean_by_turns_forward(critic: nn.Module, *arguments: Any) -> tuple[Array, Any]:
    """Takes the gradient in the actions at once, if no other gradient is wanted."""

    def is_primal(node: Any) -> bool:
        return hasattr(node, "perturbed")

    params, observations, actions = jax.tree.map(
        lambda primal: primal.value, arguments, is_leaf=is_primal
    )
    if any(primal.perturbed for primal in jax.tree.leaves(arguments[:2], is_leaf=is_primal)):

        def stacked_mean(*arguments: Any) -> Array:
            params, *inputs = arguments
            return jnp.mean(critic.apply({"params": params}, *inputs), axis=0)

        return jax.vjp(stacked_mean, params, observations, actions)

    def add(sums: tuple[Array, Array], single: Params) -> tuple[tuple[Array, Array], None]:
        total, vjp_fn = jax.vjp(partial(critic.single, single, observations), actions)
        (slope,) = vjp_fn(jnp.ones_like(total))
        return (sums[0] + total, sums[1] + slope), None

    start = jnp.zeros(actions.shape[:-1]), jnp.zeros_like(actions)
    (total, slope), _ = jax.lax.scan(add, start, params)
    return total / critic.num_qs, slope / critic.num_qs


def _mean_by_turns_backward(_: nn.Module, residuals: Any, gradient: Array) -> tuple:
    if callable(residuals):
        return residuals(gradient)
    return None, None, gradient[..., None] * residuals


mean_by_turns.defvjp(_mean_by_turns_forward, _mean_by_turns_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def td_loss_by_turns(
    critic: nn.Module,
    params: Params,
    observations: Array,
    actions: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, Array]:
    """TD loss and the values [K, B], made for gradients in the parameters."""
    q_values = values_by_turns(critic, params, observations, actions)
    return td_loss(q_values, targets, weights), q_values


def _td_loss_by_turns_forward(
    critic: nn.Module, params: Params, *data: Array
) -> tuple[tuple[Array, Array], Params]:
    observations, actions, targets, weights = data

    def single_loss(single: Params) -> tuple[Array, Array]:
        q_values = critic.single(single, observations, actions)
        return td_loss(q_values[None], targets, weights) / critic.num_qs, q_values

    value_and_grad = jax.value_and_grad(single_loss, has_aux=True)
    (losses, q_values), gradients = jax.lax.map(value_and_grad, params)
    return (jnp.sum(losses), q_values), gradients


def _td_loss_by_turns_backward(
    _: nn.Module, gradients: Params, gradient: tuple[Array, Array]
) -> tuple:
    scaled = jax.tree.map(lambda leaf: gradient[0] * leaf, gradients)
    return scaled, None, None, None, None


td_loss_by_turns.defvjp(_td_loss_by_turns_forward, _td_loss_by_turns_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, compute_dtype: str = "float32") -> Array:
    """`x @ kernel`, in float32 or from operands that are rounded to bfloat16 first.

    With bfloat16 only the operands of each product are rounded: the sums are float32, in the
    result and in both gradients. `jax.default_matmul_precision` sets how exact products of float32
    are, on processors with a choice.

    Args:
      x: [..., I].
      kernel: [I, J].
      compute_dtype: dtype of the operands, "float32" or "bfloat16".

    Returns:
      [..., J], of the dtype of x.
    """
    return _multiply(x, kernel, compute_dtype, _is_small(kernel))


def _product_forward(x: Array, kernel: Array, compute_dtype: str) -> tuple[Array, tuple]:
    return _multiply(x, kernel, compute_dtype, _is_small(kernel)), (x, kernel)


def _product_backward(
    compute_dtype: str, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    small = _is_small(kernel)
    by_x = _multiply(gradient, kernel.T, compute_dtype, small)
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    columns = rows.T
    if jax.default_backend() == "cpu" and not small:
        # XLA's products on the CPU are a third slower when the left operand is read by columns.
        # Without the barrier it would make the copy part of the product again.
        columns = jax.lax.optimization_barrier(columns)
    return by_x, _multiply(columns, gradients, compute_dtype, small)


product.defvjp(_product_forward, _product_backward)


def _is_small(kernel: Array) -> bool:
    return kernel.size < _SMALL_KERNEL


def _multiply(left: Array, right: Array, compute_dtype: str, small: bool) -> Array:
    if compute_dtype == "float32":
        return jnp.matmul(left, right)
    if jax.default_backend() == "cpu" and small:
        # XLA lacks some products of bfloat16 here (of vectors, of operands read by columns).
        # Products of rounded float32 give the same numbers.
        info = jnp.finfo(compute_dtype)
        operands = [jax.lax.reduce_precision(x, info.nexp, info.nmant) for x in (left, right)]
        return jnp.matmul(*operands)
    operands = [left.astype(compute_dtype), right.astype(compute_dtype)]
    return jnp.matmul(*operands, preferred_element_type=left.dtype)
