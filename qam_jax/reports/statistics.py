"""Statistics over tasks and seeds, as rliable defines them (Agarwal et al., arXiv 2108.13264).

Scores are a list of tasks, each an array [..., n] of its runs' scores. The number of runs n may
differ between tasks; every task has the same weight all the same. Leading dimensions `...` are
bootstrap replicates, the same for all tasks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]

_TRIMMED = 0.25  # of the runs at either end, for the interquartile mean


class Estimate(NamedTuple):
    """A statistic with its 95% interval; the interval is nan where it cannot be known."""

    value: float
    low: float
    high: float


def mean_score(scores: Scores) -> np.ndarray:
    """The mean over tasks of each task's mean over its runs, [...]."""
    return np.mean([task.mean(axis=-1) for task in scores], axis=0)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """The mean of the middle half of all runs, [...] (rliable's `aggregate_iqm`).

    Where tasks differ in their number of runs, a run counts by the inverse of that number, so
    that each task has the same weight.
    """
    pooled = np.concatenate(scores, axis=-1)
    sizes = [task.shape[-1] for task in scores]
    if len(set(sizes)) == 1:
        return stats.trim_mean(pooled, _TRIMMED, axis=-1)
    weights = np.repeat(1 / (len(sizes) * np.array(sizes)), sizes)
    order = np.argsort(pooled, axis=-1)
    ends = np.cumsum(weights[order], axis=-1)
    starts = ends - weights[order]
    kept = np.clip(np.minimum(ends, 1 - _TRIMMED) - np.maximum(starts, _TRIMMED), 0, None)
    return (kept * np.take_along_axis(pooled, order, -1)).sum(-1) / kept.sum(-1)


def probability_of_improvement(scores: Scores, others: Scores) -> np.ndarray:
    """The probability that a run is better than one of the others on the same task, [...].

    It is the Mann-Whitney statistic of each task, divided by the number of pairs, and averaged over
    tasks; a tie counts one half.

    Args:
      scores: of one method.
      others: of the other method, on the same tasks in the same order.
    """
    chances = []
    for task, other in zip(scores, others, strict=True):
        difference = task[..., :, None] - other[..., None, :]
        chances.append(((np.sign(difference) + 1) / 2).mean(axis=(-2, -1)))
    return np.mean(chances, axis=0)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """The fraction of runs with a score above each of the thresholds [P], as [..., P].

    This is rliable's profile of the score distribution: the fraction on each task, averaged.
    """
    fractions = [(task[..., None] > thresholds).mean(axis=-2) for task in scores]
    return np.mean(fractions, axis=0)


def bootstrap(
    statistic: Callable[..., np.ndarray],
    *samples: Scores,
    replicates: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic with its 95% percentile interval of the stratified bootstrap.

    The runs of each task of each sample are drawn anew, with replacement, on their own.

    Args:
      statistic: of one `Scores` for each sample.
      *samples: scores of one or more methods; of each task [n], or [n, ...] if the statistic
        takes that.
      replicates: how often the runs are drawn.
      seed: of the draws.

    Returns:
      The statistic and the interval's ends, each as the statistic's shape. The ends are nan where
      a sample has no task with two runs, since nothing then tells how much its runs differ.
    """
    value = np.asarray(statistic(*samples), float)
    if not all(any(len(task) > 1 for task in scores) for scores in samples):
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    rng = np.random.default_rng(seed)
    drawn = [
        [task[rng.integers(len(task), size=(replicates, len(task)))] for task in scores]
        for scores in samples
    ]
    low, high = np.percentile(statistic(*drawn), [2.5, 97.5], axis=0)
    return value, low, high


def estimate(statistic: Callable[..., np.ndarray], *samples: Scores, seed: int = 0) -> Estimate:
    """`bootstrap` of a statistic that is one number."""
    return Estimate(*(float(part) for part in bootstrap(statistic, *samples, seed=seed)))
