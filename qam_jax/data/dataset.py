"""Episodes as arrays on the device, and windows drawn from them inside a compiled program."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qam_jax import memory
from qam_jax.data.normalization import Normalization
from qam_jax.types import Array, Batch, TransitionDataset, Transitions

ACTION_LIMIT = 1 - 1e-5  # keeps the inverse of tanh finite


@dataclasses.dataclass(eq=False)
class DataSource:
    """Data for updates: one dataset for all of them; `Shards` changes as training goes on."""

    dataset: TransitionDataset  # on the default device
    description: str  # one plain line, for the log and the run's metadata
    path: Path  # file or folder that is read

    def at(self, step: int) -> TransitionDataset:
        """Data on the default device for update `step`, from 0; always of the same shapes."""
        return self.dataset

    def next_change(self, step: int) -> int | None:
        """First update after `step` that trains on other data; None if there is none."""
        return None

    def fingerprint(self) -> str:
        """Hash of the data: equal for equal data, wherever they are."""
        return fingerprint(self.dataset)

    def metrics(self) -> dict[str, float]:
        """Values to log, by name."""
        return {}

    def close(self) -> None:
        """Ends background work."""


def make_dataset(
    data: Mapping[str, np.ndarray], *, sparse: bool = False, any_actions: bool = False
) -> TransitionDataset:
    """Calls `layout` for the default device. Raises MemoryError if its memory is too small."""
    laid_out = layout(data, sparse=sparse, any_actions=any_actions)
    return jax.tree.map(jnp.asarray, check_dataset_fits(laid_out))


def check_dataset_fits(dataset: TransitionDataset) -> TransitionDataset:
    """Returns the NumPy arrays of a dataset; raises MemoryError if the device cannot hold them."""
    memory.check_fits(
        f"the data ({dataset.num_starts:,} transitions)",
        sum(array.nbytes for array in jax.tree.leaves(dataset)),
        "Lower --dataset_proportion, or split them into a folder of smaller files, of which "
        "--ogbench_dataset_dir holds one at a time.",
    )
    return dataset


def prepare_dataset(
    dataset: TransitionDataset,
    normalization: Normalization,
    reward_scale: float = 1.0,
    reward_bias: float = 0.0,
) -> TransitionDataset:
    """Normalises a dataset on the device, and makes every reward `r` a `scale * r + bias`.

    Raises MemoryError if there is no room for its arrays beside those that it is made from.
    """
    if normalization.is_identity and (reward_scale, reward_bias) == (1, 0):
        return dataset
    check_dataset_fits(dataset)
    actions = normalization.normalize_actions(dataset.actions)
    return dataclasses.replace(
        dataset,
        observations=normalization.normalize_observations(dataset.observations),
        actions=actions.clip(-ACTION_LIMIT, ACTION_LIMIT),
        rewards=reward_scale * dataset.rewards + reward_bias,
    )


def layout(
    data: Mapping[str, np.ndarray], *, sparse: bool = False, any_actions: bool = False
) -> TransitionDataset:
    """Lays out checked fields, see `qam_jax.data.checks`, as a `TransitionDataset` of NumPy arrays.

    With `sparse`, every reward that is not 0 becomes -1. Actions are clipped to +-(1 - 1e-5),
    except with `any_actions`. Arrays that need no change are not copied.
    """
    rewards, actions = (np.asarray(data[name], np.float32) for name in ("rewards", "actions"))
    columns = {
        "observations": np.asarray(data["observations"], np.float32),
        "actions": actions if any_actions else np.clip(actions, -ACTION_LIMIT, ACTION_LIMIT),
        "rewards": np.where(rewards != 0, np.float32(-1), np.float32(0)) if sparse else rewards,
        "masks": np.asarray(data.get("masks", np.ones_like(rewards)), np.float32),
    }
    ends = np.flatnonzero(data["terminals"])
    if "next_observations" in data:
        columns, ends = _append_final_rows(columns, ends, data["next_observations"])
    num_rows = len(columns["rewards"])
    lengths = np.diff(ends, prepend=-1)
    last_rows = np.repeat(ends - 1, lengths).astype(np.int32)
    start_rows = np.flatnonzero(np.arange(num_rows) <= last_rows).astype(np.int32)
    return TransitionDataset(
        **columns, last_rows=last_rows, start_rows=start_rows, num_starts=np.int32(len(start_rows))
    )


def take_leading(
    data: Mapping[str, np.ndarray], proportion: float, source: Path | str
) -> dict[str, np.ndarray]:
    """Keeps the first `int(T * proportion)` of `T` transitions; the last row ends an episode.

    The flag `--dataset_proportion` of QAM's published code does the same (arXiv 2601.14234).
    Raises ValueError, about `source`, if the proportion is not in (0, 1] or leaves no transition.
    """
    if not 0 < proportion <= 1:
        raise ValueError(
            f"the proportion of a dataset to use must be above 0 and at most 1, got {proportion}."
        )
    has_next = "next_observations" in data
    transitions = np.flatnonzero((data["terminals"] == 0) | has_next)
    count = int(len(transitions) * proportion)
    if count == 0:
        raise ValueError(
            f"{source}: no transition is left of {len(transitions)} with a proportion of "
            f"{proportion}. Use more of the dataset."
        )
    if count < len(transitions):
        num_rows = transitions[count - 1] + (1 if has_next else 2)  # 2: its next observation
        data = {name: array[:num_rows] for name, array in data.items()}
    terminals = np.array(data["terminals"])
    terminals[-1] = 1
    return {**data, "terminals": terminals}


def sample_windows(
    dataset: TransitionDataset,
    key: Array,
    batch_size: int,
    horizon_length: int,
    discount: float,
    num_consecutive: int = 1,
) -> Batch:
    """Draws `B` windows of `H` consecutive rows; every transition is equally likely to start one.

    A window that starts at row j has the reward `R = sum_k discount^k r_{j+k} v_k`, where `v_k` is
    1 while the episode lasts. Over the rows with `v_k = 1`, its mask is the minimum, and its next
    observation follows the last one. Its weight is `v_{H-1}`. Rows beyond the end of the episode
    repeat the action of its last transition.

    Every row that is drawn starts `N = num_consecutive` windows, of which `B` is a multiple, one
    after the other at the rows j, j + H, ...; they are neighbours in the batch.
    """
    shape = (batch_size // num_consecutive,)
    starts = dataset.start_rows[jax.random.randint(key, shape, 0, dataset.num_starts)]
    return gather_windows(dataset, starts, horizon_length, discount, num_consecutive)


def gather_windows(
    dataset: TransitionDataset,
    starts: Array,
    horizon_length: int,
    discount: float,
    num_consecutive: int = 1,
) -> Batch:
    """Windows that start at the rows `starts` [B / N]; see `sample_windows`."""
    last_rows = dataset.last_rows[starts][:, None]
    unclipped = starts[:, None] + jnp.arange(num_consecutive * horizon_length)
    rows = jnp.minimum(unclipped, last_rows).reshape(-1, horizon_length)
    valid = (unclipped <= last_rows).reshape(-1, horizon_length)
    next_observations = dataset.observations[rows[:, -1] + 1]
    return make_batch(dataset, rows, valid, next_observations, discount)


def make_batch(
    data: TransitionDataset | Transitions,
    rows: Array,
    valid: Array,
    next_observations: Array,
    discount: float,
) -> Batch:
    """Reduces the `rows` [B, H] of windows to a batch; see `sample_windows`.

    `valid` [B, H] says whether the episode lasts this long; beyond its end stands its last row. The
    `next_observations` [B, O] come after the last valid row.
    """
    valid = valid.astype(jnp.float32)
    discounts = jnp.float32(discount) ** jnp.arange(valid.shape[1])
    return Batch(
        observations=data.observations[rows[:, 0]],
        actions=data.actions[rows],
        rewards=jnp.sum(discounts * data.rewards[rows] * valid, axis=1),
        masks=jnp.min(data.masks[rows], axis=1),
        weights=valid[:, -1],
        next_observations=next_observations,
    )


def fingerprint(dataset: TransitionDataset) -> str:
    """Hash of all values: equal for equal data, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(vars(dataset).keys() - {"num_starts"}):  # it follows from the others
        array = np.ascontiguousarray(getattr(dataset, name))
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def _append_final_rows(
    columns: dict[str, np.ndarray], ends: np.ndarray, next_observations: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Adds a row to every episode, for its final observation."""
    final = {"observations": next_observations[ends], "actions": 0, "rewards": 0, "masks": 1}
    columns = {name: np.insert(columns[name], ends + 1, final[name], axis=0) for name in columns}
    return columns, ends + 1 + np.arange(len(ends))
