import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import diffusion

_MEAN, _STD = 0.3, 0.2


def _gaussian_epsilon(schedule):
    """The exact noise predictor where actions are N(0.3, 0.2^2): `E[eps | x_t]`."""

    def epsilon(x, t):
        alpha_bar = schedule.alpha_bars[t.astype(int) - 1]
        variance = alpha_bar * _STD**2 + 1 - alpha_bar
        return jnp.sqrt(1 - alpha_bar) / variance * (x - jnp.sqrt(alpha_bar) * _MEAN)

    return epsilon


def _noise(num_steps, count=20_000):
    keys = jax.random.split(jax.random.PRNGKey(0))
    shape = (count, 1)
    return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (num_steps - 1, *shape))


def test_schedule_of_the_paper():
    betas, alpha_bars = (np.asarray(x, np.float64) for x in diffusion.vp_schedule(10))
    np.testing.assert_allclose(np.cumprod(1 - betas), alpha_bars, rtol=1e-5)
    t = np.arange(1, 11)
    expected = 1 - np.exp(-0.1 / 10 - (10 - 0.1) * (2 * t - 1) / (2 * 10**2))
    np.testing.assert_allclose(betas, expected, rtol=1e-5)
    # the noise rate integrated over unit time: 0.1 + (10 - 0.1) / 2 = 5.05, whatever T is
    for steps in (1, 10, 50):
        np.testing.assert_allclose(
            diffusion.vp_schedule(steps).alpha_bars[-1], np.exp(-5.05), rtol=1e-5
        )
    constant = diffusion.vp_schedule(4, beta_min=2.0, beta_max=2.0)
    np.testing.assert_allclose(constant.betas, np.full(4, 1 - np.exp(-0.5)), rtol=1e-6)


def test_noise_has_the_variance_of_its_step_and_is_undone():
    schedule = diffusion.vp_schedule(10)
    actions, noise = jnp.array([[0.5, -1.0], [0.2, 0.0]]), jnp.array([[1.0, 2.0], [-1.0, 0.5]])
    steps = jnp.array([[1], [10]])
    noisy = diffusion.add_noise(schedule, actions, noise, steps)
    a = np.exp([[-0.01 - 9.9 / 200], [-5.05]])
    np.testing.assert_allclose(noisy, np.sqrt(a) * actions + np.sqrt(1 - a) * noise, rtol=1e-4)
    clean = diffusion.predict_clean(schedule, noisy, noise, steps)
    np.testing.assert_allclose(clean, actions, atol=1e-5)


def test_posterior_has_the_mean_of_bayes_and_the_deviation_of_the_step():
    """Product of `N(x_{t-1}; sqrt(abar) x_0, 1 - abar)` and `N(x_t; sqrt(alpha) x_{t-1}, beta)`."""
    schedule = diffusion.vp_schedule(10)
    betas, alpha_bars = (np.asarray(x, np.float64) for x in schedule)
    noisy, clean = jnp.array([0.7, -1.2]), jnp.array([-0.4, 0.9])
    for t in (2, 6, 10):
        beta, before = betas[t - 1], alpha_bars[t - 2]
        precision = 1 / (1 - before) + (1 - beta) / beta
        mean = np.sqrt(before) / (1 - before) * clean + np.sqrt(1 - beta) / beta * noisy
        for noise in (0.0, 1.0, -2.0):
            x = diffusion.posterior_step(schedule, noisy, clean, jnp.full(2, noise), jnp.array([t]))
            np.testing.assert_allclose(x, mean / precision + noise * np.sqrt(beta), rtol=1e-3)
    last = diffusion.posterior_step(schedule, noisy, clean, jnp.zeros(2), jnp.array([1]))
    np.testing.assert_allclose(last, clean, rtol=1e-6)


def _ddpm_moments(num_steps):
    """Mean and deviation of DDPM samples, by recursion: with this predictor steps are affine."""
    schedule = diffusion.vp_schedule(num_steps)
    betas, alpha_bars = (np.asarray(x, np.float64) for x in schedule)
    mean, variance = 0.0, 1.0
    for t in range(num_steps, 0, -1):
        after, before = alpha_bars[t - 1], alpha_bars[t - 2] if t > 1 else 1.0
        gain = np.sqrt(after) * _STD**2 / (after * _STD**2 + 1 - after)  # of E[x_0 | x_t]
        beta = betas[t - 1]
        slope = np.sqrt(before) * beta / (1 - after) * gain
        slope += np.sqrt(1 - beta) * (1 - before) / (1 - after)
        offset = np.sqrt(before) * beta / (1 - after) * _MEAN * (1 - gain * np.sqrt(after))
        mean, variance = slope * mean + offset, slope**2 * variance
        variance += beta * (t > 1)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_ddpm_of_a_gaussian_has_the_moments_of_its_recursion(num_steps):
    schedule = diffusion.vp_schedule(num_steps)
    actions = diffusion.sample_ddpm(
        _gaussian_epsilon(schedule), schedule, *_noise(num_steps), clip=None
    )
    mean, std = _ddpm_moments(num_steps)
    np.testing.assert_allclose(actions.mean(), mean, atol=4 * std / np.sqrt(20_000))
    np.testing.assert_allclose(actions.std(), std, rtol=0.02)


def test_ddpm_of_a_gaussian_converges_to_it():
    mean, std = _ddpm_moments(1000)
    np.testing.assert_allclose(mean, _MEAN, atol=2e-3)
    np.testing.assert_allclose(std, _STD, rtol=2e-2)


def test_samplers_step_by_hand():
    """One sample, every step written out; the last one gets no noise."""
    schedule = diffusion.vp_schedule(3)
    betas, alpha_bars = (np.asarray(x, np.float64) for x in schedule)
    step_noise = jnp.array([[1.0], [-0.5]])

    def epsilon(x, t):
        return 0.5 * x + 0.1 * t

    def clean(x, t):
        a = alpha_bars[t - 1]
        return (x - np.sqrt(1 - a) * (0.5 * x + 0.1 * t)) / np.sqrt(a)

    jump, drawn = 0.8, 0.8
    for t, z in ((3, 1.0), (2, -0.5), (1, 0.0)):
        jump = np.clip(clean(jump, t) + np.sqrt(betas[t - 1]) * z, -1, 1)
        before, after, beta = (alpha_bars[t - 2] if t > 1 else 1), alpha_bars[t - 1], betas[t - 1]
        x0 = np.clip(clean(drawn, t), -1, 1)
        drawn = (
            np.sqrt(before) * beta * x0 + np.sqrt(1 - beta) * (1 - before) * drawn
        ) / (1 - after) + np.sqrt(beta) * z  # fmt: skip
    start = jnp.array([0.8])
    np.testing.assert_allclose(
        diffusion.sample_by_jumps(epsilon, schedule, start, step_noise), [jump], rtol=1e-4
    )
    np.testing.assert_allclose(
        diffusion.sample_ddpm(epsilon, schedule, start, step_noise), [drawn], rtol=1e-4
    )


def test_jumps_forget_the_start():
    """From the exact predictor of a point, the point comes back whatever the noise was."""
    schedule = diffusion.vp_schedule(5)

    def epsilon(x, t):
        alpha_bar = schedule.alpha_bars[t.astype(int) - 1]
        return (x - jnp.sqrt(alpha_bar) * 0.4) / jnp.sqrt(1 - alpha_bar)

    initial, steps = _noise(5, 20)
    for sampler in (diffusion.sample_by_jumps, diffusion.sample_ddpm):
        np.testing.assert_allclose(sampler(epsilon, schedule, initial, steps), 0.4, atol=1e-4)


@pytest.mark.parametrize("sampler", [diffusion.sample_ddpm, diffusion.sample_by_jumps])
def test_clipping_keeps_actions_in_the_box(sampler):
    schedule = diffusion.vp_schedule(4)
    initial, steps = jnp.ones((2, 3)), jnp.ones((3, 2, 3))

    def epsilon(x, t):
        return -10 + 0 * x

    assert jnp.abs(sampler(epsilon, schedule, initial, steps)).max() <= 1
    assert jnp.abs(sampler(epsilon, schedule, initial, steps, clip=None)).max() > 1


def test_losses_by_hand():
    schedule = diffusion.vp_schedule(10)
    epsilon, noise = jnp.array([[0.5, -1.0]]), jnp.array([[1.0, 1.0]])
    gradients, steps = jnp.array([[2.0, -3.0]]), jnp.array([[10]])
    np.testing.assert_allclose(diffusion.denoising_loss(epsilon, noise), [(0.25 + 4) / 2])
    # -0.5 * (2, -3) - (0.5, -1) = (-1.5, 2.5)
    loss = diffusion.q_score_matching_loss(epsilon, gradients, 0.5)
    np.testing.assert_allclose(loss, [(2.25 + 6.25) / 2])
    guidance = diffusion.soft_guidance_loss(schedule, epsilon, gradients, steps)
    np.testing.assert_allclose(guidance, [np.sqrt(1 - np.exp(-5.05)) * (1 + 3) / 2], rtol=1e-6)


def test_jit_vmap_and_any_batch_shape():
    schedule = diffusion.vp_schedule(3)
    initial, steps = jnp.ones((4, 5, 2)), jnp.full((2, 4, 5, 2), 0.3)

    def epsilon(x, t):
        assert t.shape == (*x.shape[:-1], 1)
        return jnp.tanh(x) * t

    for sampler in (diffusion.sample_ddpm, diffusion.sample_by_jumps):
        whole = jax.jit(lambda a, b, s=sampler: s(epsilon, schedule, a, b))(initial, steps)
        single = jax.vmap(lambda a, b, s=sampler: s(epsilon, schedule, a, b), (0, 1))
        np.testing.assert_allclose(single(initial, steps), whole, rtol=1e-5)
        half = sampler(epsilon, schedule, initial.astype(jnp.bfloat16), steps.astype(jnp.bfloat16))
        assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("num_steps", lambda s: diffusion.vp_schedule(0)),
        ("noise", lambda s: diffusion.add_noise(s, np.ones(2), np.ones(3), np.ones(1, int))),
        ("steps", lambda s: diffusion.add_noise(s, np.ones(2), np.ones(2), np.ones(2, int))),
        ("step_noise", lambda s: diffusion.sample_ddpm(None, s, np.ones(2), np.ones((3, 2)))),
        ("step_noise", lambda s: diffusion.sample_by_jumps(None, s, np.ones(2), np.ones((1, 2)))),
        ("noise", lambda s: diffusion.denoising_loss(np.ones(2), np.ones(3))),
        ("q_gradients", lambda s: diffusion.q_score_matching_loss(np.ones(2), np.ones(3), 1.0)),
        ("q_gradients", lambda s: diffusion.soft_guidance_loss(s, np.ones(2), np.ones(3), None)),
        ("steps", lambda s: diffusion.soft_guidance_loss(s, *[np.ones(2)] * 2, np.ones(2))),
    ],
)
def test_errors_name_the_argument(name, call):
    with pytest.raises(ValueError, match=f"^{name} must"):
        call(diffusion.vp_schedule(3))
