import dataclasses
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import cloudpickle
import jax
import numpy as np
import pytest

from qam_jax import __version__
from qam_jax.agents.base import Change
from qam_jax.envs import EnvFailure, make_env
from qam_jax.files import DamagedError
from qam_jax.runs import saved
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.saved import load_run
from qam_jax.runs.settings import check_settings
from qam_jax.training import evaluation
from qam_jax.training.evaluation import Evaluator, summarize
from qam_jax.training.train import train

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes cannot import tests


@pytest.fixture(name="settings", scope="module")
def _settings(short_run):
    return dataclasses.replace(short_run, offline_steps=12, eval_episodes=2)


@pytest.fixture(name="run", scope="module")
def _run(settings, small_config):
    return train(settings, small_config())


def _assert_same_rows(folder, expected_folder, kind):
    rows, expected = (read_csv(path / f"{kind}.csv") for path in (folder, expected_folder))
    for row in rows + expected:
        row["updates_per_second"] = 0  # the clock's
    np.testing.assert_equal(rows, expected)


def test_a_run_leaves_its_whole_folder(settings, run):
    assert int(run.state.step) == 12
    assert len(run.episodes) == len(run.behavior_episodes) == 2
    config = json.loads((run.folder / "config.json").read_text())
    assert config["agent"]["inv_temp"] == 1.0
    assert config["env_name"] == settings.env_name
    metadata = json.loads((run.folder / "metadata.json").read_text())
    assert metadata["dataset_source"] == f"your file {settings.dataset}"
    assert metadata["seed"] == 0
    assert metadata["parameter_count"] == sum(
        leaf.size for leaf in jax.tree.leaves(run.state.params)
    )
    assert metadata["starts"][0]["versions"]["jax"] == jax.__version__
    assert metadata["starts"][0]["versions"]["qam_jax"] == __version__
    train, evaluation = read_csv(run.folder / "train.csv"), read_csv(run.folder / "eval.csv")
    assert [row["step"] for row in train] == [4, 8, 12]
    assert [row["step"] for row in evaluation] == [8, 12]
    assert all(np.isfinite(list(row.values())).all() for row in train)
    assert list(run.folder.glob("events.out.tfevents*"))


def test_an_interrupted_run_continues_as_if_it_had_not_been(settings, run, small_config):
    again = dataclasses.replace(settings, group="continued", offline_steps=8)
    first = train(again, small_config())
    assert int(first.state.step) == 8
    second = train(dataclasses.replace(again, offline_steps=12), small_config())
    assert second.folder == first.folder
    jax.tree.map(np.testing.assert_array_equal, second.state, run.state)
    for kind in ("train", "eval"):
        _assert_same_rows(second.folder, run.folder, kind)


@pytest.mark.slow
def test_a_run_stopped_between_its_rows_and_its_checkpoint(
    settings, run, monkeypatch, small_config
):
    """The rows of the lost updates are written again, not doubled, and nothing else differs."""
    crashed = dataclasses.replace(settings, group="crashed")
    save = Checkpoints.save

    def crash_at_the_end(checkpoints, step, *arguments, **more):
        if step == 12:
            raise KeyboardInterrupt
        save(checkpoints, step, *arguments, **more)

    monkeypatch.setattr(Checkpoints, "save", crash_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        train(crashed, small_config())
    monkeypatch.undo()
    folder = next((Path(settings.save_dir) / "crashed").glob("*/*"))
    assert Checkpoints(folder).steps == [4, 8]
    assert [row["step"] for row in read_csv(folder / "eval.csv")] == [8]
    with open(folder / "train.csv", "a") as file:
        file.write("16,0.5")  # and a line cut short, as a power failure leaves it
    second = train(crashed, small_config())
    jax.tree.map(np.testing.assert_array_equal, second.state, run.state)
    for kind in ("train", "eval"):
        _assert_same_rows(folder, run.folder, kind)


def _fail_at(number, error, monkeypatch):
    """Makes one evaluation of a run fail, by its number."""
    run_episodes, calls = evaluation.run_episodes, []

    def fail(*arguments):
        calls.append(None)
        if len(calls) == number:
            raise error
        return run_episodes(*arguments)

    monkeypatch.setattr(evaluation, "run_episodes", fail)


def test_an_evaluation_that_fails_leaves_the_training_intact(
    settings, run, small_config, monkeypatch, caplog
):
    _fail_at(1, EnvFailure("the arm fell off."), monkeypatch)
    failed = train(dataclasses.replace(settings, group="failed"), small_config())
    jax.tree.map(np.testing.assert_array_equal, failed.state, run.state)
    evaluations = [read_csv(each.folder / "eval.csv") for each in (failed, run)]
    np.testing.assert_equal(evaluations[0], evaluations[1][1:])
    rows = read_csv(failed.folder / "train.csv")
    np.testing.assert_equal([row["failed_evaluations"] for row in rows], [np.nan, np.nan, 1])
    (message,) = [text for text in caplog.messages if "evaluation" in text]
    assert "evaluation of step 8 failed; 1 so far" in message
    assert "the arm fell off" in message


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("error", [EnvFailure("the arm fell off"), KeyboardInterrupt()])
def test_a_run_that_ended_amid_an_evaluation_makes_up_for_it(
    settings, run, small_config, monkeypatch, number, error
):
    """Its checkpoint is there already, and no evaluation is repeated."""
    name = f"ended{number}{type(error).__name__}"
    strict = dataclasses.replace(settings, group=name, strict_evaluation=True)
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        _fail_at(number, error, patch)
        train(strict, small_config())
    folder = next((Path(settings.save_dir) / name).glob("*/*"))
    assert Checkpoints(folder, read_only=True).steps[-1] == (8, 12)[number - 1]
    assert len(read_csv(folder / "eval.csv")) == number - 1
    jax.tree.map(np.testing.assert_array_equal, train(strict, small_config()).state, run.state)
    for kind in ("train", "eval"):
        _assert_same_rows(folder, run.folder, kind)
    saved, expected = (Checkpoints(each, read_only=True) for each in (folder, run.folder))
    assert saved.best_step == expected.best_step is not None


def test_a_faulty_environment_is_found_before_training(
    settings, small_config, tmp_path, monkeypatch
):
    (tmp_path / "faulty_pendulum.py").write_text(
        "import gymnasium.envs.classic_control.pendulum as module\n"
        "def step(self, action): return self.state, 0.0, False, {}\n"
        "module.PendulumEnv.step = step\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # which its processes inherit
    make = partial(make_env, settings.env_name, "faulty_pendulum")
    monkeypatch.setattr(evaluation, "make_env", lambda *_: make())
    with pytest.raises(EnvFailure, match=r"fails when it is reset and stepped.*expected 5, got 4"):
        train(dataclasses.replace(settings, group="faulty"), small_config())
    assert not list((Path(settings.save_dir) / "faulty").glob("*/*/*.csv"))


def test_fewer_updates_than_there_are_already_are_refused(settings, run, small_config):
    with pytest.raises(ValueError, match=r"holds 12 steps already, more than the 8"):
        train(dataclasses.replace(settings, offline_steps=8), small_config())


def test_a_failed_start_does_not_claim_the_folder(settings, small_config):
    named = dataclasses.replace(settings, group="typo", run_id="mine", offline_steps=4)
    missing = dataclasses.replace(named, dataset="/nowhere.npz")
    with pytest.raises(FileNotFoundError):
        train(missing, small_config())
    assert int(train(named, small_config()).state.step) == 4


@pytest.mark.slow
def test_a_finished_run_started_again_only_reports(settings, run, small_config):
    before = (run.folder / "train.csv").read_text()
    again = train(settings, small_config())
    np.testing.assert_equal(*([each[:3] for each in result.episodes] for result in (again, run)))
    assert (run.folder / "train.csv").read_text() == before


def test_a_saved_run_gives_the_same_numbers(settings, run):
    saved = load_run(run.folder)
    jax.tree.map(np.testing.assert_array_equal, saved.state, run.state)
    evaluator = Evaluator(settings.env_name, num_episodes=2, num_envs=1, seed=settings.seed)
    summary = summarize(evaluator.evaluate(saved.agent, saved.state))
    evaluator.close()
    last = read_csv(run.folder / "eval.csv")[-1]
    assert summary["return"] == last["return"]
    earlier = load_run(run.folder, step=8)
    assert int(earlier.state.step) == 8
    assert not np.array_equal(earlier.state.key, run.state.key)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 in.*of the steps \[8, 12\]"):
        load_run(run.folder, step=5)


def test_a_run_of_other_networks_is_not_continued(settings, run, small_config, monkeypatch):
    change = Change("9.9", "it has other layers")
    monkeypatch.setattr(saved, "later_changes", lambda config, version: [change])
    message = rf"{run.folder} were written by qam_jax {__version__} .* in 9\.9: it has other layers"
    with pytest.raises(ValueError, match=message):
        load_run(run.folder)
    with pytest.raises(ValueError, match=message):
        train(settings, small_config())


def test_a_run_of_other_losses_is_evaluated_but_not_trained_on(
    settings, run, small_config, monkeypatch
):
    change = Change("9.9", "it has other losses", losses_only=True)
    monkeypatch.setattr(saved, "later_changes", lambda config, version: [change])
    assert load_run(run.folder).step == 12
    train(settings, small_config())  # it is finished
    longer = dataclasses.replace(settings, offline_steps=settings.offline_steps + 4)
    with pytest.raises(ValueError, match=r"9\.9: it has other losses\. Evaluate them here"):
        train(longer, small_config())
    other = dataclasses.replace(longer, run=str(run.folder), run_id="other")
    with pytest.raises(ValueError, match=r"9\.9: it has other losses\. Evaluate them here"):
        train(other, small_config())


@pytest.mark.slow
def test_what_is_damaged_in_a_saved_run_is_named(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    newest = max((folder / "checkpoints" / "12" / "agent").rglob("*"), key=os.path.getsize)
    os.truncate(newest, newest.stat().st_size // 2)
    with pytest.raises(DamagedError, match=r"step 12 in .* is damaged .*give another .*: 8\.$"):
        load_run(folder)
    assert int(load_run(folder, 8).state.step) == 8
    shutil.rmtree(folder / "checkpoints" / "8")
    with pytest.raises(DamagedError, match="there is no other"):
        load_run(folder)
    for name in ("metadata.json", "config.json"):
        (folder / name).write_text("")
        with pytest.raises(DamagedError, match=rf"{name} is damaged .*Restore it from a copy"):
            load_run(folder, 8)


def test_the_folder_of_another_config_or_of_other_data_is_refused(settings, small_config, tmp_path):
    own = shutil.copy(settings.dataset, tmp_path / "own.npz")
    named = dataclasses.replace(settings, dataset=str(own), run_id="mine", offline_steps=4)
    train(named, small_config())
    with pytest.raises(ValueError, match=r"agent.inv_temp is 1.0 there and 3.0 here.*--run_id"):
        train(named, small_config(inv_temp=3.0))
    with pytest.raises(ValueError, match="sparse is False there and True here"):
        train(dataclasses.replace(named, sparse=True), small_config())
    columns = dict(np.load(own))
    np.savez(own, **{**columns, "rewards": columns["rewards"] + 1})
    with pytest.raises(ValueError, match="was trained on other data"):
        train(named, small_config())


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    settings, tmp_path, small_config
):
    blocker = tmp_path / "file"
    blocker.write_text("")
    bad = dataclasses.replace(settings, save_dir=str(blocker / "exp"), dataset="/nowhere")
    with pytest.raises(OSError, match=r"cannot write to the folder.*Choose another folder"):
        train(bad, small_config())


def test_a_horizon_longer_than_every_episode_is_refused(settings, small_config):
    with pytest.raises(ValueError, match=r"horizon_length = 30.*longest has 29 transitions"):
        train(settings, small_config(horizon_length=30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_interval": 6}, r"--eval_interval must be a multiple of --log_interval \(4\)"),
        ({"save_interval": 3}, "--save_interval must be a multiple"),
        ({"offline_steps": 0}, "nothing to do: give --offline_steps"),
        ({"offline_steps": 10**20}, "are 100000000000000000000 together: give at most"),
        ({"offline_steps": -1}, "--offline_steps must be at least 0"),
        ({"utd_ratio": 0}, r"--utd_ratio must be in \[1"),
        ({"env_name": "", "online_steps": 5}, "--online_steps=5 needs an environment to act in"),
        ({"env_name": "", "dataset": ""}, "there is no OGBench dataset: name data of your own"),
        ({"dataset_proportion": 0.0}, "--dataset_proportion must be above 0"),
        ({"normalize_actions": "mean_std"}, r"would put actions outside .*give min_max or quant"),
        ({"normalize_observations": "zscore"}, r"must be one of \['', 'mean_std'.*got 'zscore'"),
        ({"reward_scale": 0.0}, "--reward_scale must be a number above 0"),
        ({"reward_scale": float("inf")}, "--reward_scale must be a number above 0"),
        ({"reward_bias": float("nan")}, "--reward_bias must be a number, got nan"),
        ({"offline_ratio": 1.5}, r"--offline_ratio must be in \[0, 1\], or -1, got 1.5"),
        ({"offline_ratio": float("nan")}, "--offline_ratio must be in"),
        ({"eval_episodes": 0}, r"--eval_episodes must be in \[1"),
        ({"eval_envs": -3}, "--eval_envs must be"),
        ({"seed": 2**31}, "--seed must be"),
        ({"seed": 2**31 - 1, "num_seeds": 2}, "the last of the 2 seeds .*: give a smaller --seed"),
        ({"num_seeds": 2, "wandb_project": "p"}, "--wandb_project logs one run per process"),
        ({"run_id": "../other"}, "--run_id must be the name of one folder"),
        ({"video_episodes": -1}, "--video_episodes must be"),
        ({"data_source": "local"}, "give one or the other"),
        ({"obs_keys": "object"}, "--obs_keys chooses within --dataset=robomimic:<file> or lerob"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        check_settings(dataclasses.replace(settings, **changes))
