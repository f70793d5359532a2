"""The claim of the paper, in closed form: adjoint matching gives `pi_base * exp(tau Q)`.

The base flows are exact (a Gaussian, and a mixture of two), and so is the tilted law. What remains
is the discretisation: the base policy's own Euler sampler is off by O(1/T), for example in its
standard deviation by 15%, 8% and 4% at T = 20, 40 and 80, and the fine-tuned one cannot do better.
So the tolerances are set a little above the measured error at the largest T (in the comments), and
the error has to fall by at least a third with every doubling of T, where 1/T would halve it.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qam_jax import adjoint, flow

_INV_TEMP = 2.0


def _fine_tune(velocity_of, params, base, q_fn, dim, num_steps, *, updates, batch, lr):
    """Trains by the adjoint matching loss alone and returns 100,000 samples of the policy."""
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, updates))
    times = jnp.broadcast_to(
        jnp.arange(num_steps)[:, None, None] / num_steps, (num_steps, batch, 1)
    )

    def loss_fn(params, key):
        start_key, step_key = jax.random.split(key)
        states = flow.sample_memoryless_sde(
            velocity_of(params),
            base,
            jax.random.normal(start_key, (batch, dim)),
            jax.random.normal(step_key, (num_steps - 1, batch, dim)),
        )
        states = jax.lax.stop_gradient(states)
        terminal = adjoint.terminal_adjoint(q_fn, states[-1], _INV_TEMP)
        adjoints = adjoint.solve_lean_adjoint(base, states, terminal)
        velocities = velocity_of(params)(states[:-1], times)
        losses = adjoint.adjoint_matching_loss(velocities, base(states[:-1], times), adjoints)
        return jnp.mean(losses)

    @jax.jit
    def train_and_sample(params):
        def step(carry, key):
            params, opt_state = carry
            updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, key), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(jax.random.PRNGKey(0), updates)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        noise = jax.random.normal(jax.random.PRNGKey(1), (100_000, dim))
        return flow.sample_flow(velocity_of(params), noise, num_steps)

    return np.asarray(train_and_sample(params), np.float64)


def _assert_shrinks(errors, tolerance):
    assert errors[-1] < tolerance, errors
    for coarse, fine in itertools.pairwise(errors):
        assert fine < 2 / 3 * coarse, errors


# ------------------------------------------------------------------------------- one Gaussian

_MEAN, _STD = np.array([0.1, -0.05]), 0.15
_SLOPE = np.array([3.0, -2.0])
_CENTRE, _CURVATURE = np.array([-0.1, 0.2]), 0.5 / _STD**2


def _gaussian_flow(x, t):
    variance = (1 - t) ** 2 + (t * _STD) ** 2
    return _MEAN + (t * _STD**2 - (1 - t)) / variance * (x - t * _MEAN)


def _linear_q(actions):
    return actions @ _SLOPE


def _quadratic_q(actions):
    return -0.5 * _CURVATURE * jnp.sum(jnp.square(actions - _CENTRE), axis=-1)


def _tilted_gaussian(q_fn):
    """Mean and standard deviation of N(mean, std^2) * exp(tau Q)."""
    if q_fn is _linear_q:
        return _MEAN + _INV_TEMP * _STD**2 * _SLOPE, _STD
    precision = 1 / _STD**2 + _INV_TEMP * _CURVATURE
    return (_MEAN / _STD**2 + _INV_TEMP * _CURVATURE * _CENTRE) / precision, precision**-0.5


def _affine_correction(num_steps, params):
    """The base flow plus, at each step, a linear map: it holds the optimum for these Q."""

    def velocity(x, t):
        index = jnp.round(t[..., 0] * num_steps).astype(int)
        linear = jnp.einsum("...ij,...j->...i", params["linear"][index], x - t * _MEAN)
        return _gaussian_flow(x, t) + linear + params["shift"][index]

    return velocity


@pytest.mark.parametrize(
    ("q_fn", "tolerance"),
    [
        # measured at T = 80: 0.045 and 0.086; 0.011 and 0.126
        (_linear_q, {"mean": 0.06, "covariance": 0.10}),
        pytest.param(_quadratic_q, {"mean": 0.03, "covariance": 0.14}, marks=pytest.mark.slow),
    ],
)
def test_tilted_gaussian(q_fn, tolerance):
    mean, std = _tilted_gaussian(q_fn)
    mean_errors, covariance_errors = [], []
    for num_steps in (20, 40, 80):
        params = {"linear": jnp.zeros((num_steps, 2, 2)), "shift": jnp.zeros((num_steps, 2))}
        samples = _fine_tune(
            partial(_affine_correction, num_steps), params, _gaussian_flow, q_fn, 2, num_steps,
            updates=800, batch=512, lr=0.02,
        )  # fmt: skip
        mean_errors.append(np.abs(samples.mean(axis=0) - mean).max() / std)
        deviation = np.cov(samples.T) / std**2 - np.eye(2)
        covariance_errors.append(np.abs(deviation).max())
    _assert_shrinks(mean_errors, tolerance["mean"])
    _assert_shrinks(covariance_errors, tolerance["covariance"])


# -------------------------------------------------------------------------------- a mixture

_MODES, _WEIGHTS, _MODE_STD, _MODE_SLOPE = np.array([-0.4, 0.4]), np.array([0.7, 0.3]), 0.12, 1.0


def _mixture_flow(x, t):
    variance = (1 - t) ** 2 + (t * _MODE_STD) ** 2
    offsets = x - t * _MODES
    share = jax.nn.softmax(np.log(_WEIGHTS) - offsets**2 / (2 * variance), axis=-1)
    velocities = _MODES + (t * _MODE_STD**2 - (1 - t)) / variance * offsets
    return jnp.sum(share * velocities, axis=-1, keepdims=True)


def _network_correction(params):
    def velocity(x, t):
        base = _mixture_flow(x, t)
        hidden = jnp.concatenate([3 * x, 4 * t - 2, base], axis=-1)
        for weights in (params["first"], params["second"]):
            hidden = jax.nn.gelu(hidden @ weights)
        return base + hidden @ params["last"]

    return velocity


@pytest.mark.slow
def test_tilted_mixture():
    tilt = _INV_TEMP * _MODE_SLOPE
    weights = _WEIGHTS * np.exp(tilt * _MODES)  # both modes have the same width
    target = weights[1] / weights.sum()  # 0.3 becomes 0.68
    keys = jax.random.split(jax.random.PRNGKey(2))
    params = {
        "first": jax.random.normal(keys[0], (3, 48)),
        "second": jax.random.normal(keys[1], (48, 48)) / 48**0.5,
        "last": jnp.zeros((48, 1)),
    }
    errors = []
    for num_steps in (5, 10, 20):
        samples = _fine_tune(
            _network_correction, params, _mixture_flow, lambda a: _MODE_SLOPE * a[..., 0], 1,
            num_steps, updates=1500, batch=256, lr=3e-3,
        )  # fmt: skip
        errors.append(abs((samples > 0).mean() - target))
    _assert_shrinks(errors, 0.03)  # with a wider network, at T = 5, 10, 20: 0.16, 0.07, 0.02
