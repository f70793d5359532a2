import json

import jax
import numpy as np
import pytest

from qam_jax.data.dataset import ACTION_LIMIT, layout, make_dataset, prepare_dataset
from qam_jax.data.demonstrations import Choice
from qam_jax.data.normalization import Normalization, fit_normalization
from qam_jax.data.sources import load_own


@pytest.fixture(name="data")
def _data():
    """Two episodes; one dimension of the observations is constant, but for rounding."""
    rng, rows = np.random.default_rng(0), 200
    observations = rng.normal([3, -20, 0], [0.5, 4, 1e-9], size=(rows, 3))
    observations[[99, 199]] = 1e6  # final observations, which no transition starts from
    return {
        "observations": observations,
        "actions": np.stack([rng.uniform(-0.2, 0.6, rows), np.full(rows, 0.1)], axis=1),
        "rewards": rng.normal(size=rows),
        "terminals": np.isin(np.arange(rows), [99, 199]),
    }


@pytest.mark.parametrize("kind", ["mean_std", "min_max", "quantiles"])
def test_statistics_are_those_of_numpy(data, kind):
    dataset = make_dataset(data)
    rows = np.delete(np.arange(200), [99, 199])
    values = np.asarray(dataset.observations, np.float64)[rows]
    found = fit_normalization(dataset, kind, "")
    if kind == "mean_std":
        offset, scale = values.mean(axis=0), values.std(axis=0)
    else:
        ends = (0, 1) if kind == "min_max" else (0.01, 0.99)
        low, high = np.quantile(values, ends, axis=0)
        offset, scale = (low + high) / 2, (high - low) / 2
    scale[2] = 1  # of a constant dimension
    np.testing.assert_allclose(found.observation_offset, offset, rtol=1e-6)
    np.testing.assert_allclose(found.observation_scale, scale, rtol=1e-6)
    normalized = np.asarray(found.normalize_observations(dataset.observations))[rows]
    assert abs(normalized[:, 2]).max() < 1e-8
    if kind == "mean_std":
        np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(normalized.std(axis=0)[:2], 1, rtol=1e-4)
    else:
        inside = np.mean(abs(normalized) <= 1 + 1e-5, axis=0)
        np.testing.assert_allclose(inside[:2], 1 if kind == "min_max" else 0.98, atol=0.011)
    assert not found.action_offset.any()
    np.testing.assert_array_equal(found.action_scale, 1)


def test_actions_stay_in_their_range_and_come_back(data):
    found = fit_normalization(layout(data), "", "min_max")
    actions = np.asarray(data["actions"], np.float32)
    normalized = found.normalize_actions(actions)
    assert abs(normalized[:198, 0]).max() == pytest.approx(1)
    np.testing.assert_array_equal(normalized[:, 1], 0)
    np.testing.assert_allclose(found.denormalize_actions(normalized)[:99], actions[:99], atol=1e-6)
    tight = fit_normalization(layout(data), "", "quantiles")
    outside = tight.normalize_actions(np.array([[1, 1], [-1, -1]], np.float32))
    np.testing.assert_array_equal(outside, [[1, 0], [-1, 0]])


def test_saved_statistics_are_the_same_to_the_bit(data):
    found = fit_normalization(layout(data), "mean_std", "quantiles")
    again = Normalization.from_json(json.loads(json.dumps(found.to_json())))
    for name, array in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), array, strict=True)
    assert not found.is_identity
    assert Normalization.from_json(Normalization.identity(3, 2).to_json()).is_identity


def test_a_dataset_is_normalized_and_its_rewards_are_scaled(data):
    dataset = make_dataset(data)
    found = fit_normalization(dataset, "min_max", "min_max")
    prepared = prepare_dataset(dataset, found, 2.0, -1.0)
    expected = found.normalize_observations(np.asarray(dataset.observations))
    np.testing.assert_allclose(prepared.observations, expected, rtol=1e-6)
    assert np.max(prepared.actions) == np.float32(ACTION_LIMIT)
    np.testing.assert_allclose(prepared.rewards, 2 * np.asarray(dataset.rewards) - 1, rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(prepared)} == {
        leaf.dtype for leaf in jax.tree.leaves(dataset)
    }
    np.testing.assert_array_equal(prepared.masks, dataset.masks)
    assert prepare_dataset(dataset, Normalization.identity(3, 2)) is dataset


def test_actions_of_any_range_are_normalized(data, tmp_path):
    path, actions = tmp_path / "degrees.npz", 90 * data["actions"]
    np.savez(path, **{**data, "actions": actions})
    with pytest.raises(ValueError, match=r"outside \[-1, 1\].*give --normalize_actions"):
        load_own(path, None)
    dataset = load_own(path, None, choice=Choice(any_actions=True)).dataset
    np.testing.assert_allclose(dataset.actions, actions, rtol=1e-6)
    found = fit_normalization(dataset, "", "min_max")
    normalized = np.asarray(prepare_dataset(dataset, found).actions)
    assert abs(normalized).max() == np.float32(ACTION_LIMIT)
    back = found.denormalize_actions(normalized)
    np.testing.assert_allclose(back[:99], actions[:99], atol=1e-2)


@pytest.mark.parametrize("kind", ["min_max", "quantiles"])
def test_a_constant_action_stays_as_it_is(data, kind):
    """A robot must not move a joint that its data never moved."""
    data["actions"][:, 1] = 0.1
    found = fit_normalization(make_dataset(data), "", kind)
    back = found.denormalize_actions(np.array([[1.0, 1.0], [-1.0, -1.0]]))
    np.testing.assert_allclose(back[:, 1], 0.1, rtol=1e-6)
    assert np.ptp(back[:, 0]) > 0.5
    normalized = found.normalize_actions(np.asarray(data["actions"]))
    np.testing.assert_array_equal(normalized[:, 1], 0)


def test_an_action_that_is_rarely_another_keeps_its_range(data):
    data["actions"][:, 1] = 0.0
    data["actions"][5, 1] = 0.9  # as a gripper that closes once
    found = fit_normalization(make_dataset(data), "", "quantiles")
    assert found.action_offset[1] + found.action_scale[1] == pytest.approx(0.9)
