"""Runs on normalised data and scaled rewards, from the dataset to fine-tuning."""

import dataclasses

import jax
import numpy as np
import pytest

from qam_jax.data.normalization import Normalization, fit_normalization
from qam_jax.data.sources import load_own
from qam_jax.runs.saved import load_run
from qam_jax.training.evaluation import Evaluator
from qam_jax.training.run import inherited_settings
from qam_jax.training.train import train, train_seeds


@pytest.fixture(name="settings", scope="module")
def _settings(short_run):
    return dataclasses.replace(
        short_run, normalize_observations="mean_std", normalize_actions="quantiles",
        reward_scale=0.5, reward_bias=-2.0, offline_ratio=0.25, group="normalized", online_steps=8,
    )  # fmt: skip


@pytest.fixture(name="whole", scope="module")
def _whole(settings, small_config):
    return train(settings, small_config())


@pytest.fixture(name="expected", scope="module")
def _expected(random_data):
    return fit_normalization(load_own(random_data, None).dataset, "mean_std", "quantiles")


def _assert_equal(found, expected):
    assert found.to_json() == expected.to_json()


@pytest.mark.slow
def test_every_checkpoint_holds_the_statistics(whole, expected, settings):
    for step in (8, 16):
        _assert_equal(load_run(whole.folder, step).normalization, expected)
    saved = load_run(whole.folder)
    name, options = settings.env_name, {"num_episodes": 1, "num_envs": 1, "seed": settings.seed}
    for normalization, same in ((saved.normalization, True), (None, False)):
        evaluator = Evaluator(name, normalization=normalization, **options)
        (episode,) = evaluator.evaluate(saved.agent, saved.state)
        evaluator.close()
        assert (episode.episode_return == whole.episodes[0].episode_return) == same


@pytest.mark.slow
def test_experience_is_normalized_like_the_data(whole, expected):
    logged = [np.load(path) for path in sorted((whole.folder / "replay").glob("*.npz"))]
    observations, rewards = (
        np.concatenate([file[name] for file in logged]) for name in ("observations", "rewards")
    )
    states = observations * expected.observation_scale + expected.observation_offset
    np.testing.assert_allclose(np.hypot(*states[:, :2].T), 1, atol=1e-5)  # cosine and sine
    assert (rewards < -2).all()  # 0.5 * r - 2
    angle, speed = np.arctan2(states[:, 1], states[:, 0]), states[:, 2]
    costs = angle**2 + 0.1 * speed**2  # and 0.001 * torque**2, at most 0.004
    np.testing.assert_allclose((rewards + 2) / 0.5, -costs, atol=0.0041)


@pytest.mark.slow
def test_a_run_continues_bit_for_bit(whole, settings, small_config, expected, monkeypatch):
    parts = dataclasses.replace(settings, group="parts", online_steps=4)
    train(parts, small_config())
    monkeypatch.setattr("qam_jax.training.inputs.fit_normalization", None)  # the checkpoint has it
    result = train(dataclasses.replace(parts, online_steps=8), small_config())
    jax.tree.map(np.testing.assert_array_equal, result.state, whole.state)
    _assert_equal(result.normalization, expected)


@pytest.mark.slow
def test_a_run_takes_over_the_statistics_of_the_one_it_starts_from(
    whole, settings, small_config, expected, tmp_path
):
    rng, path = np.random.default_rng(1), tmp_path / "other.npz"
    columns = {"observations": rng.normal(5, 3, (30, 3)), "actions": rng.uniform(-1, 1, (30, 1))}
    np.savez(path, **columns, rewards=np.zeros(30), terminals=np.arange(30) == 29)
    start = inherited_settings(str(whole.folder), "8") | {"run": str(whole.folder), "run_step": "8"}
    start |= {"dataset": str(path)}
    tuned = dataclasses.replace(settings, **start, group="tuned", online_steps=4)
    _assert_equal(train(tuned, small_config()).normalization, expected)
    other = dataclasses.replace(tuned, group="other", normalize_observations="min_max")
    with pytest.raises(ValueError, match=r"this one 'min_max'.*--normalize_observations=mean_std"):
        train(other, small_config())


@pytest.mark.slow
def test_the_identity_changes_nothing(settings, small_config, monkeypatch):
    plain = dataclasses.replace(
        settings, normalize_observations="", normalize_actions="", group="plain"
    )
    expected = train(plain, small_config())
    assert expected.normalization.is_identity
    monkeypatch.setattr(Normalization, "is_identity", False)  # so that it is applied
    same = train(dataclasses.replace(plain, group="identity"), small_config())
    jax.tree.map(np.testing.assert_array_equal, same.state, expected.state)
    assert same.episodes[0].episode_return == expected.episodes[0].episode_return


@pytest.mark.slow
def test_several_seeds_share_the_statistics(whole, settings, small_config, expected):
    both = dataclasses.replace(settings, group="seeds", num_seeds=2)
    first, second = train_seeds(both, small_config())
    for result in (first, second):
        _assert_equal(load_run(result.folder).normalization, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
        first.state,
        whole.state,
    )


def test_statistics_need_data(settings, small_config):
    alone = dataclasses.replace(settings, dataset="", offline_steps=0, group="alone")
    with pytest.raises(ValueError, match="no data to compute statistics of: name some by --data"):
        train(alone, small_config())
