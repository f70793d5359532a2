import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import flow


def _linear_velocity(x, t):
    return 0.5 * x + t


def test_loss_of_one_sample_by_hand():
    noise, action, time = jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0]), jnp.array([0.25])
    # x_t = (0.25, 1.5), f = (0.375, 1.0), target = (1, -2)
    loss = flow.flow_matching_loss(_linear_velocity, noise, action, time)
    np.testing.assert_allclose(loss, ((0.375 - 1) ** 2 + (1.0 + 2) ** 2) / 2, rtol=1e-6)


def test_sampler_is_euler():
    x = jnp.array([[1.0], [-2.0]])
    expected = x
    for i in range(4):
        expected = expected + 0.25 * (0.5 * expected + i / 4)
    np.testing.assert_allclose(flow.sample_flow(_linear_velocity, x, 4), expected, rtol=1e-6)


def test_sampler_does_not_clip():
    assert flow.sample_flow(lambda x, t: 10 + 0 * x, jnp.zeros(3), 5).min() > 9


def test_sampler_maps_noise_to_a_gaussian():
    """The exact flow of N(0.3, 0.2^2): the largest error in 20,000 samples falls as 1/T."""
    mean, std = 0.3, 0.2

    def velocity(x, t):
        variance = (1 - t) ** 2 + (t * std) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    noise = jax.random.normal(jax.random.PRNGKey(0), (20_000, 1))
    errors = [
        float(jnp.abs(flow.sample_flow(velocity, noise, steps) - mean - std * noise).max())
        for steps in (100, 400)
    ]
    assert errors[1] < errors[0] / 3.5, errors
    assert errors[1] < 0.03 * std, errors  # measured 0.026 standard deviations


def test_noise_scale_by_hand():
    # T = 2, h = 0.5: sigma_0^2 = 2 (1 - 0 + 0.5) / 0.5, sigma_1^2 = 2 (1 - 0.5 + 0.5) / 1
    np.testing.assert_allclose(flow.memoryless_noise_scale(2), np.sqrt([6.0, 2.0]), rtol=1e-6)


def test_sde_steps_by_hand():
    initial, noise = jnp.array([[0.5]]), jnp.array([[[1.0]], [[-2.0]]])
    states = flow.sample_memoryless_sde(
        _linear_velocity, lambda x, t: 7 * t + 0 * x, initial, noise
    )
    h, x, expected = 1 / 3, 0.5, [0.5]
    for i in range(2):
        t = i * h
        sigma = np.sqrt(2 * (1 - t + h) / (t + h))
        drift = 2 * (0.5 * x + t) - x / (t + h)
        x = x + h * drift + np.sqrt(h) * sigma * float(noise[i, 0, 0])
        expected.append(x)
    expected.append(x + h * 7 * 2 * h)  # the last step: base flow, no noise
    np.testing.assert_allclose(states[:, 0, 0], expected, rtol=1e-5)


def test_sde_with_one_step_is_the_base_step():
    states = flow.sample_memoryless_sde(
        _linear_velocity, lambda x, t: x, jnp.ones((2, 3)), jnp.zeros((0, 2, 3))
    )
    np.testing.assert_allclose(states, [np.ones((2, 3)), 2 * np.ones((2, 3))])


def test_sde_is_memoryless():
    """The end of a long path does not depend on its start: correlation below 3 standard errors."""
    std, count = 0.3, 20_000

    def velocity(x, t):
        return (t * std**2 - (1 - t)) / ((1 - t) ** 2 + (t * std) ** 2) * x

    keys = jax.random.split(jax.random.PRNGKey(0))
    initial = jax.random.normal(keys[0], (count, 1))
    noise = jax.random.normal(keys[1], (39, count, 1))
    states = flow.sample_memoryless_sde(velocity, velocity, initial, noise)
    correlation = np.corrcoef(states[0, :, 0], states[-1, :, 0])[0, 1]
    assert abs(correlation) < 3 / np.sqrt(count)
    np.testing.assert_allclose(states[-1].std(), std, rtol=0.1)


def test_jit_vmap_grad():
    noise = jax.random.normal(jax.random.PRNGKey(0), (5, 3))
    steps = jax.random.normal(jax.random.PRNGKey(1), (2, 5, 3))

    def velocity(scale):
        return lambda x, t: scale * x - t

    def everything(scale, noise, steps):
        times = jnp.full((*noise.shape[:-1], 1), 0.3)
        matched = flow.flow_matching_loss(velocity(scale), noise, noise + 1, times)
        sampled = flow.sample_flow(velocity(scale), noise, 4)
        states = flow.sample_memoryless_sde(velocity(scale), velocity(scale), noise, steps)
        return jnp.sum(matched) + jnp.sum(sampled) + jnp.sum(states**2)

    eager = everything(0.5, noise, steps)
    np.testing.assert_allclose(jax.jit(everything)(0.5, noise, steps), eager, rtol=1e-5)
    single = jax.vmap(everything, (None, 0, 1))(0.5, noise, steps)
    np.testing.assert_allclose(single.sum(), eager, rtol=1e-5)
    numeric = (everything(0.5 + 1e-2, noise, steps) - everything(0.5 - 1e-2, noise, steps)) / 2e-2
    np.testing.assert_allclose(jax.grad(everything)(0.5, noise, steps), numeric, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_the_dtype_of_its_inputs(dtype):
    noise, steps = jnp.ones((4, 2), dtype), jnp.ones((3, 4, 2), dtype)

    def velocity(x, t):
        chex.assert_type([x, t], dtype)
        return -x * t

    assert flow.sample_flow(velocity, noise, 4).dtype == dtype
    assert flow.sample_memoryless_sde(velocity, velocity, noise, steps).dtype == dtype
    assert flow.flow_matching_loss(velocity, noise, noise, noise[:, :1]).dtype == dtype


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("noise", lambda: flow.flow_matching_loss(None, np.ones(2), np.ones((4, 2)), np.ones(1))),
        ("times", lambda: flow.flow_matching_loss(None, np.ones(2), np.ones(2), np.ones(2))),
        ("step_noise", lambda: flow.sample_memoryless_sde(None, None, np.ones(2), np.ones((3, 4)))),
        ("num_steps", lambda: flow.sample_flow(None, np.ones(2), 0)),
        ("num_steps", lambda: flow.memoryless_noise_scale(0)),
    ],
)
def test_errors_name_the_argument(name, call):
    with pytest.raises(ValueError, match=f"^{name} must"):
        call()


def test_sampling_the_ode_beside_the_sde_changes_neither():
    flow_noise = jax.random.normal(jax.random.PRNGKey(2), (2, 5, 2))
    initial = jax.random.normal(jax.random.PRNGKey(0), (5, 2))
    noise = jax.random.normal(jax.random.PRNGKey(1), (3, 5, 2))

    def velocity(x, t):
        return jnp.sin(x) + t

    def base_velocity(x, t):
        return 9 * jnp.cos(x) - t

    actions, path = flow.sample_flow_and_sde(velocity, base_velocity, flow_noise, initial, noise)
    expected = flow.sample_memoryless_sde(velocity, base_velocity, initial, noise)
    np.testing.assert_allclose(actions, flow.sample_flow(velocity, flow_noise, 4), rtol=1e-5)
    np.testing.assert_allclose(path.states, expected, rtol=1e-5)
    for i, (x, velocities) in enumerate(zip(expected, path.base_velocities, strict=False)):
        np.testing.assert_allclose(velocities, base_velocity(x, i / 4), rtol=1e-5)


def test_sampling_both_names_noise_that_does_not_fit():
    velocities = _linear_velocity, _linear_velocity
    with pytest.raises(ValueError, match="step_noise"):
        flow.sample_flow_and_sde(*velocities, jnp.zeros((1, 2, 1)), *jnp.zeros((2, 3, 4, 1)))


def test_sampled_sde_can_be_differentiated_through_its_steps():
    initial, noise = jnp.ones((5, 2)), jnp.ones((3, 5, 2))

    def end(scale):
        def velocity(x, t):
            return scale * jnp.sin(x) + t

        return flow.sample_memoryless_sde(velocity, velocity, initial, noise)[-1].mean()

    numeric = (end(0.5 + 1e-2) - end(0.5 - 1e-2)) / 2e-2
    np.testing.assert_allclose(jax.grad(end)(0.5), numeric, rtol=1e-2)


def test_deviation_costs_by_hand():
    costs = flow.deviation_costs(jnp.full((2, 3, 2), 2.0), jnp.ones((2, 3, 2)))
    np.testing.assert_allclose(costs[:, 0], [2 * 2 / 6, 2 * 2 / 2], rtol=1e-6)  # sigma^2: 6, 2


def test_reversal_of_a_constant_flow_is_exact():
    actions, distances = jnp.ones((3, 2)), jnp.array([[0.0], [0.4], [1.0]])
    points = flow.reverse_flow(lambda x, t: jnp.full_like(x, 2.0), actions, distances, 5)
    np.testing.assert_allclose(points, 1 - 2 * jnp.broadcast_to(distances, (3, 2)), atol=1e-6)


def test_reversal_takes_the_velocity_at_the_point_that_it_leaves():
    """Of `f = 1.3 x`, there and back shrinks by `(1 - (1.3 / T)^2)^T`."""
    actions = jnp.ones((1, 1))
    points = flow.reverse_flow(lambda x, t: 1.3 * x, actions, jnp.ones((1, 1)), 10)
    back = flow.sample_flow(lambda x, t: 1.3 * x, points, 10)
    np.testing.assert_allclose(back, (1 - 0.13**2) ** 10, rtol=1e-5)
    points = flow.reverse_flow(lambda x, t: t, actions, jnp.full((1, 1), 0.5), 2)
    np.testing.assert_allclose(points, 1 - 0.25 * (1 + 0.75), rtol=1e-6)


def test_reversal_names_distances_that_do_not_fit():
    with pytest.raises(ValueError, match="distances"):
        flow.reverse_flow(_linear_velocity, jnp.zeros((3, 2)), jnp.zeros(3), 4)


def _network_velocity(x, t):
    kernels = jax.random.normal(jax.random.PRNGKey(5), (2, x.shape[-1], x.shape[-1]))
    return jnp.tanh(x @ kernels[0] + t) @ kernels[1]


def _strengths(num_steps, limit=5.0):
    """`(1 - t) / (t r^2)` as the paper writes it, with the limit at `t = 0`."""
    times = np.arange(1, num_steps) / num_steps
    variances = (1 - times) ** 2 / (times**2 + (1 - times) ** 2)
    return np.minimum(limit, [np.inf, *((1 - times) / (times * variances))])


@pytest.mark.parametrize("velocity", [_linear_velocity, _network_velocity])
def test_inpainting_with_weight_0_is_the_plain_sampler(velocity):
    noise, known = jax.random.normal(jax.random.PRNGKey(0), (2, 7, 6))
    plain = jax.jit(lambda: flow.sample_flow(velocity, noise, 10))()
    zero = jnp.zeros_like(noise)
    actions = jax.jit(lambda: flow.sample_flow_inpainted(velocity, noise, 10, known, zero))()
    np.testing.assert_array_equal(actions, plain)


def test_inpainting_of_a_constant_flow_by_hand():
    """The error at the end shrinks by `1 - w c_i / T` in each step, since `d x_1 / d x = 1`."""
    noise, weights = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.4, 0.0])
    known = jnp.array([0.5, 0.5, 0.5])
    actions = flow.sample_flow_inpainted(lambda x, t: 0 * x - 2, noise, 8, known, weights)
    left = np.prod(1 - weights * _strengths(8)[:, None] / 8, axis=0)
    np.testing.assert_allclose(actions, known + left * (noise - 2 - known), rtol=1e-5)


def test_inpainting_of_a_linear_flow_by_hand():
    """Of `f = A x`, whose end depends on all coordinates: the transposed Jacobian is applied."""
    matrix = np.array([[0.5, -1.0], [0.25, 0.75]])
    x, known, weights = np.array([1.0, -0.5]), np.array([0.2, 0.4]), np.array([1.0, 0.5])
    inputs = (jnp.asarray(array, jnp.float32) for array in (x, known, weights))
    noise, *others = inputs
    actions = flow.sample_flow_inpainted(lambda x, t: x @ matrix.T, noise, 5, *others, 3.0)
    for time, strength in zip(np.arange(5) / 5, _strengths(5, limit=3.0), strict=True):
        jacobian = np.eye(2) + (1 - time) * matrix
        correction = (weights * (known - jacobian @ x)) @ jacobian
        x = x + (matrix @ x + strength * correction) / 5
    np.testing.assert_allclose(actions, x, rtol=1e-5)


def test_a_known_beginning_is_kept_and_the_rest_follows_the_flow():
    """An exact flow to pairs of equal numbers: the second follows the first, which is known."""

    def velocity(x, t):
        """Of `x_1 = (u, u)`, `u ~ N(0, 1)`: the posterior mean of `u` says where to go."""
        variance = (1 - t) ** 2
        mean = t * jnp.sum(x, axis=-1, keepdims=True) / (2 * t**2 + variance)
        return (mean - x) / (1 - t)

    noise = jax.random.normal(jax.random.PRNGKey(0), (500, 2))
    known = jnp.broadcast_to(jnp.array([0.8, 0.0]), noise.shape)
    weights = jnp.broadcast_to(jnp.array([1.0, 0.0]), noise.shape)
    actions = flow.sample_flow_inpainted(velocity, noise, 20, known, weights)
    free = flow.sample_flow(velocity, noise, 20)
    errors, free_errors = (jnp.abs(pairs - 0.8).mean(axis=0) for pairs in (actions, free))
    assert errors.max() < 0.2  # measured 0.15
    assert free_errors.min() > 0.8
    assert jnp.abs(actions[:, 0] - actions[:, 1]).mean() < 0.1


@pytest.mark.parametrize("name", ["known", "weights"])
def test_inpainting_names_what_does_not_fit(name):
    inputs = {"known": jnp.zeros((3, 2)), "weights": jnp.zeros((3, 2)), name: jnp.zeros(2)}
    with pytest.raises(ValueError, match=name):
        flow.sample_flow_inpainted(_linear_velocity, jnp.zeros((3, 2)), 4, **inputs)
    with pytest.raises(ValueError, match="max_guidance"):
        flow.sample_flow_inpainted(_linear_velocity, *[jnp.zeros(2), 4] + [jnp.zeros(2)] * 2, -1)
