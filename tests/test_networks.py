import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from qam_jax import networks


def test_critics_of_an_ensemble_are_independent():
    critic = networks.CriticEnsemble((8, 8), 3)
    observations, actions = jnp.ones((5, 4)), jnp.ones((5, 2))
    params = critic.init(jax.random.PRNGKey(0), observations, actions)["params"]
    values = critic.apply({"params": params}, observations, actions)
    assert values.shape == (3, 5)
    assert len(np.unique(values[:, 0])) == 3
    first_only = jax.tree.map(lambda leaf: leaf.at[0].add(1.0), params)
    changed = critic.apply({"params": first_only}, observations, actions)
    assert (changed[0] != values[0]).all()
    np.testing.assert_array_equal(changed[1:], values[1:])


def test_weights_are_xavier_uniform_and_biases_zero():
    mlp = networks.MLP((400, 300), 7)
    params = mlp.init(jax.random.PRNGKey(0), jnp.ones(50))["params"]
    for name, (fan_in, fan_out) in {"Dense_0": (50, 400), "Dense_1": (400, 300)}.items():
        kernel, limit = params[name]["kernel"], np.sqrt(6 / (fan_in + fan_out))
        assert 0.98 * limit < jnp.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)
        assert not params[name]["bias"].any()


def test_layer_norm_only_where_asked_for():
    plain = networks.MLP((8,), 1).init(jax.random.PRNGKey(0), jnp.ones(3))["params"]
    normed = networks.MLP((8,), 1, layer_norm=True).init(jax.random.PRNGKey(0), jnp.ones(3))
    assert "LayerNorm_0" not in plain
    assert "LayerNorm_0" in normed["params"]


def test_layers_by_hand():
    """Dense, GELU (tanh's form), LayerNorm, Dense."""
    mlp, x = networks.MLP((8,), 2, layer_norm=True), jnp.linspace(-2, 2, 12).reshape(4, 3)
    params = mlp.init(jax.random.PRNGKey(0), x)["params"]
    first, last = (np.asarray(params[name]["kernel"]) for name in ("Dense_0", "Dense_1"))
    h = np.asarray(x) @ first
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    h = (h - h.mean(axis=-1, keepdims=True)) / np.sqrt(h.var(axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(mlp.apply({"params": params}, x), h @ last, rtol=1e-4, atol=1e-5)


def test_deterministic_actor_starts_near_zero():
    """Its last layer is scaled so that a variance of 1 / width becomes 0.01 of that."""
    actor, observations = networks.TanhActor((256,)), jnp.ones((5, 3))
    params = actor.init(jax.random.PRNGKey(0), observations, 4)["params"]
    kernel = params["MLP_0"]["Dense_1"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(0.01 * 2 / (256 + 4)), rel=0.1)


def test_noise_predictor_has_the_size_of_the_published_one():
    module, inputs = networks.NoisePredictor((512,) * 4), (jnp.ones(28), jnp.ones(25), jnp.ones(1))
    params = jax.eval_shape(module.init, jax.random.PRNGKey(0), *inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_911_865


def test_both_outputs_of_the_tanh_gaussian_are_xavier_uniform():
    actor = networks.TanhGaussian((300,))
    params = actor.init(jax.random.PRNGKey(0), jnp.ones(3), jnp.ones(100))["params"]
    kernel, limit = params["MLP_0"]["Dense_1"]["kernel"], np.sqrt(6 / (300 + 100))
    assert kernel.shape == (300, 200)
    assert 0.98 * limit < jnp.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)


def test_log_deviation_of_the_tanh_gaussian_lies_between_bounds():
    """Of `N(0, e^2)` and `N(0, e^-20)`: the density of the sample 0 is that of the Gaussian."""
    actor = networks.TanhGaussian(())
    for log_std, bounded in ((50.0, 2.0), (-50.0, -20.0), (-7.0, -7.0)):
        layer = {"kernel": jnp.zeros((3, 2)), "bias": jnp.array([0.0, log_std])}
        params = {"params": {"MLP_0": {"Dense_0": layer}}}
        log_prob = actor.apply(params, jnp.ones(3), jnp.zeros(1)).log_prob
        np.testing.assert_allclose(log_prob, -0.5 * np.log(2 * np.pi) - bounded, rtol=1e-5)


def test_tanh_gaussian_density_integrates_to_one():
    """Numerical integration over (-1, 1), with the density taken at given values."""
    module = networks.TanhGaussian((4,))
    params = module.init(jax.random.PRNGKey(0), jnp.ones(3), jnp.ones(1))
    noise = jnp.linspace(-8, 8, 4001)[:, None]
    sample = module.apply(params, jnp.ones((4001, 3)), noise)
    total = integrate.trapezoid(np.exp(np.float64(sample.log_prob)), np.float64(sample.value[:, 0]))
    np.testing.assert_allclose(total, 1, rtol=1e-3)


def test_tanh_gaussian_is_finite_at_the_borders():
    module = networks.TanhGaussian((4,))
    params = module.init(jax.random.PRNGKey(0), jnp.ones(3), jnp.ones(2))

    def log_prob(noise):
        return module.apply(params, jnp.ones(3), noise).log_prob

    far = jnp.array([30.0, -30.0])
    assert jnp.abs(module.apply(params, jnp.ones(3), far).value).min() == 1
    assert np.isfinite(log_prob(far))
    assert np.isfinite(jax.grad(log_prob)(far)).all()


def test_fourier_features_by_hand():
    module = networks.FourierFeatures(4)
    params = {"params": {"frequencies": jnp.array([0.5, 0.25])}}
    features = module.apply(params, jnp.array([[1.0], [2.0]]))
    np.testing.assert_allclose(features, [[-1, 0, 0, 1], [1, -1, 0, 0]], atol=1e-6)
    fresh = networks.FourierFeatures().init(jax.random.PRNGKey(0), jnp.ones(1))
    assert fresh["params"]["frequencies"].shape == (32,)  # 64 features


def test_noise_predictor_by_hand():
    """The features of the step pass an MLP of their own: Mish between its layers, not after."""
    module = networks.NoisePredictor((4, 3))
    observations, actions, times = jnp.ones((5, 2)), jnp.full((5, 2), -0.5), jnp.full((5, 1), 3.0)
    params = module.init(jax.random.PRNGKey(0), observations, actions, times)["params"]
    phases = 2 * np.pi * 3 * np.asarray(params["FourierFeatures_0"]["frequencies"])

    def mlp(x, layers):
        for index, name in enumerate(sorted(layers)):
            x = x * np.tanh(np.log1p(np.exp(x))) if index else x
            x = x @ layers[name]["kernel"] + layers[name]["bias"]
        return x

    features = mlp(np.concatenate([np.cos(phases), np.sin(phases)]), params["time_MLP"])
    assert features.shape == (3,)
    expected = mlp(np.concatenate([[1, 1, -0.5, -0.5], features]), params["MLP_0"])
    outputs = module.apply({"params": params}, observations, actions, times)
    np.testing.assert_allclose(outputs, np.tile(expected, (5, 1)), rtol=1e-4, atol=1e-5)


def test_timed_critics_take_clean_actions_without_a_time():
    critic = networks.TimedCriticEnsemble((4,), 2)
    observations, actions = jnp.ones((5, 3)), jnp.ones((5, 2))
    params = critic.init(jax.random.PRNGKey(0), observations, actions)
    clean = critic.apply(params, observations, actions)
    assert clean.shape == (2, 5)
    ones = critic.apply(params, observations, actions, jnp.ones((5, 1)))
    np.testing.assert_array_equal(clean, ones)
    assert (critic.apply(params, observations, actions, jnp.zeros((5, 1))) != clean).all()
