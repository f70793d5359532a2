"""Matrix products of the networks: their dtype, and a gradient that suits the processor."""

from functools import partial

import jax
import jax.numpy as jnp

from qam_jax.types import Array

COMPUTE_DTYPES = ("float32", "bfloat16")

_SMALL = 64 * 64  # weights; below, a copy costs more than it saves


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, compute_dtype: str = "float32") -> Array:
    """`x @ kernel`, in float32 or from operands that are rounded to bfloat16 first.

    With bfloat16 the sums are still float32, in the result and in both gradients: only the
    operands of each product are rounded. How exact products of float32 are, on processors that
    have several ways, is what `jax.default_matmul_precision` says.

    Args:
      x: [..., I].
      kernel: [I, J].
      compute_dtype: of the operands, "float32" or "bfloat16".

    Returns:
      [..., J], of the dtype of x.
    """
    return _multiply(x, kernel, compute_dtype, _is_small(kernel))


def _forward(x: Array, kernel: Array, compute_dtype: str):
    return _multiply(x, kernel, compute_dtype, _is_small(kernel)), (x, kernel)


def _backward(
    compute_dtype: str, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    small = _is_small(kernel)
    by_x = _multiply(gradient, kernel.T, compute_dtype, small)
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    columns = rows.T
    if jax.default_backend() == "cpu" and not small:
        # XLA's products on the CPU are a third slower when the left operand is read by columns;
        # without the barrier it would make the copy part of the product again.
        columns = jax.lax.optimization_barrier(columns)
    return by_x, _multiply(columns, gradients, compute_dtype, small)


product.defvjp(_forward, _backward)


def _is_small(kernel: Array) -> bool:
    return kernel.size < _SMALL


def _multiply(left: Array, right: Array, compute_dtype: str, small: bool) -> Array:
    if compute_dtype == "float32":
        return jnp.matmul(left, right)
    if jax.default_backend() == "cpu" and small:
        # Here XLA lacks some products of bfloat16 (of vectors, of operands read by columns).
        # Products of float32 that were rounded give the same numbers.
        return jnp.matmul(_rounded(left, compute_dtype), _rounded(right, compute_dtype))
    operands = left.astype(compute_dtype), right.astype(compute_dtype)
    return jnp.matmul(*operands, preferred_element_type=left.dtype)


def _rounded(x: Array, dtype: str) -> Array:
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)
