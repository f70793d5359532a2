import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import adjoint, flow

_STEPS, _BATCH, _DIM = 7, 5, 3


def _random_velocity(key, dim=_DIM, width=32):
    """A small random network, smooth and far from linear."""
    keys = jax.random.split(key, 3)
    first = jax.random.normal(keys[0], (dim + 1, width))
    second = jax.random.normal(keys[1], (width, dim)) / width**0.5

    def velocity(x, t):
        return jnp.tanh(jnp.concatenate([x, t], axis=-1) @ first) @ second

    return velocity


def _base_step(velocity, x, index, num_steps):
    """One step of the map whose derivative the lean adjoint follows."""
    time = jnp.full((*x.shape[:-1], 1), (index + 1) / num_steps)
    return x + (2 * velocity(x, time) - x / time) / num_steps


def test_equals_automatic_differentiation_along_fixed_states():
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    velocity = _random_velocity(keys[0])
    states = jax.random.normal(keys[1], (_STEPS + 1, _BATCH, _DIM))
    terminal = jax.random.normal(keys[2], (_BATCH, _DIM))

    def end_of_path(perturbation, start):
        """Follows a perturbation of x_start through the steps, linearised at the fixed states."""
        for i in range(start, _STEPS):
            step = lambda x, i=i: _base_step(velocity, x, i, _STEPS)  # noqa: E731
            _, perturbation = jax.jvp(step, (states[i],), (perturbation,))
        return perturbation

    adjoints = adjoint.solve_lean_adjoint(velocity, states, terminal)
    for i in range(_STEPS):
        zero = jnp.zeros((_BATCH, _DIM))
        _, vjp_fn = jax.vjp(lambda p, i=i: end_of_path(p, i), zero)
        expected = vjp_fn(terminal)[0]
        error = jnp.linalg.norm(adjoints[i] - expected) / jnp.linalg.norm(expected)
        assert error < 1e-5, (i, error)


def test_along_a_noiseless_path_it_is_the_gradient_of_the_terminal_cost():
    """Where the states are those of the base map itself, the lean adjoint is plain backprop."""
    velocity = _random_velocity(jax.random.PRNGKey(1))
    start = jax.random.normal(jax.random.PRNGKey(2), (_BATCH, _DIM))

    def simulate(x):
        states = [x]
        for i in range(_STEPS):
            states.append(_base_step(velocity, states[-1], i, _STEPS))
        return jnp.stack(states)

    def cost(x):
        return jnp.sum(jnp.sin(simulate(x)[-1]))

    states = simulate(start)
    adjoints = adjoint.solve_lean_adjoint(velocity, states, jnp.cos(states[-1]))
    np.testing.assert_allclose(adjoints[0], jax.grad(cost)(start), rtol=1e-4, atol=1e-5)


def test_terminal_adjoint_is_the_negative_scaled_gradient_inside_the_box():
    actions = jnp.array([[0.5, -0.25], [2.0, 0.1], [-1.5, 3.0]])
    result = adjoint.terminal_adjoint(lambda a: jnp.sum(a**2, axis=-1), actions, 3.0)
    np.testing.assert_allclose(result, [[-3.0, 1.5], [0.0, -0.6], [0.0, 0.0]], rtol=1e-6)


def test_matching_loss_by_hand():
    # T = 2: sigma^2 = (6, 2); residuals 2 d / sigma + sigma g with d = 1, g = (0.5, -1)
    velocities, base = jnp.full((2, 1, 1), 3.0), jnp.full((2, 1, 1), 2.0)
    adjoints = jnp.array([0.5, -1.0]).reshape(2, 1, 1)
    sigma = np.sqrt([6.0, 2.0])
    expected = np.sum((2 / sigma + sigma * [0.5, -1.0]) ** 2)
    loss = adjoint.adjoint_matching_loss(velocities, base, adjoints)
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


def test_matching_loss_vanishes_at_its_target():
    sigma = flow.memoryless_noise_scale(4)[:, None, None]
    base, adjoints = jax.random.normal(jax.random.PRNGKey(0), (2, 4, 3, 2))
    loss = adjoint.adjoint_matching_loss(base - sigma**2 * adjoints / 2, base, adjoints)
    np.testing.assert_allclose(loss, np.zeros(3), atol=1e-9)


def test_jit_vmap_grad():
    velocity = _random_velocity(jax.random.PRNGKey(0))
    states = jax.random.normal(jax.random.PRNGKey(1), (_STEPS + 1, _BATCH, _DIM))

    def everything(inv_temp, states):
        def q_fn(actions):
            return jnp.sum(jnp.cos(actions), axis=-1)

        terminal = adjoint.terminal_adjoint(q_fn, states[-1] / 3, inv_temp)
        adjoints = adjoint.solve_lean_adjoint(velocity, states, terminal)
        return adjoint.adjoint_matching_loss(states[:-1], 0 * states[:-1], adjoints)

    eager = everything(1.5, states)
    np.testing.assert_allclose(jax.jit(everything)(1.5, states), eager, rtol=1e-5)
    mapped = jax.vmap(everything, (None, 1))(1.5, states)
    np.testing.assert_allclose(mapped, eager, rtol=1e-4)
    gradient = jax.grad(lambda tau: jnp.sum(everything(tau, states)))(1.5)
    up, down = (jnp.sum(everything(1.5 + step, states)) for step in (1e-2, -1e-2))
    np.testing.assert_allclose(gradient, (up - down) / 2e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_the_dtype_of_its_inputs(dtype):
    states = jnp.ones((4, 2, 3), dtype)
    terminal = adjoint.terminal_adjoint(lambda a: jnp.sum(a, axis=-1), states[-1] / 2, 2.0)
    adjoints = adjoint.solve_lean_adjoint(lambda x, t: x * t, states, terminal)
    loss = adjoint.adjoint_matching_loss(states[:-1], states[:-1], adjoints)
    assert {terminal.dtype, adjoints.dtype, loss.dtype} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("states", lambda: adjoint.solve_lean_adjoint(None, np.ones((1, 2)), np.ones(2))),
        ("terminal", lambda: adjoint.solve_lean_adjoint(None, np.ones((3, 2)), np.ones(3))),
        (
            "base_velocities",
            lambda: adjoint.adjoint_matching_loss(
                np.ones((3, 2)), np.ones((2, 2)), np.ones((3, 2))
            ),
        ),
        (
            "adjoints",
            lambda: adjoint.adjoint_matching_loss(
                np.ones((3, 2)), np.ones((3, 2)), np.ones((3, 1))
            ),
        ),
        (
            "the result of q_fn",
            lambda: adjoint.terminal_adjoint(lambda a: a, jnp.ones((3, 2)), 1.0),
        ),
    ],
)
def test_errors_name_the_argument(name, call):
    with pytest.raises(ValueError, match=f"^{name} must"):
        call()
