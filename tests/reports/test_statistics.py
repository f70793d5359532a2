"""Against numbers of rliable 1.2.0 (arch 7.2.0, SciPy 1.17.1, NumPy 2.4.6, pandas 2.3.3).

Of `metrics.aggregate_mean`, `aggregate_iqm` and `probability_of_improvement`; the intervals of
`library.get_interval_estimates(..., method="percentile", reps=50000)` and
`library.create_performance_profile(..., use_score_distribution=True, reps=20000)`.
"""

import numpy as np
import pytest
from scipy import stats

from qam_jax.reports.statistics import (
    bootstrap,
    interquartile_mean,
    mean_score,
    performance_profile,
    probability_of_improvement,
)

# One task a row, five and three runs; with ties within a task and between the methods.
_OURS = [
    np.array([0.10, 0.24, 0.18, 0.30, 0.02]),
    np.array([0.62, 0.70, 0.58, 0.66, 0.44]),
    np.array([0.95, 1.00, 0.88, 0.92, 1.00]),
]
_OTHERS = [
    np.array([0.08, 0.22, 0.18]),
    np.array([0.62, 0.50, 0.40]),
    np.array([0.60, 0.72, 0.88]),
]


def test_point_estimates_are_those_of_rliable():
    np.testing.assert_allclose(mean_score(_OURS), 0.5726666666666667)
    np.testing.assert_allclose(mean_score(_OTHERS), 0.4666666666666666)
    np.testing.assert_allclose(interquartile_mean(_OURS), 0.5933333333333333)
    np.testing.assert_allclose(interquartile_mean(_OTHERS), 0.468)
    np.testing.assert_allclose(probability_of_improvement(_OURS, _OTHERS), 0.7666666666666667)
    np.testing.assert_allclose(probability_of_improvement(_OTHERS, _OURS), 0.23333333333333336)
    thresholds = np.array([0.1, 0.25, 0.5, 0.62, 0.9])
    expected = [0.86666667, 0.73333333, 0.6, 0.46666667, 0.26666667]
    np.testing.assert_allclose(performance_profile(_OURS, thresholds), expected, atol=1e-8)


def test_intervals_are_those_of_rliable_up_to_the_draws():
    close = {"atol": 0.012, "rtol": 0}
    mean, iqm = bootstrap(mean_score, _OURS), bootstrap(interquartile_mean, _OURS)
    np.testing.assert_allclose(mean[1:], [0.53066667, 0.61266667], **close)
    np.testing.assert_allclose(iqm[1:], [0.53888889, 0.63555556], **close)
    chance = bootstrap(probability_of_improvement, _OURS, _OTHERS)
    np.testing.assert_allclose(chance[1:], [0.57777778, 0.93333333], atol=0.025, rtol=0)
    thresholds = np.array([0.1, 0.25, 0.5, 0.62, 0.9])
    _, low, high = bootstrap(lambda scores: performance_profile(scores, thresholds), _OURS)
    grid = 1 / 15 + 1e-6  # the fractions are multiples of it
    np.testing.assert_allclose(low, [0.733, 0.667, 0.467, 0.333, 0.133], atol=grid, rtol=0)
    np.testing.assert_allclose(high, [1.0, 0.867, 0.667, 0.6, 0.333], atol=grid, rtol=0)


def test_tasks_weigh_the_same_whatever_their_number_of_runs():
    once = [np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.4, 0.5, 0.6, 0.8])]
    twice = [np.repeat(once[0], 2), once[1]]  # the same distribution, from twice the runs
    np.testing.assert_allclose(mean_score(twice), mean_score(once))
    np.testing.assert_allclose(interquartile_mean(twice), interquartile_mean(once))
    pooled = stats.trim_mean(np.concatenate(twice), 0.25)
    assert abs(pooled - interquartile_mean(once)) > 0.02  # pooling would weigh the first task more


def test_a_single_run_has_no_interval():
    value, low, high = bootstrap(mean_score, [np.array([0.3]), np.array([0.5])])
    assert value == pytest.approx(0.4)
    assert np.isnan([low, high]).all()
    chance = bootstrap(probability_of_improvement, _OURS[:1], [np.array([0.2])])
    assert np.isnan(chance[1:]).all()  # however many runs the other side has


def test_the_interval_is_stratified_and_the_same_each_time():
    apart = [np.array([0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])]  # no spread within the tasks
    assert bootstrap(mean_score, apart) == (0.5, 0.5, 0.5)
    assert bootstrap(mean_score, _OURS) == bootstrap(mean_score, _OURS)


def test_leading_dimensions_are_replicates():
    replicates = [np.stack([task, task[::-1], task + 1]) for task in _OURS]
    for statistic in (mean_score, interquartile_mean):
        expected = statistic(_OURS) + np.array([0, 0, 1])
        np.testing.assert_allclose(statistic(replicates), expected)
