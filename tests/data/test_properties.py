"""Properties that hold for any data: files of transitions, windows and the replay buffer."""

import tempfile
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from qam_jax.data.checks import FIELDS, check_transitions
from qam_jax.data.dataset import gather_windows, layout
from qam_jax.data.npz import load_npz
from qam_jax.data.replay import Replay, gather_replay
from qam_jax.types import Transitions

_few = hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
_ROWS, _DISCOUNT = 24, 0.9
_gather_windows = jax.jit(gather_windows, static_argnums=(2, 3))
_gather_replay = jax.jit(gather_replay, static_argnums=(2, 3))


@st.composite
def _transitions(draw, rows=_ROWS):
    """Sound transitions in either layout, told apart by their random values."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    terminals = draw(arrays.arrays(bool, rows, fill=st.nothing()))
    terminals[-1], terminals[0] = True, False
    data = {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, size=(rows, 2)),
        "terminals": terminals.astype(float),
        "rewards": rng.normal(size=rows),
        "masks": (rng.uniform(size=rows) < 0.8).astype(float),
    }
    if draw(st.booleans()):
        following = np.roll(data["observations"], -1, axis=0)
        data["next_observations"] = np.where(terminals[:, None], following + 9, following)
    return data


@_few
@hypothesis.given(
    data=_transitions(),
    save=st.sampled_from([np.savez, np.savez_compressed]),
    dtype=st.sampled_from(["<f4", "<f8", ">f8", "<f2"]),
    order=st.sampled_from("CF"),
)
def test_sound_data_are_read_back_as_float32(data, save, dtype, order):
    stored = {name: np.asarray(array, dtype, order=order) for name, array in data.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        save(path, **stored)
        loaded = load_npz(path)
    assert loaded.keys() == data.keys()
    for name, array in loaded.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, stored[name].astype(np.float32))


@_few
@hypothesis.given(data=_transitions(), draw=st.data())
def test_any_single_fault_is_named_with_its_place(data, draw):
    check_transitions(data, source="data")
    name = draw.draw(st.sampled_from([name for name in FIELDS if name in data]))
    place = tuple(draw.draw(st.integers(0, length - 1)) for length in data[name].shape)
    data[name] = data[name].copy()
    data[name][place] = draw.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    at = f"row {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "")
    with pytest.raises(ValueError, match=f"^data: '{name}' has (nan|inf|-inf) at {at}; 1 of "):
        check_transitions(data, source="data")


def _expected(data, start, horizon_length):
    """The window that starts at a row with `next_observations`, written out plainly."""
    end = start + int(np.flatnonzero(data["terminals"][start:])[0])  # last row of the episode
    rows = [row for row in range(start, start + horizon_length) if row <= end]
    padded = rows + [end] * (horizon_length - len(rows))
    return {
        "observations": data["observations"][start],
        "actions": data["actions"][padded],
        "rewards": sum(_DISCOUNT ** (row - start) * data["rewards"][row] for row in rows),
        "masks": min(data["masks"][row] for row in rows),
        "weights": float(len(rows) == horizon_length),
        "next_observations": data["next_observations"][rows[-1]],
    }


def _with_next(data):
    """The same transitions in the layout where every row is one."""
    if "next_observations" in data:
        return data
    keep = data["terminals"] == 0
    ends = np.append(data["terminals"][1:], 1)
    following = np.roll(data["observations"], -1, axis=0)
    data = {**data, "terminals": ends, "next_observations": following}
    return {name: array[keep] for name, array in data.items()}


def _assert_windows(batch, index, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(
            getattr(batch, name)[index], value, rtol=2e-5, atol=2e-5, err_msg=name
        )


@_few
@hypothesis.given(data=_transitions(), horizon_length=st.sampled_from([1, 3]))
def test_every_window_stays_within_its_episode(data, horizon_length):
    dataset, rows = layout(data), _with_next(data)
    count = int(dataset.num_starts)
    assert count == len(rows["rewards"])
    # Equal shapes for all examples, so that one program serves them all.
    padding = 2 * _ROWS - len(dataset.rewards)
    padded = {
        name: np.pad(array, [(0, padding), *[(0, 0)] * (array.ndim - 1)])
        for name, array in vars(dataset).items()
        if array.ndim and name != "start_rows"
    }
    starts = np.resize(dataset.start_rows, _ROWS)
    batch = _gather_windows(
        dataset.replace(**padded, start_rows=starts), starts, horizon_length, _DISCOUNT
    )
    batch = jax.tree.map(np.asarray, batch)
    for index in range(count):
        _assert_windows(batch, index, _expected(rows, index, horizon_length))


_CAPACITY, _CHUNK = 12, 4


@hypothesis.settings(_few, max_examples=10)
@hypothesis.given(
    chunks=st.lists(
        st.lists(st.integers(0, 2), min_size=1, max_size=_CHUNK), min_size=1, max_size=6
    ),
    horizon_length=st.sampled_from([1, 3]),
    saved=st.integers(1, 6),
)
def test_a_replay_buffer_holds_the_newest_and_survives_a_restart(chunks, horizon_length, saved):
    """Three environments add to the buffer; an environment without a row in a call has ended."""
    rng, owners, numbers = np.random.default_rng(0), [], [0, 1, 2]
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(_CAPACITY, 3, 2, Path(folder))
        added = []
        for index, chunk in enumerate(chunks):
            numbers = [number if env in chunk else number + 3 for env, number in enumerate(numbers)]
            episodes = np.array([numbers[env] for env in chunk])
            count = len(episodes)
            added.append(
                Transitions(
                    observations=rng.normal(size=(count, 3)).astype(np.float32),
                    actions=rng.uniform(-1, 1, size=(count, 2)).astype(np.float32),
                    rewards=rng.normal(size=count).astype(np.float32),
                    masks=(rng.uniform(size=count) < 0.8).astype(np.float32),
                    next_observations=rng.normal(size=(count, 3)).astype(np.float32),
                )
            )
            owners += episodes.tolist()
            replay.add(added[-1], episodes, pad_to=_CHUNK)
            if index % saved == 0:
                replay.save()
        replay.save()
        again = Replay(_CAPACITY, 3, 2, Path(folder))
        again.load(replay.num_added, numbers)
    jax.tree.map(np.testing.assert_array_equal, again.buffer, replay.buffer)

    total = len(owners)
    newest = range(max(0, total - _CAPACITY), total)
    assert int(replay.buffer.size) == len(newest) and replay.num_added == total
    data = vars(jax.tree.map(lambda *parts: np.concatenate(parts), *added))
    rows = np.resize(np.array(newest) % _CAPACITY, _CAPACITY)
    batch = jax.tree.map(np.asarray, _gather_replay(replay.buffer, rows, horizon_length, _DISCOUNT))
    for index, start in enumerate(newest):
        own = [row for row in range(start, total) if owners[row] == owners[start]]
        episode = {name: array[own] for name, array in data.items()}
        episode["terminals"] = np.eye(1, len(own), len(own) - 1)[0]
        _assert_windows(batch, index, _expected(episode, 0, horizon_length))
