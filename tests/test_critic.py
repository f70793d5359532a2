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
