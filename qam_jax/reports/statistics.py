"""Statistics over tasks and seeds, and tests between two groups of runs.

Statistics are those of rliable (Agarwal et al., arXiv 2108.13264). They are written out here since
rliable takes the same number of seeds on every task, and so that intervals are reproducible.

Scores are a list of tasks, each an array [..., n] of the scores of its runs. The number of runs n
may differ between tasks; every task has the same weight. Leading dimensions `...` are bootstrap
replicates, equally many for all tasks.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]

_TRIMMED = 0.25  # fraction of the runs at either end, for the interquartile mean
_LEVEL = 0.05
_ENOUGH = 5  # runs on either side from which on Welch's test can trust their standard deviation
WELCH = "Welch's t-test"
STUDENT = "Student's t-test"
PREDICTION = "95% prediction interval"
FISHER = "Fisher's exact test over episodes"
UNTESTED = "not tested: one run each"
NO_SPREAD = "not tested: no spread over runs"


class Sample(NamedTuple):
    """Summary of the scores of several runs, as published tables give it."""

    mean: float
    std: float  # sample standard deviation over runs (`ddof=1`); nan for a single run
    num_runs: int
    episodes: int = 0  # in the evaluation of a run if scores are success rates in percent; else 0


class TestResult(NamedTuple):
    """Result of a two-sided test at the 5% level between two samples."""

    difference: float  # of the means
    difference_low: float  # 95% interval of the difference; nan where the test has none
    difference_high: float
    standing: str  # `within`, `above` or `below`; `untested` where no test is possible
    test: str  # name of the test
    p_value: float  # nan without a test


def mean_score(scores: Scores) -> np.ndarray:
    """Mean over tasks of each task's mean over runs, [...]."""
    return np.mean([task.mean(axis=-1) for task in scores], axis=0)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Mean of the middle half of all runs, [...] (rliable's `aggregate_iqm`).

    Where tasks differ in their number of runs, a run is weighted by the inverse of that number, so
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
    """Probability that a run is better than a run of another method on the same task, [...].

    The Mann-Whitney statistic of each task, divided by the number of pairs, is averaged over tasks;
    a tie counts one half. Both sides have the same tasks in the same order.
    """
    chances = []
    for task, other in zip(scores, others, strict=True):
        difference = task[..., :, None] - other[..., None, :]
        chances.append(((np.sign(difference) + 1) / 2).mean(axis=(-2, -1)))
    return np.mean(chances, axis=0)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Fraction of runs above each of the thresholds [P], averaged over tasks, [..., P]."""
    return np.mean([(task[..., None] > thresholds).mean(axis=-2) for task in scores], axis=0)


def bootstrap(
    statistic: Callable[..., np.ndarray], *samples: Scores, replicates: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Statistic with its 95% percentile interval from a stratified bootstrap.

    The runs of each task of each sample are resampled separately, with replacement. The statistic
    takes the scores of each sample: of each task [n], or [n, ...] if it takes more dimensions.

    Returns:
      The statistic and both ends of the interval, each in the statistic's shape. The ends are nan
      where a sample has no task with two runs: nothing then tells how much its runs differ.
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


def estimate(name: str, statistic: Callable[..., np.ndarray], *samples: Scores) -> dict[str, float]:
    """`bootstrap` of a statistic with one value, as columns of a table: `x`, `x_low`, `x_high`."""
    names = (name, f"{name}_low", f"{name}_high")
    return dict(zip(names, map(float, bootstrap(statistic, *samples)), strict=True))


def summarize_runs(scores: Sequence[float], episodes: int = 0) -> Sample:
    """Sample with the mean and the standard deviation of these scores."""
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
    return Sample(float(np.mean(scores)), deviation, len(scores), episodes)


def compare_samples(ours: Sample, theirs: Sample) -> TestResult:
    """Tests whether two samples of at least one run each have the same mean.

    - Five runs or more on both sides: Welch's t-test, which allows unequal variances.
    - Two to four on one side: Student's t-test, which pools the variances. Welch's test would trust
      the standard deviation of so few runs, and be wrong in 10 to 20% of cases instead of 5%.
    - A single run on one side: whether the run lies in the 95% prediction interval of the other
      side (a t interval, for normally distributed runs).
    - No variance on either side: Fisher's exact test over the episodes of all runs, if scores are
      success rates.
    """
    difference, (n, m) = ours.mean - theirs.mean, (ours.num_runs, theirs.num_runs)
    several = [sample for sample in (ours, theirs) if sample.num_runs > 1]
    low = high = nan = math.nan
    if not several:
        return TestResult(difference, nan, nan, "untested", UNTESTED, nan)
    if not any(sample.std > 0 for sample in several):
        if not (ours.episodes and theirs.episodes):
            standing = "within" if difference == 0 else "untested"
            return TestResult(difference, nan, nan, standing, NO_SPREAD, nan)
        totals = np.array([sample.num_runs * sample.episodes for sample in (ours, theirs)])
        successes = np.round(np.array([ours.mean, theirs.mean]) / 100 * totals)
        table = np.stack([successes, totals - successes], axis=1).astype(int)
        test, p_value = FISHER, float(stats.fisher_exact(table).pvalue)
    else:
        if len(several) == 1:
            test, freedom = PREDICTION, several[0].num_runs - 1.0
            variance = several[0].std ** 2 * (1 + 1 / several[0].num_runs)
        elif min(n, m) >= _ENOUGH:
            parts = ours.std**2 / n, theirs.std**2 / m
            test, variance = WELCH, sum(parts)
            freedom = variance**2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
        else:
            test, freedom = STUDENT, n + m - 2.0
            pooled = (ours.std**2 * (n - 1) + theirs.std**2 * (m - 1)) / freedom
            variance = pooled * (1 / n + 1 / m)
        error = math.sqrt(variance)  # standard error of the difference
        p_value = float(2 * stats.t.sf(abs(difference) / error, freedom))
        margin = float(stats.t.ppf(1 - _LEVEL / 2, freedom)) * error
        low, high = difference - margin, difference + margin
    standing = "within" if p_value >= _LEVEL else "above" if difference > 0 else "below"
    return TestResult(difference, low, high, standing, test, p_value)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Benjamini and Hochberg); nan where untested."""
    values = np.array(p_values, float)
    known = ~np.isnan(values)
    values[known] = stats.false_discovery_control(values[known])
    return values.tolist()
