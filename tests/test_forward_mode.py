"""Forward mode goes through every network and core function, and agrees with reverse mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import adjoint, critic, diffusion, flow, networks

_X, _S, _T = (jax.random.normal(jax.random.PRNGKey(i), (4, dim)) for i, dim in enumerate((2, 3, 1)))
_NOISE = jax.random.normal(jax.random.PRNGKey(3), (3, 4, 2))
_SCHEDULE = diffusion.vp_schedule(4)


def _applied(network, *inputs, dtype="float32"):
    network = network.clone(compute_dtype=dtype)
    variables = network.init(jax.random.PRNGKey(0), *inputs)
    return lambda x: network.apply(variables, *inputs[:-1], x), inputs[-1]


def _velocity(x, t):
    return jnp.sin(x) + t


def _sum_q(x):
    return jnp.sum(jnp.sin(x), axis=-1)


_CASES = {
    "velocity": _applied(networks.VectorField((8,)), _S, _T, _X[:, :1]),
    "velocity bfloat16": _applied(networks.VectorField((8,)), _S, _T, _X, dtype="bfloat16"),
    "critics": _applied(networks.CriticEnsemble((8, 8), 3), _S, _X),
    "timed critics": _applied(networks.TimedCriticEnsemble((8,), 3), _S, _X),
    "value": _applied(networks.StateValue((8,)), _S),
    "noise": _applied(networks.NoisePredictor((8,)), _S, _X, _T),
    "one step": _applied(networks.OneStepActor((8,)), _S, _X),
    "gaussian": _applied(networks.TanhGaussian((8,)), _S, _X),
    "flow matching": (lambda x: flow.flow_matching_loss(_velocity, _X, x, jnp.abs(_T)), _X + 1),
    "reversal": (lambda x: flow.reverse_flow(_velocity, x, jnp.abs(jnp.sin(_T)), 4), _X),
    "sampler": (lambda x: flow.sample_flow(_velocity, x, 4), _X),
    "inpainting": (
        lambda x: flow.sample_flow_inpainted(_velocity, x, 4, _X + 1, jnp.full((4, 2), 0.5)), _X
    ),
    "sde": (lambda x: flow.sample_memoryless_sde(_velocity, _velocity, x, _NOISE), _X),
    "ode and sde": (
        lambda x: flow.sample_flow_and_sde(_velocity, _velocity, x[None], x, _NOISE), _X
    ),
    "terminal adjoint": (lambda x: adjoint.terminal_adjoint(_sum_q, x, 2.0), 0.1 * _X),
    "lean adjoint": (
        lambda x: adjoint.solve_lean_adjoint(_velocity, jnp.stack([x] * 4), x**2), _X
    ),
    "matching loss": (lambda x: adjoint.adjoint_matching_loss(x, 2 * x**2, jnp.cos(x)), _NOISE),
    "pessimism": (lambda x: critic.pessimistic_value(x, 0.5), _NOISE),
    "expectile": (lambda x: critic.expectile_loss(x, 0.9), _X),
    "td loss": (lambda x: critic.td_loss(x, jnp.ones(2), jnp.ones(2)), _X),
    "ddpm": (
        lambda x: diffusion.sample_ddpm(_velocity, _SCHEDULE, x, _NOISE, clip=None), _X
    ),
    "jumps": (lambda x: diffusion.sample_by_jumps(_velocity, _SCHEDULE, x, _NOISE, clip=None), _X),
}  # fmt: skip


@pytest.mark.parametrize("name", _CASES)
def test_forward_mode_agrees_with_reverse_mode(name):
    function, x = _CASES[name]

    def total(x):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(x)))

    change = jnp.cos(3 * x)
    _, forward = jax.jvp(total, (x,), (change,))
    reverse = jnp.vdot(jax.grad(total)(x), change)
    assert jnp.abs(forward) > 1e-4
    np.testing.assert_allclose(forward, reverse, rtol=0.02 if "bfloat16" in name else 1e-3)
