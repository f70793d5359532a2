import pytest

from qam_jax.reports.collect import collect
from qam_jax.reports.results import describe_missing, missing_runs

_TASK = "cube-double-play-singletask-task2-v0"
_STUDY = f"""
methods = ["qam", "fql"]
env_names = ["{_TASK}"]
seeds = 3
[grid]
"config.lr" = [1e-4, 3e-4]
"""


@pytest.fixture(name="study")
def _study(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(_STUDY)
    return str(path)


def _missing(tmp_path, study):
    return describe_missing(missing_runs(collect([tmp_path / "exp"]).runs, study))


def test_runs_of_a_grid_of_ones_own(make_run, study, tmp_path):
    for lr, seed in ((1e-4, 0), (1e-4, 1), (3e-4, 0)):
        make_run(seed=seed, config={"lr": lr}, run_id=f"qam-lr={lr}-seed{seed}")
    make_run((0.1,), seed=2, config={"lr": 1e-4}, run_id="qam-lr=0.0001-seed2")
    assert _missing(tmp_path, study) == [
        "QAM on cube-double-play task 2, seed 2: at 500 of 1,000 steps",
        "QAM (lr=0.0003) on cube-double-play task 2, seeds 1–2: no run",
        "FQL (lr=0.0001) on cube-double-play task 2, seeds 0–2: no run",
        "FQL (lr=0.0003) on cube-double-play task 2, seeds 0–2: no run",
    ]


def test_before_a_study_has_begun_all_of_it_is_missing(study, tmp_path):
    assert len(missing_runs([], study)) == 2 * 2 * 3
    assert len(missing_runs([], "rlpd")) == 50 * 12


def test_without_variants_a_run_is_known_by_its_method_too(make_run, tmp_path):
    make_run(agent_name="rlpd", offline_steps=0, online_steps=1000)
    missing = missing_runs(collect([tmp_path / "exp"]).runs, "rlpd")
    assert len(missing) == 50 * 12 - 1
    assert ("RLPD", _TASK, 0) not in {run[:3] for run in missing}


def test_a_study_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"no study 'mian': there are .*main.*rlpd"):
        missing_runs([], "mian")
    with pytest.raises(ValueError, match=r"cannot read the study .*nowhere\.toml"):
        missing_runs([], str(tmp_path / "nowhere.toml"))
