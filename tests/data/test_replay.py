import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box

from qam_jax.data.dataset import ACTION_LIMIT, make_dataset
from qam_jax.data.replay import Replay, gather_replay, sample_mixed, sample_split
from qam_jax.data.sources import no_data
from qam_jax.types import Transitions

_DISCOUNT = 0.9


def _transitions(rng, count, last_mask=1.0):
    """Those of one episode, told apart from all others by their random values."""
    states = rng.normal(size=(count + 1, 3)).astype(np.float32)
    masks = np.ones(count, np.float32)
    masks[-1] = last_mask
    return Transitions(
        observations=states[:-1],
        actions=rng.uniform(-1, 1, size=(count, 2)).astype(np.float32),
        rewards=rng.normal(size=count).astype(np.float32),
        masks=masks,
        next_observations=states[1:],
    )


def _part(transitions, rows):
    return jax.tree.map(lambda array: array[rows], transitions)


def _fill(replay, episodes, chunk=2):
    """Adds episodes in chunks, turn by turn, as environments side by side give them."""
    longest = max(len(episode.rewards) for episode in episodes.values())
    for start in range(0, longest, chunk):
        parts = {
            number: _part(episode, slice(start, start + chunk))
            for number, episode in episodes.items()
            if start < len(episode.rewards)
        }
        owners = [np.full(len(part.rewards), number) for number, part in parts.items()]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts.values())
        replay.add(joined, np.concatenate(owners), pad_to=chunk * len(episodes))


def _expected(episode, row, horizon_length):
    """The window that begins at a row of an episode, written out plainly."""
    count = len(episode.rewards)
    rows = [min(row + k, count - 1) for k in range(horizon_length)]
    valid = [row + k < count for k in range(horizon_length)]
    reward = sum(_DISCOUNT**k * episode.rewards[rows[k]] * valid[k] for k in range(horizon_length))
    return {
        "observations": episode.observations[row],
        "actions": episode.actions[rows],
        "rewards": reward,
        "masks": min(episode.masks[r] for r in rows),
        "weights": float(valid[-1]),
        "next_observations": episode.next_observations[rows[-1]],
    }


def _row_of(replay, observation):
    matches = np.all(replay.buffer.transitions.observations == observation, axis=1)
    return int(np.flatnonzero(matches)[0])


def test_without_data_all_windows_are_of_experience(tmp_path):
    env = gymnasium.Env()
    env.observation_space, env.action_space = Box(-1, 1, (3,)), Box(-1, 1, (2,))
    data = no_data(env).at(0)
    replay = Replay(20, 3, 2, tmp_path)
    _fill(replay, {0: _transitions(np.random.default_rng(0), 5)})
    batch = sample_mixed(data, replay.buffer, jax.random.PRNGKey(0), 64, 1, _DISCOUNT)
    drawn = {_row_of(replay, observation) for observation in np.array(batch.observations)}
    assert drawn == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("horizon_length", [1, 3])
def test_windows_stay_within_their_episode(tmp_path, horizon_length):
    rng = np.random.default_rng(0)
    episodes = {
        0: _transitions(rng, 5, last_mask=0.0),
        1: _transitions(rng, 7),  # in progress, or truncated
        2: _transitions(rng, 1),
    }
    replay = Replay(20, 3, 2, tmp_path)
    _fill(replay, episodes)
    assert int(replay.buffer.size) == replay.num_added == 13
    for episode in episodes.values():
        for row in range(len(episode.rewards)):
            place = jnp.array([_row_of(replay, episode.observations[row])])
            batch = gather_replay(replay.buffer, place, horizon_length, _DISCOUNT)
            for name, value in _expected(episode, row, horizon_length).items():
                np.testing.assert_allclose(getattr(batch, name)[0], value, rtol=1e-6, err_msg=name)


def test_consecutive_windows_follow_their_episode(tmp_path):
    rng = np.random.default_rng(0)
    episodes = {0: _transitions(rng, 5), 1: _transitions(rng, 9)}
    replay = Replay(20, 3, 2, tmp_path)
    _fill(replay, episodes)
    for episode in episodes.values():
        place = jnp.array([_row_of(replay, episode.observations[1])])
        batch = gather_replay(replay.buffer, place, 2, _DISCOUNT, 3)
        for index, row in enumerate([1, 3, 5]):
            if row >= len(episode.rewards):
                assert batch.weights[index] == 0
                continue
            for name, value in _expected(episode, row, 2).items():
                np.testing.assert_allclose(getattr(batch, name)[index], value, rtol=1e-6)


def test_the_oldest_transitions_give_way(tmp_path):
    rng = np.random.default_rng(0)
    first, second = _transitions(rng, 6), _transitions(rng, 6)
    replay = Replay(8, 3, 2, tmp_path)
    _fill(replay, {0: first})
    _fill(replay, {1: second})
    held = np.asarray(replay.buffer.transitions.observations)
    np.testing.assert_array_equal(held[:4], second.observations[2:])
    np.testing.assert_array_equal(held[4:6], first.observations[4:])
    for episode, row in ((first, 4), (second, 0), (second, 3)):
        place = jnp.array([_row_of(replay, episode.observations[row])])
        batch = gather_replay(replay.buffer, place, 3, _DISCOUNT)
        for name, value in _expected(episode, row, 3).items():
            np.testing.assert_allclose(getattr(batch, name)[0], value, rtol=1e-6, err_msg=name)


def test_actions_are_clipped_for_training_and_logged_as_executed(tmp_path):
    transitions = _transitions(np.random.default_rng(0), 2)
    transitions.actions[0, 0] = 1.0
    replay = Replay(4, 3, 2, tmp_path)
    replay.add(transitions, np.zeros(2, int), pad_to=2)
    assert replay.buffer.transitions.actions.max() == np.float32(ACTION_LIMIT)
    replay.save()
    actions = Replay(4, 3, 2, tmp_path).load(2, [0])[0].actions
    np.testing.assert_array_equal(actions, transitions.actions)


@pytest.mark.parametrize("capacity", [50, 16])
def test_a_buffer_read_back_is_the_same_and_goes_on_the_same(tmp_path, capacity):
    rng = np.random.default_rng(0)
    replay = Replay(capacity, 3, 2, tmp_path)
    _fill(replay, {0: _transitions(rng, 9), 1: _transitions(rng, 4)})
    replay.save()
    in_progress = _transitions(rng, 8)
    _fill(replay, {2: _part(in_progress, slice(0, 6)), 3: _transitions(rng, 3)})
    replay.save()
    first, second = (path.stat().st_size for path in sorted(tmp_path.iterdir()))
    assert second < first  # only what is new is written
    again = Replay(capacity, 3, 2, tmp_path)
    so_far = again.load(replay.num_added, [2])[2]
    np.testing.assert_array_equal(so_far.actions, in_progress.actions[:6])
    np.testing.assert_array_equal(so_far.observation, in_progress.next_observations[5])
    jax.tree.map(np.testing.assert_array_equal, again.buffer, replay.buffer)
    for buffer in (replay, again):
        _fill(buffer, {2: _part(in_progress, slice(6, 8))})
    jax.tree.map(np.testing.assert_array_equal, again.buffer, replay.buffer)


def test_what_was_written_after_the_checkpoint_is_dropped(tmp_path):
    rng = np.random.default_rng(0)
    replay = Replay(50, 3, 2, tmp_path)
    _fill(replay, {0: _transitions(rng, 4)})
    replay.save()
    _fill(replay, {1: _transitions(rng, 4)})
    replay.save()
    again = Replay(50, 3, 2, tmp_path)
    assert again.load(4, [0])[0].actions.shape == (4, 2)
    assert len(list(tmp_path.iterdir())) == 1
    assert Replay(50, 3, 2, tmp_path).load(0, [0]) == {}
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_missing_log_is_named(tmp_path):
    rng = np.random.default_rng(0)
    replay = Replay(50, 3, 2, tmp_path)
    for episode in range(3):
        _fill(replay, {episode: _transitions(rng, 4)})
        replay.save()
    middle = tmp_path / "000000000004.npz"
    content = middle.read_bytes()
    middle.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"000000000004.npz is damaged"):
        Replay(50, 3, 2, tmp_path).load(12, [])
    middle.unlink()
    with pytest.raises(ValueError, match="lacks the transitions before number 8"):
        Replay(50, 3, 2, tmp_path).load(12, [])
    Replay(4, 3, 2, tmp_path).load(12, [])  # needs the newest file alone


@pytest.fixture(name="sources")
def _sources(tmp_path):
    """A dataset whose observations are 1, and a buffer whose observations are 2."""
    dataset = make_dataset(
        {
            "observations": np.ones((31, 3)),
            "actions": np.zeros((31, 2)),
            "rewards": np.zeros(31),
            "terminals": np.eye(31)[-1],
        }
    )
    replay = Replay(100, 3, 2, tmp_path)
    transitions = _transitions(np.random.default_rng(0), 10)
    transitions.observations[:] = 2
    replay.add(transitions, np.zeros(10, int), pad_to=10)
    return dataset, replay.buffer


def test_mixed_sampling_is_uniform_over_both_sources(sources):
    batch = sample_mixed(*sources, jax.random.PRNGKey(0), 4000, 2, _DISCOUNT)
    share = np.mean(batch.observations[:, 0] == 2)
    assert abs(share - 10 / 40) < 0.03  # four standard deviations
    assert set(np.unique(batch.observations)) == {1, 2}


@pytest.mark.parametrize("batch_size", [8, 7])
def test_balanced_sampling_takes_half_from_each_source(sources, batch_size):
    batch = sample_split(*sources, jax.random.PRNGKey(0), batch_size, 2, _DISCOUNT)
    assert batch.actions.shape == (batch_size, 2, 2)
    np.testing.assert_array_equal(batch.observations[:4, 0], 1)
    np.testing.assert_array_equal(batch.observations[4:, 0], 2)


@pytest.mark.parametrize(
    ("ratio", "batch_size", "num_consecutive", "num_offline"),
    [
        (0.0, 8, 1, 0), (1.0, 8, 1, 8), (0.3, 8, 1, 2), (0.3, 9, 1, 3), (0.5, 5, 1, 3),
        (0.3, 24, 3, 6), (0.01, 24, 3, 0), (0.99, 24, 3, 24),
    ],
)  # fmt: skip
def test_a_share_of_the_windows_comes_from_the_dataset(
    sources, ratio, batch_size, num_consecutive, num_offline
):
    sizes = batch_size, 2, _DISCOUNT, num_consecutive
    batch = sample_split(*sources, jax.random.PRNGKey(0), *sizes, offline_ratio=ratio)
    assert batch.actions.shape == (batch_size, 2, 2)
    np.testing.assert_array_equal(batch.observations[:num_offline, 0], 1)
    np.testing.assert_array_equal(batch.observations[num_offline:, 0], 2)


@pytest.mark.parametrize("sample", [sample_mixed, sample_split])
def test_consecutive_windows_come_from_one_source(sources, sample):
    batch = sample(*sources, jax.random.PRNGKey(0), 24, 2, _DISCOUNT, 3)
    assert batch.actions.shape == (24, 2, 2)
    chosen = np.asarray(batch.observations[:, 0]).reshape(8, 3)
    np.testing.assert_array_equal(chosen, chosen[:, :1].repeat(3, axis=1))
    assert set(np.unique(chosen)) == {1, 2}
