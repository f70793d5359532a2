"""Episodes as arrays on the device, and windows drawn from them inside a compiled program."""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from qam_jax.types import Array, Batch, TransitionDataset

_ACTION_LIMIT = 1 - 1e-5  # keeps the inverse of tanh finite


def make_dataset(data: Mapping[str, np.ndarray], *, sparse: bool = False) -> TransitionDataset:
    """Lays checked arrays out as a `TransitionDataset`.

    Args:
      data: `observations` [N, O], `actions` [N, A], `terminals` [N] (1 at the last row of every
        episode), `rewards` [N], and optionally `masks` [N] (default 1) and `next_observations`
        [N, O]. Without `next_observations`, the last row of an episode holds only its final
        observation; with it, every row is a transition. See `qam_jax.data.npz`.
      sparse: makes every reward that is not 0 a -1.

    Returns:
      The dataset, on the default device, actions clipped to +-(1 - 1e-5).
    """
    rewards = np.asarray(data["rewards"], np.float32)
    columns = {
        "observations": np.asarray(data["observations"], np.float32),
        "actions": np.clip(np.asarray(data["actions"], np.float32), -_ACTION_LIMIT, _ACTION_LIMIT),
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
        **{name: jnp.asarray(column) for name, column in columns.items()},
        last_rows=jnp.asarray(last_rows),
        start_rows=jnp.asarray(start_rows),
    )


def sample_windows(
    dataset: TransitionDataset,
    key: Array,
    batch_size: int,
    horizon_length: int,
    discount: float,
) -> Batch:
    """Draws windows of consecutive rows, their first rows uniform over all transitions.

    From `H` rows starting at row j: `R = sum_k discount^k r_{j+k} v_k`, where `v_k` is 1 while the
    episode lasts; the mask is the minimum, and the next observation the one after the last row,
    over rows with `v_k = 1`; the weight is `v_{H-1}`. Rows beyond the episode's end repeat its
    last transition's action.

    Args:
      dataset: the episodes.
      key: source of randomness.
      batch_size: `B`.
      horizon_length: `H`, at least 1.
      discount: per row.

    Returns:
      `B` windows.
    """
    num_starts = dataset.start_rows.shape[0]
    starts = dataset.start_rows[jax.random.randint(key, (batch_size,), 0, num_starts)]
    return gather_windows(dataset, starts, horizon_length, discount)


def gather_windows(
    dataset: TransitionDataset, starts: Array, horizon_length: int, discount: float
) -> Batch:
    """The windows that begin at the rows `starts` [B]; see `sample_windows`."""
    offsets = jnp.arange(horizon_length)
    last_rows = dataset.last_rows[starts]
    unclipped = starts[:, None] + offsets
    valid = (unclipped <= last_rows[:, None]).astype(jnp.float32)
    rows = jnp.minimum(unclipped, last_rows[:, None])
    discounts = jnp.float32(discount) ** offsets
    return Batch(
        observations=dataset.observations[starts],
        actions=dataset.actions[rows],
        rewards=jnp.sum(discounts * dataset.rewards[rows] * valid, axis=1),
        masks=jnp.min(dataset.masks[rows], axis=1),
        weights=valid[:, -1],
        next_observations=dataset.observations[rows[:, -1] + 1],
    )


def fingerprint(dataset: TransitionDataset) -> str:
    """A hash of all values, equal for equal data whatever file it came from."""
    digest = hashlib.sha256()
    for name in sorted(vars(dataset)):
        array = np.ascontiguousarray(getattr(dataset, name))
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def _append_final_rows(
    columns: dict[str, np.ndarray], ends: np.ndarray, next_observations: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Gives every episode one more row, for its final observation."""
    after = ends + 1
    zeros = np.zeros(len(ends), np.float32)
    final = {
        "observations": np.asarray(next_observations[ends], np.float32),
        "actions": np.zeros((len(ends), columns["actions"].shape[1]), np.float32),
        "rewards": zeros,
        "masks": zeros + 1,
    }
    columns = {name: np.insert(columns[name], after, final[name], axis=0) for name in columns}
    return columns, ends + 1 + np.arange(len(ends))
