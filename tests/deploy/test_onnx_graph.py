"""Each rule against JAX itself; policies as a whole are exported in `test_export.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from qam_jax.deploy.onnx_graph import to_onnx

_X, _Y = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
_WEIGHTS = np.random.default_rng(1).normal(size=(2, 4, 6)).astype(np.float32)


def _layer_norm(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)


def _running(x, reverse=False):
    """Sums of the leading rows, by a loop with results of each step."""
    return jax.lax.scan(lambda total, row: (total + row,) * 2, jnp.zeros(4), x, reverse=reverse)


_FUNCTIONS = {
    "activations": lambda x, y: [f(x) for f in (
        jax.nn.gelu, jax.nn.mish, jax.nn.sigmoid, jax.nn.softmax, jax.nn.relu, jnp.tanh,
    )],
    "exact gelu": lambda x, y: jax.nn.gelu(x, approximate=False),
    "arithmetic": lambda x, y: [x / y - 2 * x, -x, abs(x), x**3, jnp.maximum(x, y), jnp.sign(x)],
    "functions": lambda x, y: [jnp.exp(x), jnp.expm1(x), jnp.sqrt(abs(x)), abs(x) ** y, jnp.cos(x)],
    "comparisons": lambda x, y: [
        jnp.where(op(x, y) & ~(x == 0), x, 0.5)
        for op in (jnp.less, jnp.less_equal, jnp.greater, jnp.greater_equal, jnp.not_equal)
    ],
    "limits": lambda x, y: [jnp.clip(x, -0.5, 0.5), jax.lax.clamp(-0.1, x, 0.3)],
    "layer norm": lambda x, y: _layer_norm(x),
    "reductions": lambda x, y: [x.max(axis=0), x.min(axis=1), x.sum(), x.argmax(axis=1) + 0.0],
    "shapes": lambda x, y: [x.T, x[1:, ::2], *jnp.split(y, 2, axis=1), x.reshape(-1), x[None]],
    "products": lambda x, y: [x @ _WEIGHTS[0], jnp.einsum("ni,kio->kno", x, _WEIGHTS), x @ y.T],
    "the best": lambda x, y: jnp.take_along_axis(x, x[:, :1].argmax(axis=0)[None], axis=0),
    "a loop": lambda x, y: [*_running(x), *_running(y, reverse=True)],
    "a gradient": lambda x, y: jax.grad(lambda x: jnp.sum(jnp.tanh(x @ _WEIGHTS[0]) ** 2))(x),
    "calls": lambda x, y: jax.jit(jax.checkpoint(lambda x: jnp.sin(x) * y))(x),
}  # fmt: skip


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_operations_are_those_of_jax(name):
    """For one row and for five, of one model: the batch has any size."""

    def function(x, y):
        results = _FUNCTIONS[name](x, y)
        results = results if isinstance(results, list) else [results]
        return jnp.concatenate([jnp.ravel(result) for result in results])

    rows = jax.vmap(function)
    model = to_onnx(rows, {"x": (3, 4), "y": (3, 4)}, "result")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for count in (1, 5):
        given = {"x": _X[:count], "y": _Y[:count]}
        feed = {each.name: given[each.name] for each in session.get_inputs()}
        (result,) = session.run(None, feed)
        np.testing.assert_allclose(result, rows(*given.values()), rtol=1e-5, atol=2e-6)


def test_what_does_not_matter_is_left_out():
    def function(x, unused):
        del unused
        return x + jnp.sum(jnp.arange(3) * jnp.sin(2.0))  # a constant

    model = to_onnx(jax.vmap(function), {"x": (4,), "unused": (2,)}, "result")
    assert [each.name for each in model.graph.input] == ["x"]
    assert [node.op_type for node in model.graph.node] == ["Add", "Identity"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (jnp.sort, "operation 'sort', which the translation to ONNX does not cover. Export it as"),
        (lambda x: x + jax.random.uniform(jax.random.PRNGKey(0)), "'random_bits'.*otherwise than"),
        (lambda x: x.astype(jnp.bfloat16) + 1, "'convert_element_type' to bfloat16"),
        (lambda x: jax.lax.dynamic_slice(x, [x.argmax()], [2]), "'gather' in this form"),
        (lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, jnp.exp, x), "'while'"),
    ],
)
def test_what_is_not_covered_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        to_onnx(jax.vmap(function), {"x": (4,)}, "result")
