"""Members in turn, against all members at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import critic as core
from qam_jax.agents import ensemble
from qam_jax.networks import CriticEnsemble, TimedCriticEnsemble

_SIZE, _OBS, _DIM = 6, 3, 2


@pytest.fixture
def critic(monkeypatch):
    monkeypatch.setattr(ensemble, "_SMALL", 8)
    critic = CriticEnsemble((8, 8), 3)
    assert ensemble.in_turn(critic)
    return critic


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


def test_values(critic):
    params, (observations, actions, *_) = _init(critic), _arrays()
    mine = ensemble.values(critic, params, observations, actions)
    _assert_close(mine, _at_once(critic, params, observations, actions))


def test_td_loss_and_its_gradient(critic):
    params, (observations, actions, targets, weights) = _init(critic), _arrays()

    def plain(params):
        q_values = _at_once(critic, params, observations, actions)
        return 3 * core.td_loss(q_values, targets, weights), q_values

    def in_turn(params):
        loss, q_values = ensemble.mean_td_loss(
            critic, params, observations, actions, targets, weights
        )
        return 3 * loss, q_values

    _assert_close(in_turn(params), plain(params))
    _assert_close(*(jax.grad(f, has_aux=True)(params) for f in (in_turn, plain)))


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_mean_value_and_its_gradients(critic, argument):
    """In the actions, which is what it is made for, and in all else."""
    arguments = (_init(critic), *_arrays()[:2])
    cotangents = jnp.arange(1.0, _SIZE + 1)

    def plain(*arguments):
        return jnp.sum(cotangents * jnp.mean(_at_once(critic, *arguments), axis=0))

    def in_turn(*arguments):
        return jnp.sum(cotangents * ensemble.mean_value(critic, *arguments))

    np.testing.assert_allclose(in_turn(*arguments), plain(*arguments), rtol=1e-5)
    _assert_close(*(jax.grad(f, argument)(*arguments) for f in (in_turn, plain)))


def test_several_seeds_at_once(critic):
    """As one program for two seeds: what each gives alone."""
    params = [_init(critic, seed) for seed in (0, 1)]
    arrays = [_arrays(seed) for seed in (0, 1)]

    def gradients(params, observations, actions, targets, weights):
        data = observations, actions
        loss = jax.grad(
            lambda params: ensemble.mean_td_loss(critic, params, *data, targets, weights)[0]
        )
        value = jax.grad(lambda a: ensemble.mean_value(critic, params, observations, a).sum())
        return loss(params), value(actions)

    inputs = [(params[i], *arrays[i]) for i in (0, 1)]
    together = jax.jit(jax.vmap(gradients))(*jax.tree.map(lambda *x: jnp.stack(x), *inputs))
    for seed in (0, 1):
        alone = gradients(*inputs[seed])
        _assert_close(jax.tree.map(lambda leaf, s=seed: leaf[s], together), alone)


def test_layout_follows_the_processor_and_the_size(monkeypatch):
    large = CriticEnsemble((512,), 10)
    assert ensemble.in_turn(large)
    assert not ensemble.in_turn(CriticEnsemble((8,), 10))
    assert not ensemble.in_turn(CriticEnsemble((), 10))
    assert not ensemble.in_turn(TimedCriticEnsemble((512,), 10))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not ensemble.in_turn(large)


def test_parameters_stand_where_checkpoints_have_them(critic):
    shapes = jax.tree.map(jnp.shape, _init(critic))
    dense = {"kernel": (3, 5, 8), "bias": (3, 8)}
    assert shapes["VmapMLP_0"]["Dense_0"] == dense
