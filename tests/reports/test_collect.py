import json
import math

import pytest

from qam_jax.reports.collect import collect, latest, read_run
from qam_jax.reports.folders import find_run_folders
from qam_jax.reports.labels import ranges

_TASK = "cube-double-play-singletask-task2-v0"


def test_a_run_is_read_from_what_training_writes(make_run):
    folder = make_run((0.1, 0.4, 0.8), online_steps=1000, seed=3, config={"edit_scale": 0.1})
    runs, _ = collect([folder])
    assert runs["step"].tolist() == [500, 1000, 1500]
    assert runs["score"].tolist() == pytest.approx([10, 40, 80])
    (run,) = latest(runs).itertuples()
    assert (run.folder, run.method, run.env_name, run.seed) == (folder, "QAM-E", _TASK, 3)
    assert (run.border, run.end, run.step, run.unit) == (1000, 2000, 1500, "%")
    assert run.metadata["dataset_fingerprint"] == "f"


def test_returns_stand_in_where_success_is_unknown(make_run):
    nan = float("nan")
    run = read_run(make_run((nan, nan), returns=(-900.0, -300.0), env_name="Pendulum-v1"))
    assert (run["unit"], run["score"]) == ("return", [-900.0, -300.0])
    assert (run["domain"], run["task"]) == ("Pendulum-v1", "Pendulum-v1")


def test_runs_are_found_at_any_depth_and_once(make_run, tmp_path):
    folders = [make_run(seed=seed, group=group) for seed in (0, 1) for group in ("a", "b")]
    (folders[0] / "checkpoints" / "1000").mkdir(parents=True)
    root = tmp_path / "exp"
    assert sorted(find_run_folders(root)) == sorted(folders)
    assert list(find_run_folders(folders[0])) == [folders[0]]
    runs, notes = collect([root / "a", root / "a" / _TASK, folders[0]])
    assert len(latest(runs)) == 2  # the same folders, named thrice
    assert notes == []


def _bad_runs(make_run, tmp_path):
    """Folders as crashes, copies and mistakes leave them, by what is to be said of each."""
    root = tmp_path / "exp" / "study" / _TASK
    (root / "empty").mkdir(parents=True)
    (root / "locked").mkdir()
    (root / "locked" / "lock").write_text("process 1 on host")
    cut = make_run(run_id="cut", seed=1)
    (cut / "config.json").write_text((cut / "config.json").read_text()[:100])
    other = make_run(run_id="other", seed=2)
    (other / "config.json").write_text(json.dumps({"lr": 1}))
    garbled = make_run(run_id="garbled", seed=3)
    (garbled / "eval.csv").write_text("step,success,return\n100,0.5,x\n")
    beyond = make_run(run_id="beyond", seed=4)
    (beyond / "eval.csv").write_text("step,success,return\n5000,0.5,0\n")
    foreign = make_run(run_id="foreign", seed=6)
    (foreign / "config.json").write_text('{"agent": 5}')
    listed = make_run(run_id="listed", seed=7)
    (listed / "metadata.json").write_text("[1]")
    blind = make_run(run_id="blind", seed=5, env_name="", dataset="mine.npz")
    return {
        root / "empty": "the folder is empty",
        root / "locked": "has no config.json",
        cut: "is damaged",
        other: "does not describe a run: 'agent' is missing",
        foreign: "does not describe a run",
        listed: "metadata.json is damaged (not a JSON object)",
        garbled: "its eval.csv is damaged",
        beyond: "goes to step 5000, beyond the run's end, 1000",
        blind: "without an environment",
    }


def test_bad_folders_are_a_line_each_and_the_rest_goes_on(make_run, tmp_path):
    good = make_run()
    bad = _bad_runs(make_run, tmp_path)
    (tmp_path / "later").mkdir()
    runs, notes = collect([tmp_path / "exp", tmp_path / "later", tmp_path / "nowhere"])
    assert latest(runs)["folder"].tolist() == [good]
    assert len(notes) == len(bad) + 2
    for folder, words in bad.items():
        line = next(note for note in notes if note.startswith(f"{folder}: left out, "))
        assert words in line and "\n" not in line
    assert f"{tmp_path / 'later'}: no runs yet." in notes
    assert f"{tmp_path / 'nowhere'}: there is no such folder." in notes


def test_a_run_without_evaluations_yet_counts_as_begun(make_run):
    (run,) = collect([make_run(rates=())])[0].itertuples()
    assert run.step == 0 and math.isnan(run.score)


def test_a_half_written_last_line_does_not_count(make_run):
    folder = make_run((0.1, 0.4))
    with open(folder / "eval.csv", "a") as file:
        file.write("1500,0.9")
    assert read_run(folder)["step"] == [500, 1000]


def test_mixed_configurations_are_shown_apart(make_run, tmp_path):
    for seed in (0, 1):
        make_run(seed=seed)
    make_run(seed=0, config={"flow_steps": 3})
    make_run(seed=0, config={"flow_steps": 3, "lr": 1e-3, "actor_hidden_dims": (8, 8)})
    runs, notes = collect([tmp_path])
    labels = latest(runs)["method"].tolist()
    assert labels.count("QAM") == 2  # what most runs are
    assert "QAM (flow_steps=3)" in labels
    assert "QAM (actor_hidden_dims=2 × 8, flow_steps=3, …)" in labels
    (note,) = notes
    assert note.startswith(f"QAM on {_TASK}: runs of 3 configurations, shown apart as ")
    assert "QAM (seeds 0–1)" in note and "lr=0.001" in note


def test_of_configurations_with_one_setting_changed_each_the_unchanged_keeps_the_name(
    make_run, tmp_path
):
    """Also where a changed one is the paper's, as ten flow steps are."""
    small = {"flow_steps": 5, "inv_temp": 3.0}
    for changes in ({}, {"flow_steps": 10}, {"flow_steps": 2}, {"inv_temp": 1.0}):
        make_run(config={**small, **changes})
    runs, _ = collect([tmp_path])
    assert set(runs["method"]) == {
        "QAM", "QAM (flow_steps=10)", "QAM (flow_steps=2)", "QAM (inv_temp=1)"
    }  # fmt: skip


def test_what_does_not_matter_does_not_tell_runs_apart(make_run, tmp_path):
    make_run(seed=0)
    make_run(seed=1, online_steps=500, num_envs=2, group="later", eval_envs=3)
    make_run(seed=2, overlap_evaluation=True)
    make_run(seed=3, compilation_cache_dir="")
    runs, notes = collect([tmp_path])
    assert latest(runs)["method"].tolist() == ["QAM"] * 4
    assert notes == []


def test_a_setting_that_earlier_code_did_not_have_does_not_tell_runs_apart(make_run, tmp_path):
    make_run(seed=0)
    later = make_run(seed=1) / "config.json"
    config = json.loads(later.read_text())
    config |= {"preset": "paper", "news": 3, "agent": {**config["agent"], "more": True}}
    later.write_text(json.dumps(config))
    runs, notes = collect([tmp_path])
    assert latest(runs)["method"].tolist() == ["QAM", "QAM"]
    assert notes == []


def test_of_a_seed_that_was_run_twice_the_furthest_counts(make_run, tmp_path):
    short = make_run((0.1,), group="first")
    long = make_run((0.1, 0.4), group="second")
    runs, notes = collect([tmp_path])
    assert latest(runs)["folder"].tolist() == [long]
    assert notes == [
        f"QAM on {_TASK}: seed 0 was run 2 times; of these {long} counts, not {short}."
    ]


def test_variants_of_the_sensitivity_study_have_its_names(make_run):
    folder = make_run(config={"edit_scale": 0.1, "num_qs": 2})
    assert read_run(folder)["method"] == "QAM-E (K=2)"


def test_ranges():
    assert ranges([3, 0, 1, 2, 7, 5, 3]) == "0–3, 5, 7"
    assert ranges([4]) == "4"
