"""What a dataset holds, and whether an offline method can learn from it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qam_jax.data.dataset import ACTION_LIMIT
from qam_jax.types import TransitionDataset

_NEAR_LIMIT = 0.99  # an action beyond is within 1% of the range's ends
_MANY, _MOST = 0.25, 0.5  # shares of cut windows, and of actions at limits, worth a sentence
_SCALES = 100.0  # ratio of standard deviations from which dimensions differ in scale
_FAR = 30.0  # mean or standard deviation of an observation that is far from 0 and 1


class Dimensions(NamedTuple):
    """Statistics of each dimension of observations or actions, [D] each."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    same_as: np.ndarray  # first dimension with the same values; often the dimension itself

    @property
    def constant(self) -> np.ndarray:
        """Whether all values of a dimension are equal, [D]."""
        return self.low == self.high


class Windows(NamedTuple):
    """What training makes of the data: windows of `horizon_length` rows."""

    horizon_length: int
    discount: float
    cut: float  # share that ends after the episode, and so has no weight in the losses
    completed: float  # share with weight in which the task is completed
    short_episodes: int  # with fewer transitions than a window
    values: tuple[float, float]  # bounds of any value, from the rewards


class Inspection(NamedTuple):
    """Numbers that describe a dataset of `E` episodes."""

    lengths: np.ndarray  # [E] transitions
    returns: np.ndarray  # [E] sums of rewards, without discount
    completed: np.ndarray  # [E] whether the task was completed: a mask is 0
    rewards: np.ndarray  # [R] distinct values, in order
    reward_shares: np.ndarray  # [R] share of the transitions
    observations: Dimensions
    actions: Dimensions
    at_limits: np.ndarray  # [A] share of the actions within 1% of -1 or 1
    clipped: np.ndarray  # [A] share of the actions that are clipped, at +-(1 - 1e-5)
    windows: Windows


def inspect(dataset: TransitionDataset, horizon_length: int, discount: float) -> Inspection:
    """Inspects a dataset, for windows of `horizon_length` rows and a discount per row.

    Raises ValueError if there is no transition.
    """
    starts, lasts, num_rows = transitions(dataset)
    ends = np.unique(lasts)
    firsts = starts[np.searchsorted(starts, np.append(-1, ends[:-1]), side="right")]
    rewards = np.asarray(dataset.rewards, np.float64)[starts]
    is_done = np.asarray(dataset.masks) == 0
    done = np.append(0, np.cumsum(is_done))  # before each row
    values, counts = np.unique(rewards, return_counts=True)
    actions = np.asarray(dataset.actions)[starts]
    window_ends = starts + horizon_length - 1
    fits = window_ends <= lasts
    lengths = ends - firsts + 1
    return Inspection(
        lengths=lengths,
        returns=np.add.reduceat(rewards, np.searchsorted(starts, firsts)),
        completed=done[ends + 1] > done[firsts],
        rewards=values,
        reward_shares=counts / len(rewards),
        observations=_describe(np.asarray(dataset.observations)[:num_rows]),
        actions=_describe(actions),
        at_limits=np.mean(np.abs(actions) >= _NEAR_LIMIT, axis=0),
        clipped=np.mean(np.abs(actions) >= np.float32(ACTION_LIMIT), axis=0),
        windows=Windows(
            horizon_length=horizon_length,
            discount=discount,
            cut=float(np.mean(~fits)),
            completed=float(
                np.mean(fits & (done[np.minimum(window_ends, lasts) + 1] > done[starts]))
            ),
            short_episodes=int(np.sum(lengths < horizon_length)),
            values=_value_bounds(rewards, is_done[starts], discount),
        ),
    )


def transitions(dataset: TransitionDataset) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows with a transition [M], last such rows of their episodes [M], number of observations.

    Padding is left out. Raises ValueError if there is no transition.
    """
    starts = np.asarray(dataset.start_rows)[: int(dataset.num_starts)]
    if not len(starts):
        raise ValueError("there is no transition to inspect: name data by --dataset.")
    lasts = np.asarray(dataset.last_rows)[starts]
    return starts, lasts, int(lasts[-1]) + 2


def _describe(values: np.ndarray) -> Dimensions:
    columns: dict[bytes, int] = {}
    same_as = [columns.setdefault(values[:, i].tobytes(), i) for i in range(values.shape[1])]
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    return Dimensions(values.min(axis=0), values.max(axis=0), mean, std, np.array(same_as))


def _value_bounds(rewards: np.ndarray, is_done: np.ndarray, discount: float) -> tuple[float, float]:
    """Bounds of discounted sums of one reward up to any number; none follows where `is_done`."""
    longest = 1 / (1 - discount) if discount < 1 else np.inf
    sums = np.append(rewards, longest * rewards[~is_done & (rewards != 0)])
    return sums.min(), sums.max()


def verdict(data: Inspection) -> list[str]:
    """Plain sentences on what stands in the way of learning, the gravest first."""
    found = [*_faults_of_tasks(data), *_faults_of_actions(data), *_faults_of_scales(data)]
    found = found or ["Nothing stands in the way of learning offline."]
    constant = data.observations.constant
    if constant.any():
        found.append(f"Constant observations: {_listed(constant)}. They do no harm.")
    return found


def _faults_of_tasks(data: Inspection) -> Iterator[str]:
    """Faults of rewards, and of windows."""
    low, high, is_completed = data.rewards[0], data.rewards[-1], data.completed.any()
    if not is_completed and low == high:
        yield (
            f"No episode has a success, and every reward is {low:g}: an offline method can "
            "learn nothing here but to imitate."
        )
    elif not is_completed:
        yield (
            "No episode completes the task (no mask is 0): the rewards alone, from "
            f"{low:g} to {high:g}, tell good actions from bad ones."
        )
    elif low == high == 0:
        yield "Every reward is 0, so every value is 0: an offline method can only imitate."
    windows = data.windows
    shorter = "choose a shorter --config.horizon_length."
    if windows.short_episodes:
        yield (
            f"{windows.short_episodes:,} of {len(data.lengths):,} episodes are shorter than a "
            f"chunk of {windows.horizon_length} actions, and train no critic: {shorter}"
        )
    elif windows.cut > _MANY:
        yield (
            f"{windows.cut:.0%} of the windows of {windows.horizon_length} rows end after their "
            f"episode, and train no critic: {shorter}"
        )
    if is_completed and not windows.completed:
        yield f"No window that counts holds a completed task, so no critic learns of it: {shorter}"


def _faults_of_actions(data: Inspection) -> Iterator[str]:
    actions, at_limits = data.actions, data.at_limits
    largest = np.maximum(-actions.low, actions.high).max()
    if largest > 1:
        yield (
            f"Actions reach {largest:.3g}, but policies act in [-1, 1]: train with "
            "--normalize_actions=min_max."
        )
        return
    if at_limits.mean() > _MOST:
        share = "All" if at_limits.min() == 1 else f"{at_limits.mean():.0%} of the"
        yield (
            f"{share} actions are within 1% of -1 or 1. Where full speed is not meant, check that "
            "they were divided by the environment's bounds, and not clipped."
        )
    if actions.constant.any():
        yield f"Constant actions: {_listed(actions.constant)}. Nothing is learnt of them."
    elif largest < 0.1:
        yield (
            f"No action is beyond {largest:.2g}, a small part of [-1, 1]. With "
            "--normalize_actions=min_max policies stay in this part, at its full resolution."
        )


def _faults_of_scales(data: Inspection) -> Iterator[str]:
    moves = ~data.observations.constant
    std, mean = data.observations.std[moves], np.abs(data.observations.mean[moves])
    if moves.any() and (std.max() > _SCALES * std.min() or max(std.max(), mean.max()) > _FAR):
        yield (
            f"Observations are of unlike or large scales: standard deviations from {std.min():.2g} "
            f"to {std.max():.2g}, means up to {mean.max():.2g} from 0. Networks learn "
            "faster with --normalize_observations=mean_std."
        )


def _listed(which: np.ndarray) -> str:
    """Dimensions in words: `dimension 3`, `dimensions 0, 4, 5 and 7 more`."""
    places = np.flatnonzero(which)
    shown = ", ".join(map(str, places[:8])) + (
        f" and {len(places) - 8} more" if places[8:].size else ""
    )
    return f"dimension{'s' * (len(places) > 1)} {shown}"
