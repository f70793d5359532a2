"""Evaluations beside training: the same run as without, also when it is stopped amid one."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.metrics import MetricLog, read_csv
from qam_jax.runs.stopping import Stopped
from qam_jax.training import evaluation
from qam_jax.training.train import train, train_seeds

pytestmark = pytest.mark.slow

_WRITE = MetricLog.write


@pytest.fixture(name="settings", scope="module")
def _settings(short_run):
    return dataclasses.replace(
        short_run, offline_steps=12, log_interval=2, eval_interval=4, keep_checkpoints=9,
        run_id="run",
    )  # fmt: skip


@pytest.fixture(name="config", scope="module")
def _config(small_config):
    return small_config("bc")


@pytest.fixture(name="plain", scope="module")
def _plain(settings, config):
    return train(dataclasses.replace(settings, group="plain"), config)


def _assert_same(result, expected):
    jax.tree.map(np.testing.assert_array_equal, result.state, expected.state)
    for kind in ("train", "eval"):
        rows, others = (read_csv(each.folder / f"{kind}.csv") for each in (result, expected))
        for row in rows + others:
            row["updates_per_second"] = 0  # the clock's
        np.testing.assert_equal(rows, others)
    saved, other = Checkpoints(result.folder), Checkpoints(expected.folder)
    assert saved.steps == other.steps == [4, 8, 12]
    assert saved.best_step == other.best_step
    for step in saved.steps:
        first, second = saved.read_progress(step), other.read_progress(step)
        assert first == second


def test_a_run_that_trains_on_is_the_same_run(settings, config, plain):
    overlapped = dataclasses.replace(settings, group="overlapped", overlap_evaluation=True)
    _assert_same(train(overlapped, config), plain)


def test_training_goes_on_meanwhile(settings, config, monkeypatch):
    going_on = dataclasses.replace(settings, group="going_on", overlap_evaluation=True)
    run_episodes, row_6 = evaluation.run_episodes, threading.Event()

    def wait(*arguments):
        assert row_6.wait(60)  # the row after that of the first evaluation
        return run_episodes(*arguments)

    def write(self, kind, step, metrics):
        if (kind, step) == ("train", 6):
            row_6.set()
        _WRITE(self, kind, step, metrics)

    monkeypatch.setattr(evaluation, "run_episodes", wait)
    monkeypatch.setattr(MetricLog, "write", write)
    train(going_on, config)


def test_several_seeds(settings, config, plain):
    both = dataclasses.replace(settings, group="both", num_seeds=2, overlap_evaluation=True)
    results = train_seeds(both, config)
    assert [row["step"] for row in read_csv(results[1].folder / "eval.csv")] == [4, 8, 12]
    rows = [read_csv(each.folder / "train.csv")[-1]["loss"] for each in (results[0], plain)]
    np.testing.assert_allclose(*rows, rtol=1e-4)


def test_a_run_stopped_amid_an_evaluation_goes_back_to_it(settings, config, plain, monkeypatch):
    stopped = dataclasses.replace(settings, group="stopped", overlap_evaluation=True)

    def stop(*_):
        raise Stopped("SIGTERM")

    monkeypatch.setattr(evaluation, "run_episodes", stop)
    with pytest.raises(Stopped):
        train(stopped, config)
    monkeypatch.undo()
    folder = plain.folder.parents[2] / "stopped" / plain.folder.parent.name / "run"
    progress = Checkpoints(folder).read_progress(4)
    assert (progress["step"], progress["reported"], progress["evaluation"]) == (4, 4, 4)
    assert not (folder / "eval.csv").exists()
    _assert_same(train(stopped, config), plain)


def test_an_evaluation_that_fails(settings, config, plain, monkeypatch):
    failing = dataclasses.replace(settings, group="failing", overlap_evaluation=True)

    def fail(*_):
        raise ValueError("the environment is gone")

    monkeypatch.setattr(evaluation, "run_episodes", fail)
    strict = dataclasses.replace(failing, group="strict", strict_evaluation=True)
    with pytest.raises(ValueError, match="the environment is gone"):
        train(strict, config)
    result = train(failing, config)
    assert result.episodes == []
    assert not (result.folder / "eval.csv").exists()
    jax.tree.map(np.testing.assert_array_equal, result.state, plain.state)
    monkeypatch.undo()
    again = train(strict, config)
    _assert_same(again, plain)
