"""Properties that the statistics have for any scores."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qam_jax.reports.statistics import (
    bootstrap,
    interquartile_mean,
    mean_score,
    performance_profile,
    probability_of_improvement,
)

_SCORE = st.integers(0, 100).map(lambda percent: percent / 100)  # ties are common
_TASK = st.integers(1, 6).flatmap(lambda n: arrays.arrays(float, n, elements=_SCORE))
_SCORES = st.lists(_TASK, min_size=1, max_size=4)
_PAIRS = st.lists(st.tuples(_TASK, _TASK), min_size=1, max_size=4)
_averages = pytest.mark.parametrize("average", [mean_score, interquartile_mean])


@_averages
@given(scores=_SCORES)
def test_averages_lie_among_the_scores(average, scores):
    pooled = np.concatenate(scores)
    assert pooled.min() - 1e-9 <= average(scores) <= pooled.max() + 1e-9


@_averages
@given(scores=_SCORES, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_averages_follow_a_change_of_units(average, scores, scale, shift):
    changed = average([scale * task + shift for task in scores])
    np.testing.assert_allclose(changed, scale * average(scores) + shift, atol=1e-8)


@_averages
@given(scores=_SCORES, seed=st.integers(0, 99))
def test_averages_do_not_depend_on_the_order_of_tasks_and_runs(average, scores, seed):
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(scores[task]) for task in rng.permutation(len(scores))]
    np.testing.assert_allclose(average(shuffled), average(scores), atol=1e-9)


@given(scores=st.lists(arrays.arrays(float, 5, elements=_SCORE), min_size=1, max_size=4))
def test_the_interquartile_mean_ignores_how_far_the_best_run_is_ahead(scores):
    best = int(np.argmax([task.max() for task in scores]))
    ahead = [task.copy() for task in scores]
    ahead[best][np.argmax(ahead[best])] += 100
    np.testing.assert_allclose(interquartile_mean(ahead), interquartile_mean(scores), atol=1e-9)


@given(pairs=_PAIRS)
def test_the_probabilities_of_improvement_of_two_methods_sum_to_one(pairs):
    ours, others = zip(*pairs, strict=True)
    chance = probability_of_improvement(ours, others)
    assert 0 <= chance <= 1
    np.testing.assert_allclose(chance + probability_of_improvement(others, ours), 1)
    np.testing.assert_allclose(probability_of_improvement(ours, ours), 0.5)


@given(pairs=_PAIRS)
def test_the_probability_of_improvement_depends_on_ranks_alone(pairs):
    ours, others = zip(*pairs, strict=True)
    stretched = [[np.exp(3 * task) for task in scores] for scores in (ours, others)]
    np.testing.assert_allclose(
        probability_of_improvement(*stretched), probability_of_improvement(ours, others)
    )


@given(scores=_SCORES)
def test_a_performance_profile_falls_from_one_to_zero(scores):
    profile = performance_profile(scores, np.linspace(-0.5, 1.5, 21))
    assert profile[0] == pytest.approx(1)
    assert profile[-1] == 0
    assert (np.diff(profile) <= 1e-9).all()


@given(scores=_SCORES, seed=st.integers(0, 99))
def test_intervals_lie_among_the_scores_and_are_known_from_two_runs_on(scores, seed):
    value, low, high = bootstrap(mean_score, scores, replicates=50, seed=seed)
    assert value == mean_score(scores)
    if all(len(task) == 1 for task in scores):
        assert np.isnan([low, high]).all()
    else:
        assert 0 <= low <= high <= 1
        assert bootstrap(mean_score, scores, replicates=50, seed=seed)[1:] == (low, high)
