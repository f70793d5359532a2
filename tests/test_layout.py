"""Products and ensembles as they are laid out for a processor, against the plain computation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import layout, networks
from qam_jax.critic import td_loss
from qam_jax.layout import product


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


# ------------------------------------------------------------------ critics by turns

_SIZE, _OBS, _DIM = 6, 3, 2


@pytest.fixture
def critic(monkeypatch):
    monkeypatch.setattr(layout, "_SMALL_WIDTH", 8)
    return networks.CriticEnsemble((8, 8), 3)


def _arrays(seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), 4)
    shapes = ((_SIZE, _OBS), (_SIZE, _DIM), (_SIZE,), (_SIZE,))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _init(critic, seed=0):
    return critic.init(jax.random.PRNGKey(seed), jnp.zeros(_OBS), jnp.zeros(_DIM))["params"]


def _assert_close(mine, plain):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, plain)


def _at_once(critic, params, observations, actions):
    return critic.apply({"params": params}, observations, actions)


def test_values_by_turns(critic):
    params, (observations, actions, *_) = _init(critic), _arrays()
    mine = networks.critic_values(critic, params, observations, actions, differentiated=False)
    _assert_close(mine, _at_once(critic, params, observations, actions))


def test_td_loss_and_its_gradient(critic):
    params, (observations, actions, targets, weights) = _init(critic), _arrays()

    def plain(params):
        q_values = _at_once(critic, params, observations, actions)
        return 3 * td_loss(q_values, targets, weights), q_values

    def by_turns(params):
        loss, q_values = networks.critic_td_loss(
            critic, params, observations, actions, targets, weights
        )
        return 3 * loss, q_values

    _assert_close(by_turns(params), plain(params))
    _assert_close(*(jax.grad(f, has_aux=True)(params) for f in (by_turns, plain)))


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_mean_value_and_its_gradients(critic, argument):
    """In the actions, which is what it is made for, and in all else."""
    arguments = (_init(critic), *_arrays()[:2])
    cotangents = jnp.arange(1.0, _SIZE + 1)

    def plain(*arguments):
        return jnp.sum(cotangents * jnp.mean(_at_once(critic, *arguments), axis=0))

    def by_turns(*arguments):
        return jnp.sum(cotangents * networks.mean_critic_value(critic, *arguments))

    np.testing.assert_allclose(by_turns(*arguments), plain(*arguments), rtol=1e-5)
    _assert_close(*(jax.grad(f, argument)(*arguments) for f in (by_turns, plain)))


def test_several_seeds_at_once(critic):
    """As one program for two seeds: what each gives alone."""
    params = [_init(critic, seed) for seed in (0, 1)]
    arrays = [_arrays(seed) for seed in (0, 1)]

    def gradients(params, observations, actions, targets, weights):
        data = observations, actions
        loss = jax.grad(
            lambda params: networks.critic_td_loss(critic, params, *data, targets, weights)[0]
        )
        value = jax.grad(
            lambda a: networks.mean_critic_value(critic, params, observations, a).sum()
        )
        return loss(params), value(actions)

    inputs = [(params[i], *arrays[i]) for i in (0, 1)]
    together = jax.jit(jax.vmap(gradients))(*jax.tree.map(lambda *x: jnp.stack(x), *inputs))
    for seed in (0, 1):
        alone = gradients(*inputs[seed])
        _assert_close(jax.tree.map(lambda leaf, s=seed: leaf[s], together), alone)


def test_large_ensembles_take_turns_on_the_cpu_alone(monkeypatch):
    def loops(critic, backend="cpu"):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        params = jax.eval_shape(lambda: _init(critic))
        inputs = jnp.ones((5, _OBS)), jnp.ones((5, _DIM))
        mean = partial(networks.mean_critic_value, critic)
        return "scan" in str(jax.make_jaxpr(mean)(params, *inputs))

    large = networks.CriticEnsemble((512,), 10)
    assert loops(large)
    assert not loops(networks.CriticEnsemble((8,), 10))
    assert not loops(networks.CriticEnsemble((), 10))
    assert not loops(networks.TimedCriticEnsemble((512,), 10))
    assert not loops(large, "gpu")


def test_parameters_stand_where_checkpoints_have_them(critic):
    shapes = jax.tree.map(jnp.shape, _init(critic))
    dense = {"kernel": (3, 5, 8), "bias": (3, 8)}
    assert shapes["VmapMLP_0"]["Dense_0"] == dense
