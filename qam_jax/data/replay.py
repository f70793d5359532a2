"""Online experience: a ring of transitions on the device, and its log on disk.

Every transition knows the row of the next one of its episode. So the rows of several environments
stand in the order of their arrival, an episode in progress can be trained on before it ends, and
no window mixes episodes.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qam_jax import memory
from qam_jax.data.dataset import ACTION_LIMIT, gather_windows, make_batch, sample_windows
from qam_jax.files import DamagedError, atomic_write
from qam_jax.types import Array, Batch, TransitionDataset, Transitions, pytree_dataclass


@pytree_dataclass(frozen=True)
class ReplayBuffer:
    """A ring of `C` transitions on the device."""

    transitions: Transitions  # arrays with leading dimension C
    successors: Array  # [C] int32, row of the episode's next transition; -1 while there is none
    size: Array  # [] int32, rows in use


def gather_replay(
    buffer: ReplayBuffer,
    rows: Array,
    horizon_length: int,
    discount: float,
    num_consecutive: int = 1,
) -> Batch:
    """Windows that start at `rows` [B / N]; see `qam_jax.data.dataset.sample_windows`.

    A window that reaches beyond what its episode has gathered so far has weight 0.
    """
    steps, valid = [rows], [jnp.ones(rows.shape, bool)]
    for _ in range(num_consecutive * horizon_length - 1):
        following = buffer.successors[steps[-1]]
        valid.append(valid[-1] & (following >= 0))
        steps.append(jnp.where(valid[-1], following, steps[-1]))
    windows = jnp.stack(steps, axis=1).reshape(-1, horizon_length)
    lasts = jnp.stack(valid, axis=1).reshape(-1, horizon_length)
    next_observations = buffer.transitions.next_observations[windows[:, -1]]
    return make_batch(buffer.transitions, windows, lasts, next_observations, discount)


def sample_mixed(
    dataset: TransitionDataset,
    buffer: ReplayBuffer,
    key: Array,
    batch_size: int,
    horizon_length: int,
    discount: float,
    num_consecutive: int = 1,
) -> Batch:
    """Draws `B` windows, first rows uniform over the dataset followed by the online transitions."""
    num_draws, sizes = batch_size // num_consecutive, (horizon_length, discount, num_consecutive)
    index = jax.random.randint(key, (num_draws,), 0, dataset.num_starts + buffer.size)
    is_offline = jnp.repeat(index < dataset.num_starts, num_consecutive)
    starts = dataset.start_rows[jnp.minimum(index, dataset.num_starts - 1)]
    offline = gather_windows(dataset, starts, *sizes)
    online = gather_replay(buffer, jnp.maximum(index - dataset.num_starts, 0), *sizes)

    def choose(first: Array, second: Array) -> Array:
        return jnp.where(is_offline.reshape(-1, *[1] * (first.ndim - 1)), first, second)

    return jax.tree.map(choose, offline, online)


def sample_split(
    dataset: TransitionDataset,
    buffer: ReplayBuffer,
    key: Array,
    batch_size: int,
    horizon_length: int,
    discount: float,
    num_consecutive: int = 1,
    offline_ratio: float = 0.5,
) -> Batch:
    """Draws a fixed share of the windows from the dataset, and the others online.

    A half is RLPD's (arXiv 2302.02948). The number of draws from the dataset, each of
    `num_consecutive` windows, is the nearest whole one, and the upper of two. Neither the dataset
    nor the buffer may be empty where windows are drawn from it.
    """
    offline_key, online_key = jax.random.split(key)
    num_draws, sizes = batch_size // num_consecutive, (horizon_length, discount, num_consecutive)
    num_offline = math.floor(offline_ratio * num_draws + 0.5)
    offline = sample_windows(dataset, offline_key, num_offline * num_consecutive, *sizes)
    rows = jax.random.randint(online_key, (num_draws - num_offline,), 0, buffer.size)
    online = gather_replay(buffer, rows, *sizes)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), offline, online)


class EpisodeSoFar(NamedTuple):
    """Actions [n, A] of an episode in progress, and the observation [O] after them."""

    actions: np.ndarray
    observation: np.ndarray


class Replay:
    """A `ReplayBuffer`, and the log of the transitions that go in.

    Of more than `capacity` transitions the oldest give way. A transition is written to disk once,
    however many checkpoints there are: `save` writes the transitions since the last call as one
    file, `<folder>/<first row>.npz`. Rows are counted from the first one ever added. Without
    `writes`, another process, which is told the same, writes the files.
    """

    def __init__(
        self,
        capacity: int,
        observation_dim: int,
        action_dim: int,
        folder: Path,
        *,
        writes: bool = True,
    ):
        self._folder, self._capacity, self._writes = folder, capacity, writes
        self._unsaved: list[dict[str, np.ndarray]] = []
        self._newest: dict[int, int] = {}  # the newest row of each episode in progress
        self.num_added = 0
        check_replay_fits(capacity, observation_dim, action_dim)
        self.buffer = ReplayBuffer(
            transitions=Transitions(
                observations=jnp.zeros((capacity, observation_dim)),
                actions=jnp.zeros((capacity, action_dim)),
                rewards=jnp.zeros(capacity),
                masks=jnp.zeros(capacity),
                next_observations=jnp.zeros((capacity, observation_dim)),
            ),
            successors=jnp.full(capacity, -1, jnp.int32),
            size=jnp.int32(0),
        )

    def add(self, transitions: Transitions, episodes: np.ndarray, pad_to: int) -> None:
        """Adds transitions, NumPy arrays in float32; those of one episode are in order.

        `episodes` [N] has the episode of each: a number that no other episode ever has. An episode
        that is missing from a call has ended. `pad_to` is the largest possible N, so that one
        program serves all calls.
        """
        self._unsaved.append({**vars(transitions), "episodes": episodes})
        self._insert(transitions, episodes, pad_to)

    def save(self) -> None:
        """Writes the transitions since the last call. Raises OSError if that fails."""
        if not self._unsaved or not self._writes:
            self._unsaved = []
            return
        parts = self._unsaved
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        path = self._folder / f"{self.num_added - len(columns['episodes']):012d}.npz"
        try:
            with atomic_write(path) as temporary:
                np.savez(temporary, **columns)  # type: ignore[arg-type]  # none is allow_pickle
        except OSError as error:
            raise OSError(
                f"the experience could not be written to {path} ({error}). Is the disk full? Make "
                "room: the same command continues from the last checkpoint."
            ) from error
        self._unsaved = []

    def load(self, num_added: int, episodes: Sequence[int]) -> dict[int, EpisodeSoFar]:
        """Brings a new buffer to its state after `num_added` transitions, at a call of `save`.

        Files of later transitions, which no checkpoint knows of, are removed. Returns how far each
        of the `episodes` in progress has come, as far as the buffer reaches back. Raises
        DamagedError, which says what is missing or damaged.
        """
        if self._writes:
            for path in self._folder.glob("[0-9]*.npz"):
                if int(path.stem) >= num_added:
                    path.unlink()
        if num_added == 0:
            return {}
        columns = _read_log(self._folder, num_added, self._capacity)
        owners = columns.pop("episodes")
        self.num_added = num_added - len(owners)
        self._insert(Transitions(**columns), owners, len(owners))
        self._newest = {each: self._newest[each] for each in episodes if each in self._newest}
        actions, following = columns["actions"], columns["next_observations"]
        return {
            # `row - num_added` counts from the end.
            episode: EpisodeSoFar(actions[owners == episode], following[row - num_added])
            for episode, row in self._newest.items()
        }

    def _insert(self, transitions: Transitions, episodes: np.ndarray, pad_to: int) -> None:
        count = len(episodes)
        rows = np.stack([self.num_added + np.arange(count), self._link(episodes)])
        places = np.full((2, pad_to), self._capacity, np.int32)  # which is nowhere
        places[:, :count] = np.where(rows < 0, self._capacity, rows % self._capacity)
        self.num_added += count
        transitions = jax.tree.map(
            lambda array: np.resize(array, (pad_to, *array.shape[1:])), transitions
        )
        size = np.int32(min(self.num_added, self._capacity))
        self.buffer = _insert(self.buffer, transitions, *places, size)

    def _link(self, episodes: np.ndarray) -> np.ndarray:
        """The earlier row of the same episode for each new row [N], or -1."""
        predecessors = np.empty(len(episodes), np.int64)
        newest: dict[int, int] = {}
        for index, episode in enumerate(episodes.tolist()):
            predecessors[index] = newest.get(episode, self._newest.get(episode, -1))
            newest[episode] = self.num_added + index
        self._newest = newest
        return predecessors


def check_replay_fits(capacity: int, observation_dim: int, action_dim: int, count: int = 1) -> None:
    """Raises MemoryError if `count` buffers do not fit into the device's memory."""
    memory.check_fits(
        f"buffers of {capacity:,} transitions" + (f", for {count} seeds," * (count > 1)),
        4 * count * capacity * (2 * observation_dim + action_dim + 3),
        "Lower --buffer_size (or --online_steps, if --buffer_size is 0) or --num_seeds.",
    )


@partial(jax.jit, donate_argnums=0)
def _insert(
    buffer: ReplayBuffer, transitions: Transitions, places: Array, predecessors: Array, size: Array
) -> ReplayBuffer:
    # As in a dataset; the log keeps the actions that were executed.
    actions = transitions.actions.clip(-ACTION_LIMIT, ACTION_LIMIT)
    transitions = dataclasses.replace(transitions, actions=actions)

    def put(array: Array, values: Array) -> Array:
        return array.at[places].set(values, mode="drop")

    successors = buffer.successors.at[places].set(-1, mode="drop")
    return ReplayBuffer(
        transitions=jax.tree.map(put, buffer.transitions, transitions),
        successors=successors.at[predecessors].set(places, mode="drop"),
        size=size,
    )


def _read_log(folder: Path, num_added: int, capacity: int) -> dict[str, np.ndarray]:
    """The newest `capacity` of the first `num_added` transitions."""
    parts, following, needed = [], num_added, max(0, num_added - capacity)
    paths = [path for path in folder.glob("[0-9]*.npz") if int(path.stem) < num_added]
    for path in sorted(paths, reverse=True):
        if following <= needed:
            break
        try:
            with np.load(path) as file:
                parts.append(dict(file))
        except Exception as error:  # whatever a damaged archive leads to
            if memory.is_exhausted(error):
                raise
            raise DamagedError(f"{path} is damaged ({error}).") from error
        if int(path.stem) + len(parts[-1]["episodes"]) != following:
            break
        following = int(path.stem)
    if following > needed:
        raise DamagedError(f"{folder} lacks the transitions before number {following}.")
    return {
        name: np.concatenate([part[name] for part in parts[::-1]])[-capacity:] for name in parts[0]
    }
