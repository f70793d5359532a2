import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.products import product


def _operands(rows=(3, 5), inputs=80, outputs=70):
    rng = np.random.default_rng(0)
    shapes = ((*rows, inputs), (inputs, outputs), (*rows, outputs))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("sizes", [{}, {"inputs": 4, "outputs": 3}, {"rows": ()}])
def test_product_and_gradients_are_those_of_the_plain_product(sizes):
    x, kernel, cotangent = _operands(**sizes)
    value, vjp_fn = jax.vjp(product, x, kernel)
    expected, expected_vjp_fn = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for mine, plain in zip(vjp_fn(cotangent), expected_vjp_fn(cotangent), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-5)


def test_product_of_several_seeds_at_once():
    x, kernel, cotangent = _operands()

    def gradients(x, kernel):
        return jax.vjp(product, x, kernel)[1](cotangent)

    stacked = jax.vmap(gradients)(jnp.stack([x, 2 * x]), jnp.stack([kernel, 3 * kernel]))
    for seed, scale in enumerate([1, 2]):
        for mine, alone in zip(stacked, gradients(scale * x, (seed * 2 + 1) * kernel), strict=True):
            np.testing.assert_allclose(mine[seed], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sizes", [{}, {"rows": (15,), "inputs": 6, "outputs": 1}])
def test_bfloat16_rounds_operands_and_sums_in_float32(sizes):
    x, kernel, cotangent = _operands(**sizes)
    value, vjp_fn = jax.vjp(lambda x, kernel: product(x, kernel, "bfloat16"), x, kernel)

    def rounded(array):
        return np.asarray(array.astype(jnp.bfloat16).astype(jnp.float32))

    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    assert jnp.abs(value - x @ kernel).max() > 1e-3  # the rounding shows
    by_x, by_kernel = vjp_fn(cotangent)
    assert by_x.dtype == by_kernel.dtype == jnp.float32
    np.testing.assert_allclose(by_x, rounded(cotangent) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    expected = rounded(x).reshape(15, -1).T @ rounded(cotangent).reshape(15, -1)
    np.testing.assert_allclose(by_kernel, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_precision_reaches_the_compiled_products(precision):
    x, kernel, cotangent = _operands()
    with jax.default_matmul_precision(precision):
        lowered = jax.jit(lambda x, w: jax.vjp(product, x, w)[1](cotangent)).lower(x, kernel)
    assert lowered.as_text().count(f"precision = [{precision.upper()}, {precision.upper()}]") == 2
