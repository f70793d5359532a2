"""Matrix products of the networks: their precision, and a gradient that suits the processor."""

from functools import partial

import jax
import jax.numpy as jnp

from qam_jax.types import Array

COMPUTE_DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "high", "highest")

_SMALL = 64 * 64  # weights; below, a copy costs more than it saves


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
    x: Array, kernel: Array, compute_dtype: str = "float32", precision: str = "default"
) -> Array:
    """`x @ kernel`, in float32 or from operands that are rounded to bfloat16 first.

    With bfloat16 the sums are still float32, in the result and in both gradients: only the
    operands of each product are rounded.

    Args:
      x: [..., I].
      kernel: [I, J].
      compute_dtype: of the operands, "float32" or "bfloat16".
      precision: of products of float32 on processors that have several: "default", "high" or
        "highest" (`jax.lax.Precision`).

    Returns:
      [..., J], of the dtype of x.
    """
    return _multiply(x, kernel, compute_dtype, precision)


def _forward(x: Array, kernel: Array, compute_dtype: str, precision: str):
    return _multiply(x, kernel, compute_dtype, precision), (x, kernel)


def _backward(
    compute_dtype: str, precision: str, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    by_x = _multiply(gradient, kernel.T, compute_dtype, precision)
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    columns = rows.T
    if jax.default_backend() == "cpu" and kernel.size >= _SMALL:
        # XLA's products on the CPU are a third slower when the left operand is read by columns;
        # without the barrier it would make the copy part of the product again.
        columns = jax.lax.optimization_barrier(columns)
    return by_x, _multiply(columns, gradients, compute_dtype, precision)


product.defvjp(_forward, _backward)


def _multiply(left: Array, right: Array, compute_dtype: str, precision: str) -> Array:
    if compute_dtype == "float32":
        return jnp.matmul(left, right, precision=precision)
    operands = left.astype(compute_dtype), right.astype(compute_dtype)
    return jnp.matmul(*operands, preferred_element_type=left.dtype)
