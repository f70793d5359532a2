import pytest

from qam_jax.reports.collect import collect, describe_missing, expected_runs, missing_runs
from qam_jax.sweeps.studies import load_study

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


def _missing(folder, study):
    return missing_runs(collect([folder])[0], expected_runs(load_study(study)))


def test_runs_of_a_grid_of_ones_own(make_run, study, tmp_path):
    for lr, seed in ((1e-4, 0), (1e-4, 1), (3e-4, 0)):
        make_run(seed=seed, config={"lr": lr}, run_id=f"qam-lr={lr}-seed{seed}")
    make_run((0.1,), seed=2, config={"lr": 1e-4}, run_id="qam-lr=0.0001-seed2")
    assert describe_missing(_missing(tmp_path / "exp", study)) == [
        "QAM on cube-double-play task 2, seed 2: at 500 of 1,000 steps",
        "QAM (lr=0.0003) on cube-double-play task 2, seeds 1–2: no run",
        "FQL (lr=0.0001) on cube-double-play task 2, seeds 0–2: no run",
        "FQL (lr=0.0003) on cube-double-play task 2, seeds 0–2: no run",
    ]


def test_before_a_study_has_begun_all_of_it_is_missing(study, tmp_path):
    assert len(_missing(tmp_path / "exp", study)) == 2 * 2 * 3
    assert len(_missing(tmp_path / "exp", "rlpd")) == 50 * 12


def test_without_variants_a_run_is_known_by_its_method_too(make_run, tmp_path):
    make_run(agent_name="rlpd", offline_steps=0, online_steps=1000)
    missing = _missing(tmp_path / "exp", "rlpd")
    assert len(missing) == 50 * 12 - 1
    assert ("RLPD", _TASK, 0) not in {run[:3] for run in missing.itertuples(index=False)}
