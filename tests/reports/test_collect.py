import json

import pytest

from qam_jax.reports.collect import collect, find_run_folders, ranges, read_run

_TASK = "cube-double-play-singletask-task2-v0"


def test_a_run_is_read_from_what_training_writes(make_run):
    folder = make_run((0.1, 0.4, 0.8), online_steps=1000, seed=3, config={"edit_scale": 0.1})
    run = read_run(folder)
    assert (run.method, run.env_name, run.seed) == ("QAM-E", _TASK, 3)
    assert (run.border, run.end, run.last, run.unit) == (1000, 2000, 1500, "%")
    assert run.score_at(1000) == pytest.approx(40)
    assert run.metadata["dataset_fingerprint"] == "f"


def test_returns_stand_in_where_success_is_unknown(make_run):
    nan = float("nan")
    run = read_run(make_run((nan, nan), returns=(-900.0, -300.0), env_name="Pendulum-v1"))
    assert (run.unit, run.scores.tolist()) == ("return", [-900.0, -300.0])
    assert run.task == ("Pendulum-v1", "Pendulum-v1")


def test_runs_are_found_at_any_depth_and_once(make_run, tmp_path):
    folders = [make_run(seed=seed, group=group) for seed in (0, 1) for group in ("a", "b")]
    (folders[0] / "checkpoints" / "1000").mkdir(parents=True)
    root = tmp_path / "exp"
    assert sorted(find_run_folders(root)) == sorted(folders)
    assert list(find_run_folders(folders[0])) == [folders[0]]
    everything = collect([root / "a", root / "a" / _TASK, folders[0]])
    assert len(everything.runs) == 2  # the same folders, named thrice
    assert everything.notes == []


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
    blind = make_run(run_id="blind", seed=5, env_name="", dataset="mine.npz")
    return {
        root / "empty": "the folder is empty",
        root / "locked": "has no config.json",
        cut: "is damaged",
        other: "is not that of a run: 'agent' is missing",
        garbled: "its eval.csv is damaged",
        beyond: "goes to step 5000, beyond the run's end, 1000",
        blind: "without an environment",
    }


def test_bad_folders_are_a_line_each_and_the_rest_goes_on(make_run, tmp_path):
    good = make_run()
    bad = _bad_runs(make_run, tmp_path)
    (tmp_path / "later").mkdir()
    runs, notes = collect([tmp_path / "exp", tmp_path / "later", tmp_path / "nowhere"])
    assert [run.folder for run in runs] == [good]
    assert len(notes) == len(bad) + 2
    for folder, words in bad.items():
        line = next(note for note in notes if note.startswith(f"{folder}: left out, "))
        assert words in line and "\n" not in line
    assert f"{tmp_path / 'later'}: no runs yet." in notes
    assert f"{tmp_path / 'nowhere'}: there is no such folder." in notes


def test_a_run_without_evaluations_yet_counts_as_begun(make_run):
    run = read_run(make_run(rates=()))
    assert (run.last, len(run.scores)) == (0, 0)


def test_a_half_written_last_line_does_not_count(make_run):
    folder = make_run((0.1, 0.4))
    with open(folder / "eval.csv", "a") as file:
        file.write("1500,0.9")
    assert read_run(folder).last == 1000


def test_mixed_configurations_are_shown_apart(make_run, tmp_path):
    for seed in (0, 1):
        make_run(seed=seed)
    make_run(seed=0, config={"flow_steps": 3})
    make_run(seed=0, config={"flow_steps": 3, "lr": 1e-3, "actor_hidden_dims": (8, 8)})
    runs, notes = collect([tmp_path])
    labels = [run.method for run in runs]
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
    assert {run.method for run in runs} == {
        "QAM", "QAM (flow_steps=10)", "QAM (flow_steps=2)", "QAM (inv_temp=1)"
    }  # fmt: skip


def test_what_does_not_matter_does_not_tell_runs_apart(make_run, tmp_path):
    make_run(seed=0)
    make_run(seed=1, online_steps=500, num_envs=2, group="later", eval_envs=3)
    runs, notes = collect([tmp_path])
    assert [run.method for run in runs] == ["QAM", "QAM"]
    assert notes == []


def test_a_setting_that_earlier_code_did_not_have_does_not_tell_runs_apart(make_run, tmp_path):
    make_run(seed=0)
    later = make_run(seed=1) / "config.json"
    config = json.loads(later.read_text())
    config |= {"preset": "paper", "news": 3, "agent": {**config["agent"], "more": True}}
    later.write_text(json.dumps(config))
    runs, notes = collect([tmp_path])
    assert [run.method for run in runs] == ["QAM", "QAM"]
    assert notes == []


def test_of_a_seed_that_was_run_twice_the_furthest_counts(make_run, tmp_path):
    short = make_run((0.1,), group="first")
    long = make_run((0.1, 0.4), group="second")
    runs, notes = collect([tmp_path])
    assert [run.folder for run in runs] == [long]
    assert notes == [
        f"QAM on {_TASK}: seed 0 was run 2 times; of these {long} counts, not {short}."
    ]


def test_variants_of_the_sensitivity_study_have_its_names(make_run):
    folder = make_run(config={"edit_scale": 0.1, "num_qs": 2})
    assert read_run(folder).method == "QAM-E (K=2)"


def test_ranges():
    assert ranges([3, 0, 1, 2, 7, 5, 3]) == "0–3, 5, 7"
    assert ranges([4]) == "4"
