import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from qam_jax import __version__
from qam_jax.agents import get_config
from qam_jax.agents.base import NetworkChange
from qam_jax.data import generate
from qam_jax.files import DamagedError
from qam_jax.runs import checkpoints
from qam_jax.runs.checkpoints import Checkpoints, load_run
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.settings import RunSettings, check_settings
from qam_jax.training.evaluation import Evaluator, summarize
from qam_jax.training.train import train


@pytest.fixture(name="settings", scope="module")
def _settings(maze_data, tmp_path_factory):
    """A short run on a small dataset, simulated by the real recipe."""
    return RunSettings(
        env_name="pointmaze-medium-navigate-singletask-task3-v0",
        dataset_dir=str(maze_data),
        data_source="local",
        save_dir=str(tmp_path_factory.mktemp("exp")),
        offline_steps=12,
        log_interval=4,
        eval_interval=8,
        save_interval=4,
        eval_episodes=2,
        eval_envs=2,
    )


def _config(**changes):
    config = get_config("qam")
    small = {"actor_hidden_dims": (8,), "critic_hidden_dims": (8,), "num_qs": 2}
    config.update({**small, "flow_steps": 2, "batch_size": 8, **changes})
    return config


@pytest.fixture(name="run", scope="module")
def _run(settings):
    return train(settings, _config())


def _assert_same_rows(folder, expected_folder, kind):
    rows, expected = (read_csv(path / f"{kind}.csv") for path in (folder, expected_folder))
    for row in rows + expected:
        row["updates_per_second"] = 0  # the clock's
    assert rows == expected


def test_a_run_leaves_its_whole_folder(settings, run):
    assert int(run.state.step) == 12
    assert len(run.episodes) == len(run.behavior_episodes) == 2
    config = json.loads((run.folder / "config.json").read_text())
    assert config["agent"]["inv_temp"] == 1.0
    assert config["env_name"] == settings.env_name
    metadata = json.loads((run.folder / "metadata.json").read_text())
    assert "3 episodes" in metadata["dataset_source"]
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


def test_an_interrupted_run_continues_as_if_it_had_not_been(settings, run):
    again = dataclasses.replace(settings, group="continued", offline_steps=8)
    first = train(again, _config())
    assert int(first.state.step) == 8
    second = train(dataclasses.replace(again, offline_steps=12), _config())
    assert second.folder == first.folder
    jax.tree.map(np.testing.assert_array_equal, second.state, run.state)
    for kind in ("train", "eval"):
        _assert_same_rows(second.folder, run.folder, kind)


@pytest.mark.slow
def test_a_run_stopped_between_its_rows_and_its_checkpoint(settings, run, monkeypatch):
    """The rows of the lost updates are written again, not doubled, and nothing else differs."""
    crashed = dataclasses.replace(settings, group="crashed")
    save = Checkpoints.save

    def crash_at_the_end(checkpoints, step, *arguments, **more):
        if step == 12:
            raise KeyboardInterrupt
        save(checkpoints, step, *arguments, **more)

    monkeypatch.setattr(Checkpoints, "save", crash_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        train(crashed, _config())
    monkeypatch.undo()
    folder = next((Path(settings.save_dir) / "crashed").glob("*/*"))
    assert Checkpoints(folder).steps == [4, 8]
    assert [row["step"] for row in read_csv(folder / "eval.csv")] == [8, 12]
    with open(folder / "train.csv", "a") as file:
        file.write("16,0.5")  # and a line cut short, as a power failure leaves it
    second = train(crashed, _config())
    jax.tree.map(np.testing.assert_array_equal, second.state, run.state)
    for kind in ("train", "eval"):
        _assert_same_rows(folder, run.folder, kind)


def test_fewer_updates_than_there_are_already_are_refused(settings, run):
    with pytest.raises(ValueError, match=r"holds 12 steps already, more than the 8"):
        train(dataclasses.replace(settings, offline_steps=8), _config())


def test_a_failed_start_does_not_claim_the_folder(settings):
    named = dataclasses.replace(settings, group="typo", run_id="mine", offline_steps=4)
    missing = dataclasses.replace(named, dataset="/nowhere.npz", data_source="auto")
    with pytest.raises(FileNotFoundError):
        train(missing, _config())
    assert int(train(named, _config()).state.step) == 4


@pytest.mark.slow
def test_a_finished_run_started_again_only_reports(settings, run):
    before = (run.folder / "train.csv").read_text()
    again = train(settings, _config())
    assert [episode[:3] for episode in again.episodes] == [episode[:3] for episode in run.episodes]
    assert (run.folder / "train.csv").read_text() == before


def test_a_saved_run_gives_the_same_numbers(settings, run):
    saved = load_run(run.folder)
    jax.tree.map(np.testing.assert_array_equal, saved.state, run.state)
    evaluator = Evaluator(settings.env_name, num_episodes=2, num_envs=2, seed=settings.seed)
    summary = summarize(evaluator.evaluate(saved.agent, saved.state))
    evaluator.close()
    last = read_csv(run.folder / "eval.csv")[-1]
    assert summary["return"] == last["return"]
    earlier = load_run(run.folder, step=8)
    assert int(earlier.state.step) == 8
    assert not np.array_equal(earlier.state.key, run.state.key)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 in.*of the steps \[8, 12\]"):
        load_run(run.folder, step=5)


def test_a_run_of_other_networks_is_neither_read_nor_continued(settings, run, monkeypatch):
    change = NetworkChange("9.9", "it has other layers")
    monkeypatch.setattr(checkpoints, "network_change", lambda config, version: change)
    message = rf"{run.folder} were written by qam_jax {__version__} .* in 9\.9: it has other layers"
    with pytest.raises(ValueError, match=message):
        load_run(run.folder)
    with pytest.raises(ValueError, match=message):
        train(settings, _config())


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


def test_the_folder_of_another_config_is_refused(settings):
    named = dataclasses.replace(settings, run_id="mine", offline_steps=4, group="refused")
    train(named, _config())
    with pytest.raises(ValueError, match=r"agent.inv_temp is 1.0 there and 3.0 here.*--run_id"):
        train(named, _config(inv_temp=3.0))
    other = dataclasses.replace(named, sparse=True)
    with pytest.raises(ValueError, match="sparse is False there and True here"):
        train(other, _config())


def test_a_run_is_not_continued_on_other_data(settings, run, tmp_path):
    name = "pointmaze-medium-navigate-v0"
    generate.generate_dataset(
        name, tmp_path, num_episodes=3, seed=1, num_processes=1, progress=False
    )
    with pytest.raises(ValueError, match="was trained on other data"):
        train(dataclasses.replace(settings, dataset_dir=str(tmp_path)), _config())


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(settings, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    bad = dataclasses.replace(settings, save_dir=str(blocker / "exp"), dataset_dir="/nowhere")
    with pytest.raises(OSError, match=r"cannot write to the folder.*Choose another folder"):
        train(bad, _config())


def test_a_horizon_longer_than_every_episode_is_refused(settings):
    with pytest.raises(ValueError, match=r"horizon_length = 1500.*longest has 1000 transitions"):
        train(settings, _config(horizon_length=1500))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_interval": 6}, r"--eval_interval must be a multiple of --log_interval \(4\)"),
        ({"save_interval": 3}, "--save_interval must be a multiple"),
        ({"offline_steps": 0}, "nothing to do: give --offline_steps"),
        ({"offline_steps": -1}, "--offline_steps must be at least 0"),
        ({"utd_ratio": 0}, r"--utd_ratio must be in \[1"),
        ({"env_name": "", "online_steps": 5}, "--online_steps=5 needs an environment to act in"),
        ({"env_name": ""}, "there is no OGBench dataset: name data of your own"),
        ({"dataset_proportion": 0.0}, "--dataset_proportion must be above 0"),
        ({"eval_episodes": 0}, r"--eval_episodes must be in \[1"),
        ({"eval_envs": -3}, "--eval_envs must be"),
        ({"seed": 2**31}, "--seed must be"),
        ({"seed": 2**31 - 1, "num_seeds": 2}, "the last of the 2 seeds .*: give a smaller --seed"),
        ({"num_seeds": 2, "wandb_project": "p"}, "--wandb_project logs one run per process"),
        ({"run_id": "../other"}, "--run_id must be the name of one folder"),
        ({"video_episodes": -1}, "--video_episodes must be"),
        ({"dataset": "mine.npz"}, "give one or the other"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        check_settings(dataclasses.replace(settings, **changes))
