"""Where one group of runs stands against another, or against published figures."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_LEVEL = 0.05
_ENOUGH = 5  # runs on either side, from which on their own spread is known well enough for Welch
WELCH = "Welch's t-test"
STUDENT = "Student's t-test"
PREDICTION = "95% prediction interval"
FISHER = "Fisher's exact test over episodes"
UNTESTED = "not tested: one run each"


class Sample(NamedTuple):
    """Scores of some runs, as much of them as a published table gives.

    Attributes:
      mean: over runs.
      std: standard deviation over runs (of a sample, `ddof=1`); nan of a single run.
      num_runs: how many there are.
      episodes: of each run's evaluation, where scores are success rates in percent; else 0.
    """

    mean: float
    std: float
    num_runs: int
    episodes: int = 0


class Verdict(NamedTuple):
    """How a sample stands to another one.

    Attributes:
      standing: `within`, `above` or `below` at the 5% level, two-sided; `untested`.
      test: the test's name.
      p_value: of the test; nan without one.
      difference: of the means.
      low: end of its 95% interval; nan where the test has none.
      high: the other end.
    """

    standing: str
    test: str
    p_value: float
    difference: float
    low: float
    high: float


def summarize_runs(scores: Sequence[float], episodes: int = 0) -> Sample:
    """The sample that these scores are."""
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
    return Sample(float(np.mean(scores)), deviation, len(scores), episodes)


def compare(ours: Sample, theirs: Sample) -> Verdict:
    """Tests whether two samples have the same mean, by what so few runs allow.

    - Five runs or more on both sides: Welch's t-test, which takes no equal spread.
    - Two to four on one side: Student's t-test, which takes all runs to be alike but for their
      mean. Welch's would take the spread of so few at its word, and be wrong in 10 to 20% of cases
      instead of 5%.
    - A single run on one side: whether it lies in the interval in which a further run of the other
      side would lie with a probability of 95% (a t interval, of normally distributed runs).
    - No spread over runs, so that these have nothing to go by: Fisher's exact test over the
      episodes of all runs, if scores are success rates.

    Args:
      ours: at least one run.
      theirs: at least one run.
    """
    difference = ours.mean - theirs.mean
    spreads = [sample.std for sample in (ours, theirs) if sample.num_runs > 1]
    if not spreads:
        return Verdict("untested", UNTESTED, math.nan, difference, math.nan, math.nan)
    if not any(spread > 0 for spread in spreads):
        return _fisher(ours, theirs, difference)
    if len(spreads) == 2:
        enough = min(ours.num_runs, theirs.num_runs) >= _ENOUGH
        result = stats.ttest_ind_from_stats(*ours[:3], *theirs[:3], equal_var=not enough)
        error, freedom = (_welch if enough else _pooled)(ours, theirs)
        return _verdict(WELCH if enough else STUDENT, result.pvalue, difference, error, freedom)
    many = ours if ours.num_runs > 1 else theirs
    error = many.std * math.sqrt(1 + 1 / many.num_runs)
    p_value = 2 * stats.t.sf(abs(difference) / error, many.num_runs - 1)
    return _verdict(PREDICTION, p_value, difference, error, many.num_runs - 1)


def adjusted(verdicts: Sequence[Verdict]) -> list[float]:
    """The p-values for so many tests at once, by Benjamini and Hochberg; nan where untested."""
    known = [verdict.p_value for verdict in verdicts if not math.isnan(verdict.p_value)]
    values = iter(stats.false_discovery_control(known)) if known else iter(())
    return [
        math.nan if math.isnan(verdict.p_value) else float(next(values)) for verdict in verdicts
    ]


def _welch(ours: Sample, theirs: Sample) -> tuple[float, float]:
    """Standard error of the difference of the means, and its degrees of freedom."""
    parts = [(sample.std**2 / sample.num_runs, sample.num_runs - 1) for sample in (ours, theirs)]
    total = sum(variance for variance, _ in parts)
    return math.sqrt(total), total**2 / sum(variance**2 / freedom for variance, freedom in parts)


def _pooled(ours: Sample, theirs: Sample) -> tuple[float, float]:
    """The same, if runs of both sides have the same spread."""
    freedom = ours.num_runs + theirs.num_runs - 2
    squares = sum(sample.std**2 * (sample.num_runs - 1) for sample in (ours, theirs))
    return math.sqrt(squares / freedom * (1 / ours.num_runs + 1 / theirs.num_runs)), freedom


def _verdict(test: str, p_value: float, difference: float, error: float, freedom: float) -> Verdict:
    margin = float(stats.t.ppf(1 - _LEVEL / 2, freedom)) * error
    standing = _standing(p_value, difference)
    return Verdict(
        standing, test, float(p_value), difference, difference - margin, difference + margin
    )


def _fisher(ours: Sample, theirs: Sample, difference: float) -> Verdict:
    if not (ours.episodes and theirs.episodes):
        test = "not tested: no spread over runs"
        standing = "within" if difference == 0 else "untested"
        return Verdict(standing, test, math.nan, difference, math.nan, math.nan)
    table = []
    for sample in (ours, theirs):
        total = sample.num_runs * sample.episodes
        successes = round(sample.mean / 100 * total)
        table.append([successes, total - successes])
    p_value = float(stats.fisher_exact(table).pvalue)
    return Verdict(_standing(p_value, difference), FISHER, p_value, difference, math.nan, math.nan)


def _standing(p_value: float, difference: float) -> str:
    if p_value >= _LEVEL:
        return "within"
    return "above" if difference > 0 else "below"
