import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.data.dataset import fingerprint, gather_windows, make_dataset, sample_windows

_DISCOUNT, _HORIZON = 0.9, 4


def _episodes(lengths, seed=0):
    """Episodes of the given numbers of transitions, as lists of rows."""
    rng = np.random.default_rng(seed)
    episodes = []
    for length in lengths:
        episodes.append(
            {
                "observations": rng.normal(size=(length + 1, 3)),
                "actions": rng.uniform(-1, 1, size=(length, 2)),
                "rewards": rng.choice([-1.0, 0.0, -2.0], size=length),
                "masks": (rng.uniform(size=length) < 0.8).astype(float),
            }
        )
    return episodes


def _compact(episodes):
    """OGBench's layout: one row more than transitions, for the final observation."""
    columns = {"observations": np.concatenate([e["observations"] for e in episodes])}
    for name, fill in (("actions", 0.5), ("rewards", 77.0), ("masks", 0.0)):
        padded = [np.concatenate([e[name], np.full_like(e[name][:1], fill)]) for e in episodes]
        columns[name] = np.concatenate(padded)
    ends = [np.eye(len(e["observations"]))[-1] for e in episodes]
    columns["terminals"] = np.concatenate(ends)
    return columns


def _with_next(episodes):
    """The same transitions, each with its next observation."""
    columns = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
    columns["observations"] = np.concatenate([e["observations"][:-1] for e in episodes])
    columns["next_observations"] = np.concatenate([e["observations"][1:] for e in episodes])
    columns["terminals"] = np.concatenate([np.eye(len(e["rewards"]))[-1] for e in episodes])
    return columns


def _window_by_definition(episode, start):
    """The mathematics, row by row."""
    length = len(episode["rewards"])
    valid = [start + k < length for k in range(_HORIZON)]
    rows = [start + k for k in range(_HORIZON) if valid[k]]
    return {
        "observations": episode["observations"][start],
        "rewards": sum(_DISCOUNT ** (row - start) * episode["rewards"][row] for row in rows),
        "masks": min(episode["masks"][row] for row in rows),
        "weights": float(valid[-1]),
        "next_observations": episode["observations"][rows[-1] + 1],
    }


@pytest.mark.parametrize("layout", [_compact, _with_next])
def test_every_window_is_as_defined(layout):
    episodes = _episodes([1, 7, 3, 4, 12])
    dataset = make_dataset(layout(episodes))
    starts = dataset.start_rows
    batch = gather_windows(dataset, starts, _HORIZON, _DISCOUNT)
    expected = [
        (episode, start) for episode in episodes for start in range(len(episode["rewards"]))
    ]
    assert len(starts) == len(expected) == 27
    for i, (episode, start) in enumerate(expected):
        for name, value in _window_by_definition(episode, start).items():
            np.testing.assert_allclose(batch[name][i], value, rtol=1e-5, atol=1e-6, err_msg=name)
        rows = episode["actions"][start : start + _HORIZON]
        np.testing.assert_allclose(batch.actions[i, : len(rows)], rows, atol=2e-5)


@pytest.mark.parametrize("horizon_length", [1, 4])
def test_consecutive_windows_are_neighbours_in_the_batch(horizon_length):
    episodes = _episodes([1, 7, 3, 12])
    dataset = make_dataset(_compact(episodes))
    ends = np.cumsum([len(episode["observations"]) for episode in episodes]) - 1
    starts = np.asarray(dataset.start_rows)
    batch = gather_windows(dataset, jnp.asarray(starts), horizon_length, _DISCOUNT, 3)
    for place in range(3):
        own = jax.tree.map(lambda column, place=place: np.asarray(column[place::3]), batch)
        rows = starts + place * horizon_length
        inside = rows < ends[np.searchsorted(ends, starts)]
        assert not np.any(own.weights[~inside])
        alone = gather_windows(dataset, jnp.asarray(rows[inside]), horizon_length, _DISCOUNT)
        kept = jax.tree.map(lambda column, inside=inside: column[inside], own)
        jax.tree.map(np.testing.assert_array_equal, kept, alone)


def test_consecutive_windows_start_where_single_ones_do():
    dataset = make_dataset(_compact(_episodes([3, 20, 6])))
    sizes = 4, _DISCOUNT
    several = sample_windows(dataset, jax.random.PRNGKey(0), 15, *sizes, 3)
    single = sample_windows(dataset, jax.random.PRNGKey(0), 5, *sizes)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::3], b), several, single)


def test_both_layouts_give_the_same_windows():
    episodes = _episodes([5, 2, 9])
    batches = []
    for layout in (_compact, _with_next):
        dataset = make_dataset(layout(episodes))
        batches.append(gather_windows(dataset, dataset.start_rows, _HORIZON, _DISCOUNT))
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_start_rows_are_drawn_uniformly_and_by_key_alone():
    dataset = make_dataset(_compact(_episodes([3, 20, 6])))
    sample = jax.jit(sample_windows, static_argnums=(2, 3, 4))
    batch = sample(dataset, jax.random.PRNGKey(0), 29_000, 1, 1.0)
    # Row i of the data has an observation of its own: count how often each was drawn.
    _, counts = np.unique(np.asarray(batch.observations)[:, 0], return_counts=True)
    assert len(counts) == 29
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)
    again = sample(dataset, jax.random.PRNGKey(0), 29_000, 1, 1.0)
    jax.tree.map(np.testing.assert_array_equal, batch, again)


def test_padding_is_never_drawn_and_changes_no_draw():
    dataset = make_dataset(_compact(_episodes([3, 20, 6])))
    assert dataset.num_starts == 29
    padded = dataset.replace(start_rows=jnp.pad(dataset.start_rows, (0, 500), constant_values=3))
    key = jax.random.PRNGKey(0)
    batches = [sample_windows(each, key, 1000, _HORIZON, _DISCOUNT) for each in (dataset, padded)]
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_sparse_rewards_and_action_clipping():
    data = _compact(_episodes([6]))
    data["actions"][0] = [1.0, -1.0]
    dataset = make_dataset(data, sparse=True)
    expected = np.where(data["rewards"][:6] != 0, -1.0, 0.0)
    np.testing.assert_array_equal(dataset.rewards[:6], expected)
    limit = np.float32(1 - 1e-5)
    np.testing.assert_array_equal(dataset.actions[0], [limit, -limit])


def test_masks_default_to_one():
    data = _compact(_episodes([4]))
    del data["masks"]
    assert make_dataset(data).masks.min() == 1


def test_observations_are_stored_once_and_as_float32():
    data = _compact(_episodes([50, 50]))
    dataset = make_dataset(data)
    assert dataset.observations.shape == data["observations"].shape
    assert {leaf.dtype for leaf in jax.tree.leaves(dataset)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


def test_fingerprint_tells_data_apart():
    data = _compact(_episodes([4, 4]))
    first, same = make_dataset(data), make_dataset(data)
    data["rewards"][2] += 1
    assert fingerprint(first) == fingerprint(same) != fingerprint(make_dataset(data))
