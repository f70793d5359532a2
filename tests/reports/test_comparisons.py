import numpy as np
import pytest

from qam_jax.reports.collect import collect
from qam_jax.reports.comparisons import compare_groups, compare_with_published
from qam_jax.reports.published import published_result
from qam_jax.reports.results import task_results

_TASK = "cube-double-play-singletask-task2-v0"
_PAPER = published_result(_TASK, "QAM")


@pytest.fixture(name="read")
def _read(tmp_path):
    return lambda group: collect([tmp_path / "exp" / group])[0]


def _compared(runs):
    return list(compare_with_published(task_results(runs)).itertuples())


def _chance(comparison):
    (row,) = comparison.improvements.itertuples()
    return row.stage, row.method, row.other, row.probability


def _at_the_papers_settings(make_run, rates, **changes):
    """A run of 1,000,000 updates whose last evaluation is this rate."""
    return make_run(rates, offline_steps=1_000_000, interval=500_000, **changes)


def test_runs_near_the_published_mean_are_within_and_others_are_not(make_run, read):
    near = round(_PAPER.offline_mean / 5) * 0.05  # of 20 episodes
    for seed, shift in enumerate((-0.05, 0.0, 0.05)):
        _at_the_papers_settings(make_run, (0.1, near + shift), seed=seed)
        _at_the_papers_settings(make_run, (0.1, 0.05 + shift), seed=seed, agent_name="fql")
    runs = read("study")
    qam, fql = _compared(runs)
    assert (qam.method, qam.standing) == ("QAM", "within")
    assert (fql.method, fql.standing) == ("FQL", "below")
    assert (qam.other_mean, qam.other_std) == (_PAPER.offline_mean, _PAPER.offline_std)
    assert (qam.num_runs, qam.other_num_runs) == (3, 12)
    # The evaluations of the test's runs have 20 episodes; all else is the paper's.
    assert qam.differences == ("eval_episodes = 20 (paper: 50)",)
    assert qam.adjusted_p_value == pytest.approx(qam.p_value)  # the larger one of the two
    assert fql.adjusted_p_value == pytest.approx(2 * fql.p_value)


def test_what_is_not_in_the_paper_has_no_standing(make_run, read):
    make_run((0.1, 0.2), agent_name="bc")
    make_run((0.1, 0.2), env_name="cube-single-play-singletask-task1-v0")
    runs = read("study")
    assert _compared(runs) == []


def test_other_settings_are_said_with_the_standing(make_run, read):
    config = {"inv_temp": 3.0, "critic_hidden_dims": (32, 32)}
    make_run((0.1, 0.2), online_steps=500, config=config)
    make_run((0.1, 0.2, 0.3), online_steps=500, config=config, seed=1)
    runs = read("study")
    offline, online = _compared(runs)
    for text in (
        "offline_steps = 1,000 (paper: 1,000,000)",
        "critic_hidden_dims = 2 × 32 (paper: 4 × 512)",
        "inv_temp = 3 (paper: 1)",
    ):
        assert text in offline.differences
    assert "online_steps = 500 (paper: 500,000)" not in offline.differences
    assert "online_steps = 500 (paper: 500,000)" in online.differences
    assert (offline.num_runs, online.num_runs) == (2, 1)


def test_a_variant_of_the_sensitivity_study_is_held_against_its_own_line(make_run, read):
    _at_the_papers_settings(make_run, (0.1, 0.2), config={"edit_scale": 0.1, "flow_steps": 1})
    runs = read("study")
    (standing,) = _compared(runs)
    assert standing.other == "QAM-E (T=1)"
    assert standing.other_mean == published_result(_TASK, "QAM-E (T=1)").offline_mean


def test_two_groups_are_compared_method_by_method(make_run, read):
    for seed in range(3):
        make_run((0.1, 0.8 + 0.05 * seed), seed=seed, group="new", config={"inv_temp": 3.0})
        make_run((0.1, 0.2 + 0.05 * seed), seed=seed, group="old")
        make_run((0.1, 0.5), seed=seed, group="old", agent_name="bc")
    comparison = compare_groups(read("new"), read("old"), "new", "old")
    (standing,) = comparison.table.itertuples()
    assert (standing.method, standing.standing) == ("QAM", "above")
    assert standing.difference == pytest.approx(60)
    assert standing.differences == ("inv_temp = 3 (there: 1)",)
    assert _chance(comparison) == ("offline", "QAM", "QAM", 1)
    assert comparison.notes == ["Not compared: BC (only in old)."]


def test_groups_of_one_method_each_are_compared_whatever_their_names(make_run, read):
    for seed in range(2):
        make_run((0.1, 0.2 + 0.1 * seed), seed=seed, group="ours")
        make_run((0.1, 0.2 + 0.1 * seed), seed=seed, group="theirs", agent_name="fql")
    comparison = compare_groups(read("ours"), read("theirs"), "ours", "theirs")
    (standing,) = comparison.table.itertuples()
    assert (standing.method, standing.other) == ("QAM", "FQL")
    assert standing.standing == "within"
    assert _chance(comparison) == ("offline", "QAM", "FQL", 0.5)


def test_groups_without_a_shared_task(make_run, read):
    make_run((0.1, 0.2), group="ours")
    make_run((0.1, 0.2), group="theirs", env_name="cube-double-play-singletask-task1-v0")
    comparison = compare_groups(read("ours"), read("theirs"), "ours", "theirs")
    assert comparison.table.empty
    assert comparison.notes == ["ours and theirs share no task with results of both yet."]


def test_returns_are_compared_as_well(make_run, read):
    nan = np.nan
    for seed in range(2):
        for group, value in (("ours", -200.0), ("theirs", -900.0)):
            returns = (-1000.0, value + 10 * seed)
            make_run((nan, nan), returns=returns, env_name="Pendulum-v1", group=group, seed=seed)
    comparison = compare_groups(read("ours"), read("theirs"), "ours", "theirs")
    (standing,) = comparison.table.itertuples()
    assert (standing.unit, standing.standing) == ("return", "above")
    assert comparison.improvements.empty
