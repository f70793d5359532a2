import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import critic


def test_pessimistic_value_uses_the_population_deviation():
    q_values = jnp.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    expected = [3 - 0.5 * np.sqrt(8 / 3), 2.0]
    np.testing.assert_allclose(critic.pessimistic_value(q_values, 0.5), expected, rtol=1e-6)


@pytest.mark.parametrize("num_qs", [1, 3])
def test_pessimism_has_finite_gradients_where_critics_agree(num_qs):
    q_values = jnp.array([[1.0, 2.0]] * num_qs).at[0, 1].add(0.5)
    value = critic.pessimistic_value(q_values, 0.5)
    np.testing.assert_allclose(value, q_values.mean(axis=0) - 0.5 * q_values.std(axis=0))
    gradient = jax.grad(lambda q: critic.pessimistic_value(q, 0.5).sum())(q_values)
    np.testing.assert_allclose(gradient[:, 0], 1 / num_qs)
    if num_qs > 1:
        plain = jax.grad(lambda q: q.mean() - 0.5 * q.std())(q_values[:, 1])
        np.testing.assert_allclose(gradient[:, 1], plain, rtol=1e-5)


def test_expectile_of_one_half_is_the_mean_and_higher_ones_lie_above():
    samples = jnp.asarray(np.random.default_rng(0).exponential(size=500), jnp.float32)
    grid = jnp.linspace(0, 4, 401)
    minima = [
        grid[critic.expectile_loss(samples[:, None] - grid, kappa).mean(axis=0).argmin()]
        for kappa in (0.5, 0.8, 0.95)
    ]
    np.testing.assert_allclose(minima[0], samples.mean(), atol=0.01)
    assert minima[0] + 0.3 < minima[1] < minima[2] - 0.3


def test_target_by_hand():
    target = critic.td_target(
        jnp.array([-2.0, -1.0]),
        jnp.array([1.0, 0.0]),
        jnp.array([[4.0, 9.0], [6.0, 9.0]]),
        discount=0.9,
        horizon_length=3,
        rho=0.5,
    )
    np.testing.assert_allclose(target, [-2 + 0.9**3 * (5 - 0.5), -1.0], rtol=1e-6)


def test_loss_by_hand():
    loss = critic.td_loss(
        jnp.array([[1.0, 5.0], [2.0, 7.0]]), jnp.array([0.0, 4.0]), jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(loss, (1 + 4) / 4, rtol=1e-6)


def test_jit_vmap_grad():
    q_values = jax.random.normal(jax.random.PRNGKey(0), (3, 4))

    def everything(q_values, rho):
        ones = jnp.ones(q_values.shape[1:])
        target = critic.td_target(ones, ones, q_values, discount=0.9, horizon_length=2, rho=rho)
        return critic.td_loss(q_values, target, ones)

    eager = everything(q_values, 0.5)
    np.testing.assert_allclose(jax.jit(everything)(q_values, 0.5), eager, rtol=1e-6)
    mapped = jax.vmap(everything, (1, None))(q_values, 0.5)
    np.testing.assert_allclose(mapped.mean(), eager, rtol=1e-5)
    assert np.isfinite(jax.grad(everything)(q_values, 0.5)).all()


def test_bfloat16():
    ones = jnp.ones((2, 3), jnp.bfloat16)
    target = critic.td_target(ones[0], ones[0], ones, discount=0.9, horizon_length=2, rho=0.5)
    assert target.dtype == jnp.bfloat16
    assert critic.td_loss(ones, target, ones[0]).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("masks", lambda ones: _target(ones(4), ones(1), ones(2, 4))),
        ("next_q_values", lambda ones: _target(ones(4), ones(4), ones(2, 3))),
        ("targets", lambda ones: critic.td_loss(ones(2, 4), ones(3), ones(4))),
        ("weights", lambda ones: critic.td_loss(ones(2, 4), ones(4), ones(2, 4))),
    ],
)
def test_errors_name_the_argument(name, call):
    with pytest.raises(ValueError, match=f"^{name} must"):
        call(lambda *shape: np.ones(shape))


def _target(rewards, masks, next_q_values):
    return critic.td_target(rewards, masks, next_q_values, discount=0.9, horizon_length=2, rho=0.5)


_ATOMS = jnp.linspace(-3.0, 1.0, 9)


def test_projection_lies_on_the_neighbouring_atoms_and_keeps_the_mean():
    values = jnp.array([-7.0, -3.0, -2.9, -0.5, 0.3, 1.0, 4.0])
    found = critic.project_to_atoms(values, _ATOMS)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(found @ _ATOMS, jnp.clip(values, -3, 1), atol=1e-5)
    for value, row in zip(np.asarray(values), np.asarray(found), strict=True):
        carriers = _ATOMS[np.flatnonzero(row)]
        assert np.all(np.abs(carriers - np.clip(value, -3, 1)) < 0.5)
    np.testing.assert_array_equal(found[3], np.eye(9)[5])  # an atom


def test_quantiles_of_a_distribution():
    one_atom = jnp.eye(9)[jnp.array([0, 4, 8])]
    for level in (0.01, 0.5, 1.0):
        found = critic.atom_quantile(one_atom, _ATOMS, jnp.full(3, level))
        np.testing.assert_array_equal(found, _ATOMS[jnp.array([0, 4, 8])])
    levels = jnp.linspace(0.01, 1, 60)
    spread = jax.nn.softmax(jnp.sin(7 * jnp.arange(9.0)))
    found = critic.atom_quantile(jnp.broadcast_to(spread, (60, 9)), _ATOMS, levels)
    assert np.all(np.diff(found) >= 0)
    assert found[-1] == 1
    uniform = critic.atom_quantile(jnp.full(9, 1 / 9), _ATOMS, jnp.float32(0.3))
    assert uniform == _ATOMS[int(np.ceil(0.3 * 9)) - 1]
    half = jnp.array([0, 0.25, 0, 0.75, 0, 0, 0, 0, 0])
    assert critic.atom_quantile(half, _ATOMS, jnp.float32(1)) == _ATOMS[3]


def test_two_equally_likely_values_are_told_apart_by_the_level():
    """The distribution that fits both best has half of its mass on each."""
    fitted = critic.project_to_atoms(jnp.array([-2.0, 0.5]), _ATOMS).mean(axis=0)
    assert critic.atom_quantile(fitted, _ATOMS, jnp.float32(0.4)) == -2
    assert critic.atom_quantile(fitted, _ATOMS, jnp.float32(0.6)) == 0.5


def test_relative_entropy():
    distributions = jnp.stack([jnp.eye(4)[1], jnp.full(4, 0.25), jnp.array([0.5, 0.5, 0, 0])])
    found = critic.relative_entropy(distributions)
    np.testing.assert_allclose(found, [0, 1, 0.5], atol=1e-6)


def _hinges_by_definition(q, y, w, rewards, masks, weights, discount):
    """Both penalties, pair by pair."""
    _, num_windows, num = q.shape
    lower, upper, count = 0.0, 0.0, 0
    for row in range(num_windows):
        for p in range(num):
            for later in range(p + 1, num):
                if weights[row, later] == 0 or np.any(masks[row, p:later] == 0):
                    continue
                count += 1
                steps = range(p, later)
                gain = sum(discount ** (r - p) * rewards[row, r] for r in steps)
                after = sum(discount ** (r - p - 1) * rewards[row, r] for r in steps if r > p)
                gap = later - p
                low = gain + discount**gap * y[row, later] - q[:, row, p]
                high = after + discount ** (gap - 1) * q[:, row, later] - w[row, p]
                lower += np.mean(np.maximum(low, 0) ** 2)
                upper += np.mean(np.maximum(high, 0) ** 2)
    return lower / max(count, 1), upper / max(count, 1)


def _window_arguments(num, seed=0):
    """Random windows: some tasks are completed, some episodes end."""
    rng = np.random.default_rng(seed)
    q, y, w, rewards = (rng.normal(size=shape) for shape in [(2, 7, num), *3 * [(7, num)]])
    masks = (rng.uniform(size=(7, num)) < 0.8).astype(float)
    ends = rng.integers(num + 1, size=(7, 1))
    return q, y, w, rewards, masks, (np.arange(num) < ends).astype(float)


def _hinges(arguments, discount=0.9):
    arguments = [jnp.asarray(argument, jnp.float32) for argument in arguments]
    return critic.window_hinges(*arguments, discount=discount)


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("discount", [0.0, 0.9])
def test_hinges_are_as_defined(num, discount):
    arguments = _window_arguments(num)
    expected = _hinges_by_definition(*arguments, discount)
    np.testing.assert_allclose(_hinges(arguments, discount), expected, rtol=1e-5)
    assert num > 1 or expected == (0, 0)


def test_hinges_of_one_pair_by_hand():
    q, y, w = np.array([[[1.0, 4.0]], [[3.0, 0.0]]]), np.array([[9.0, 5.0]]), np.array([[2.0, 8.0]])
    rewards, ones = np.array([[-1.0, 7.0]]), np.ones((1, 2))
    lower, upper = _hinges((q, y, w, rewards, ones, ones), 0.5)
    np.testing.assert_allclose(lower, ((-1 + 2.5 - 1) ** 2 + 0) / 2, rtol=1e-6)
    np.testing.assert_allclose(upper, ((4 - 2) ** 2 + 0) / 2, rtol=1e-6)


def test_hinges_of_the_optimal_values_of_a_chain_are_zero():
    """Actions of the data lose; the optimum pays 1 in every step."""
    rng = np.random.default_rng(0)
    rewards = rng.uniform(-1, 1, size=(7, 5))
    best = np.full((7, 5), 1 / (1 - 0.9))
    q = np.broadcast_to(rewards + 0.9 * best, (2, 7, 5))
    ones = np.ones((7, 5))
    np.testing.assert_allclose(_hinges((q, q[0], best, rewards, ones, ones)), 0, atol=1e-10)


def test_hinges_push_earlier_values_up_and_later_values_down():
    arguments = _window_arguments(5)
    q, *fixed = arguments
    for index, sign in ((0, -1), (1, 1)):
        gradient = jax.grad(lambda q, index=index: _hinges((q, *fixed))[index])(jnp.asarray(q))
        assert np.all(sign * gradient >= 0)
        assert np.any(gradient != 0)
    raised = _hinges((q, fixed[0], fixed[1] + 1, *fixed[2:]))
    assert raised[1] < _hinges(arguments)[1]


def test_hinges_do_not_look_beyond_a_completed_task():
    q, y, w, rewards, masks, weights = _window_arguments(5)
    masks[:, 2], weights[:] = 0, 1

    def earlier_gradient(change):
        after = change * (np.arange(5) > 2)
        fixed = (y + after, w + after, rewards + after, masks, weights)
        return jax.grad(lambda q: sum(_hinges((q, *fixed))))(jnp.asarray(q + after))[..., :3]

    np.testing.assert_array_equal(earlier_gradient(3.0), earlier_gradient(0.0))
    assert np.any(earlier_gradient(0.0) != 0)
