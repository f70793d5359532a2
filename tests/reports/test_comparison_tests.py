import math

import numpy as np
import pytest
from scipy import stats

from qam_jax.reports.statistics import (
    FISHER,
    PREDICTION,
    STUDENT,
    UNTESTED,
    WELCH,
    Sample,
    adjusted,
    compare_samples,
    summarize_runs,
)

_PUBLISHED = Sample(50.0, 6.0, 12, 50)


@pytest.mark.parametrize(("num_runs", "test"), [(2, STUDENT), (4, STUDENT), (5, WELCH)])
def test_it_agrees_with_scipy_on_the_runs_themselves(num_runs, test):
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(60, 4, num_runs), rng.normal(50, 9, 12)
    result = compare_samples(summarize_runs(ours), summarize_runs(theirs))
    expected = stats.ttest_ind(ours, theirs, equal_var=test == STUDENT)
    interval = expected.confidence_interval()
    assert result.test == test
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.difference_low, result.difference_high) == pytest.approx(
        (interval.low, interval.high)
    )
    other_way = compare_samples(summarize_runs(theirs), summarize_runs(ours))
    assert other_way.p_value == pytest.approx(result.p_value)
    assert other_way.difference == -result.difference


def test_few_seeds_of_the_same_distribution_are_outside_in_a_twentieth_of_cases():
    rng = np.random.default_rng(0)
    rates = rng.beta(0.9 * 35, 0.1 * 35, size=(1500, 14))  # 90%, standard deviation 5%
    scores = 100 * rng.binomial(50, rates) / 50
    results = [compare_samples(summarize_runs(row[:2]), summarize_runs(row[2:])) for row in scores]
    outside = np.mean([result.standing != "within" for result in results])
    assert outside == pytest.approx(0.05, abs=0.02)  # Welch's test: 0.12


@pytest.mark.parametrize(
    ("scores", "standing"),
    [([49.0, 53.0, 55.0], "within"), ([80.0, 84.0, 88.0], "above"), ([10.0, 12.0], "below")],
)
def test_some_seeds_against_published_figures(scores, standing):
    result = compare_samples(summarize_runs(scores, 50), _PUBLISHED)
    assert result.standing == standing
    assert result.difference == pytest.approx(np.mean(scores) - 50)
    assert (result.difference_low <= 0 <= result.difference_high) == (standing == "within")


def test_a_single_run_is_held_against_the_prediction_interval():
    edge = 50 + stats.t.ppf(0.975, 11) * 6 * math.sqrt(1 + 1 / 12)
    inside, outside = (
        compare_samples(summarize_runs([edge + step]), _PUBLISHED) for step in (-0.01, 0.01)
    )
    assert inside.test == outside.test == PREDICTION
    assert (inside.standing, outside.standing) == ("within", "above")
    assert inside.p_value == pytest.approx(0.05, abs=1e-3)


def test_the_prediction_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    drawn = rng.normal(50, 10, size=(2000, 13))
    results = [compare_samples(summarize_runs(row[:1]), summarize_runs(row[1:])) for row in drawn]
    within = np.mean([result.standing == "within" for result in results])
    assert within == pytest.approx(0.95, abs=0.015)


def test_without_any_spread_episodes_are_counted():
    nothing = Sample(0.0, 0.0, 12, 50)
    alike = compare_samples(Sample(0.0, 0.0, 3, 50), nothing)
    assert (alike.standing, alike.test, alike.p_value) == ("within", FISHER, 1.0)
    perfect = compare_samples(Sample(100.0, math.nan, 1, 50), nothing)
    assert (perfect.standing, perfect.test) == ("above", FISHER)
    assert compare_samples(Sample(2.0, math.nan, 1, 4), nothing).standing == "within"
    returns = compare_samples(Sample(-3.0, 0.0, 2), Sample(-5.0, 0.0, 2))
    assert returns.standing == "untested"


def test_one_run_each_proves_nothing():
    result = compare_samples(summarize_runs([90.0], 50), summarize_runs([10.0], 50))
    assert (result.standing, result.test) == ("untested", UNTESTED)
    assert result.difference == 80
    assert math.isnan(result.p_value)


def test_many_comparisons_are_adjusted():
    results = [compare_samples(summarize_runs([value]), _PUBLISHED) for value in (50.0, 64.0, 90.0)]
    untested = compare_samples(summarize_runs([1.0]), summarize_runs([1.0]))
    raw = [result.p_value for result in results]
    values = adjusted([raw[0], untested.p_value, *raw[1:]])
    assert math.isnan(values[1])
    assert values[0] == pytest.approx(raw[0])
    assert values[2] == pytest.approx(1.5 * raw[1])
    assert values[3] == pytest.approx(3 * raw[2])
    assert adjusted([]) == []
