"""Episodes as arrays on the device, and windows drawn from them inside a compiled program."""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from qam_jax.types import Array, Batch, TransitionDataset

ACTION_LIMIT = 1 - 1e-5  # keeps the inverse of tanh finite


def make_dataset(data: Mapping[str, np.ndarray], *, sparse: bool = False) -> TransitionDataset:
    """Lays checked arrays out as a `TransitionDataset` on the default device; see `layout`."""
    return jax.tree.map(jnp.asarray, layout(data, sparse=sparse))


def layout(data: Mapping[str, np.ndarray], *, sparse: bool = False) -> TransitionDataset:
    """Lays checked arrays out as a `TransitionDataset` of NumPy arrays.

    Args:
      data: `observations` [N, O], `actions` [N, A], `terminals` [N] (1 at the last row of every
        episode), `rewards` [N], and optionally `masks` [N] (default 1) and `next_observations`
        [N, O]. Without `next_observations`, the last row of an episode holds only its final
        observation; with it, every row is a transition. See `qam_jax.data.npz`.
      sparse: makes every reward that is not 0 a -1.

    Returns:
      The dataset, actions clipped to +-(1 - 1e-5). Arrays that need no change are not copied.
    """
    rewards = np.asarray(data["rewards"], np.float32)
    columns = {
        "observations": np.asarray(data["observations"], np.float32),
        "actions": np.clip(np.asarray(data["actions"], np.float32), -ACTION_LIMIT, ACTION_LIMIT),
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
    starts = dataset.start_rows[jax.random.randint(key, (batch_size,), 0, dataset.num_starts)]
    return gather_windows(dataset, starts, horizon_length, discount)


def gather_windows(
    dataset: TransitionDataset, starts: Array, horizon_length: int, discount: float
) -> Batch:
    """The windows that begin at the rows `starts` [B]; see `sample_windows`."""
    offsets = jnp.arange(horizon_length)
    last_rows = dataset.last_rows[starts]
    unclipped = starts[:, None] + offsets
    rows = jnp.minimum(unclipped, last_rows[:, None])
    return make_batch(
        observations=dataset.observations[starts],
        actions=dataset.actions[rows],
        rewards=dataset.rewards[rows],
        masks=dataset.masks[rows],
        valid=unclipped <= last_rows[:, None],
        next_observations=dataset.observations[rows[:, -1] + 1],
        discount=discount,
    )


def make_batch(
    *,
    observations: Array,
    actions: Array,
    rewards: Array,
    masks: Array,
    valid: Array,
    next_observations: Array,
    discount: float,
) -> Batch:
    """Sums windows up; see `sample_windows`.

    Args:
      observations: [B, O] at the first row.
      actions: [B, H, A].
      rewards: [B, H].
      masks: [B, H], those of rows beyond the episode's end repeating the last one's.
      valid: [B, H] whether the episode lasts that long.
      next_observations: [B, O] after the last valid row.
      discount: per row.
    """
    valid = valid.astype(jnp.float32)
    discounts = jnp.float32(discount) ** jnp.arange(valid.shape[1])
    return Batch(
        observations=observations,
        actions=actions,
        rewards=jnp.sum(discounts * rewards * valid, axis=1),
        masks=jnp.min(masks, axis=1),
        weights=valid[:, -1],
        next_observations=next_observations,
    )


def fingerprint(dataset: TransitionDataset) -> str:
    """A hash of all values, equal for equal data whatever file it came from."""
    digest = hashlib.sha256()
    for name in sorted(vars(dataset).keys() - {"num_starts"}):  # which follows from the others
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
