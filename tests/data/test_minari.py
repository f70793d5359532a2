"""Datasets that Minari itself wrote."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, RescaleAction, TimeLimit

from qam_jax.data import sources
from qam_jax.data.dataset import gather_windows

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

_LOW, _HIGH = np.array([-2.0, 0.0]), np.array([2.0, 10.0])


class Walk(gymnasium.Env):
    """Adds up actions; terminates at step `length`, or is cut short by a time limit."""

    def __init__(self, observation_space=None, low=_LOW, high=_HIGH, length=4):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = observation_space or spaces.Dict(
            {"where": box, "a_goal": box, "mode": spaces.Discrete(3)}
        )
        self.action_space = spaces.Box(low, high, dtype=np.float64)
        self._length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._where, self._time = self.np_random.normal(size=2), 0
        return self._observe(), {}

    def step(self, action):
        self._where = self._where + action
        self._time += 1
        return self._observe(), -float(self._time), self._time == self._length, False, {}

    def _observe(self):
        parts = {"where": self._where, "a_goal": -self._where, "mode": self._time % 3}
        if isinstance(self.observation_space, spaces.Dict):
            return {name: parts[name] for name in self.observation_space.spaces}
        if isinstance(self.observation_space, spaces.Tuple):
            return parts["where"], parts["mode"]
        return self._where.reshape(self.observation_space.shape)


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def _collect(env, lengths, dataset_id="test/walk-v0", data_format="hdf5"):
    """Has Minari record episodes; returns what the environment showed, rescaled and flattened."""
    collector = minari.DataCollector(env, data_format=data_format)
    space, rows = env.observation_space, []
    env.action_space.seed(0)
    for seed, length in enumerate(lengths):
        before, _ = collector.reset(seed=seed)
        for step in range(1, length + 1):
            action = env.action_space.sample()
            after, reward, terminated, truncated, _ = collector.step(action)
            ends = terminated or truncated or step == length
            flat = [spaces.utils.flatten(space, each) for each in (before, after)]
            rows.append((flat[0], action, reward, not terminated, flat[1], ends))
            before = after
            if ends:
                break
    collector.create_dataset(dataset_id)
    collector.close()
    names = ("observations", "actions", "rewards", "masks", "next_observations", "ends")
    return {
        name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _assert_equal(loaded, rows):
    dataset = loaded.dataset
    batch = gather_windows(dataset, dataset.start_rows, 1, 1.0)
    assert len(batch.rewards) == len(rows["rewards"])
    for name in ("observations", "rewards", "masks", "next_observations"):
        np.testing.assert_allclose(batch[name], rows[name], rtol=1e-6, err_msg=name)
    actions = 2 * (rows["actions"] - _LOW) / (_HIGH - _LOW) - 1
    np.testing.assert_allclose(batch.actions[:, 0], actions, atol=2e-5)
    ends = np.asarray(dataset.last_rows)[dataset.start_rows] == dataset.start_rows
    np.testing.assert_array_equal(ends, rows["ends"])


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_every_step_is_a_transition_of_the_wrapped_environment(tmp_path, data_format):
    if data_format == "arrow":
        pytest.importorskip("pyarrow")
    # Episodes that terminate, that a time limit cuts short, and that the collector gives up.
    rows = _collect(TimeLimit(Walk(), 3), [3, 3, 1], data_format=data_format)
    wrapped = RescaleAction(FlattenObservation(Walk()), -1.0, 1.0)
    loaded = sources.load_own("minari:test/walk-v0", wrapped)
    _assert_equal(loaded, rows)
    assert rows["masks"].all() and rows["ends"].sum() == 3
    assert "minari:test/walk-v0" in loaded.description
    assert loaded.path == tmp_path / "test" / "walk-v0"

    rows = _collect(Walk(), [4, 2, 4], "walk-v1", data_format)
    _assert_equal(sources.load_own("minari:walk-v1", None), rows)
    assert (~rows["masks"]).sum() == 2 and rows["ends"].sum() == 3


def test_actions_mean_the_same_as_in_the_wrapped_environment():
    rows = _collect(Walk(), [4])
    dataset = sources.load_own("minari:test/walk-v0", None).dataset
    env = RescaleAction(FlattenObservation(Walk()), -1.0, 1.0)
    np.testing.assert_allclose(env.reset(seed=0)[0], dataset.observations[0], rtol=1e-6)
    for action, expected in zip(dataset.actions, rows["next_observations"], strict=False):
        np.testing.assert_allclose(env.step(np.asarray(action))[0], expected, atol=2e-4)


_BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
_SPACES = {
    "vector": _BOX,
    "tuple": spaces.Tuple([_BOX, spaces.Discrete(3)]),
    "nested": spaces.Dict({"where": _BOX}),
}


@pytest.mark.parametrize("space", _SPACES.values(), ids=_SPACES)
def test_kinds_of_observations(space):
    rows = _collect(Walk(space), [4, 4])
    _assert_equal(sources.load_own("minari:test/walk-v0", FlattenObservation(Walk(space))), rows)


def test_parts_are_in_the_order_of_the_environment():
    space = spaces.Dict({"where": _BOX, "a_goal": _BOX}, sort_keys=False)
    rows = _collect(Walk(space), [4])  # Minari forgets the order
    env = FlattenObservation(Walk(space))
    _assert_equal(sources.load_own("minari:test/walk-v0", env), rows)


def test_a_proportion():
    _collect(Walk(), [4, 4])
    loaded = sources.load_own("minari:test/walk-v0", None, proportion=0.7, sparse=True)
    assert loaded.dataset.num_starts == 5
    np.testing.assert_array_equal(loaded.dataset.rewards[loaded.dataset.start_rows], -1)


def test_one_that_is_not_there_is_named_with_those_that_are():
    message = r"no such dataset.*There are: none\. Download.*: minari download D4RL/door/human-v2"
    with pytest.raises(FileNotFoundError, match=message):
        sources.load_own("minari:D4RL/door/human-v2", None)
    _collect(Walk(), [1])
    with pytest.raises(FileNotFoundError, match=r"There are: test/walk-v0\."):
        sources.load_own("minari:door-v2", None)


def test_one_that_is_damaged_is_named(tmp_path):
    _collect(Walk(), [4])
    path = tmp_path / "test" / "walk-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"walk-v0.* cannot be read.*minari download --force test"):
        sources.load_own("minari:test/walk-v0", None)


def test_unbounded_actions_have_to_lie_in_range():
    infinite = np.array([-np.inf, -1.0]), np.array([np.inf, 3.0])
    env = Walk(low=infinite[0], high=infinite[1])
    env.action_space.sample = lambda: np.array([0.5, 2.0])
    _collect(env, [4])
    actions = sources.load_own("minari:test/walk-v0", None).dataset.actions
    np.testing.assert_allclose(actions[:4], [[0.5, 0.5]] * 4, atol=1e-6)
    env.action_space.sample = lambda: np.array([-5.0, 2.0])
    _collect(env, [4], "walk-v1")
    with pytest.raises(ValueError, match=r"walk-v1: its action space has no bounds.* reach 5"):
        sources.load_own("minari:walk-v1", None)


def test_what_is_not_supported_is_named():
    env = Walk(_BOX)
    env.action_space = spaces.Discrete(4)
    _collect(env, [4])
    with pytest.raises(ValueError, match=r"walk-v0: its actions are those of Discrete\(4\).*Box"):
        sources.load_own("minari:test/walk-v0", None)
    _collect(Walk(spaces.Box(-np.inf, np.inf, (1, 2, 1), np.float64)), [4], "walk-v1")
    with pytest.raises(ValueError, match=r"walk-v1: 'observations' has shape .* images are not"):
        sources.load_own("minari:walk-v1", None)


def test_wrong_values_and_other_environments_are_named():
    env = Walk()
    inner = env.step
    env.step = lambda action: (*inner(action)[:1], np.nan, False, False, {})
    _collect(env, [3])
    with pytest.raises(ValueError, match=r"minari:test/walk-v0: 'rewards' has nan at row 0"):
        sources.load_own("minari:test/walk-v0", None)
    _collect(Walk(), [3], "walk-v1")
    with pytest.raises(ValueError, match=r"minari:walk-v1: its observations have 7 dim.* have 2"):
        sources.load_own("minari:walk-v1", Walk(_BOX))


def test_without_minari_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(
        ImportError, match=r'minari:walk-v0: reading.*pip install -e "\.\[minari\]"'
    ):
        sources.load_own("minari:walk-v0", None)
