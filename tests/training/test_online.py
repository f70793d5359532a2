import dataclasses
import json
import logging
import re
import sys
from functools import partial
from pathlib import Path

import cloudpickle
import jax
import numpy as np
import pytest

from qam_jax.agents import algorithm_names
from qam_jax.envs import EnvFailure, make_env
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.saved import load_run
from qam_jax.runs.settings import RunSettings
from qam_jax.runs.stopping import Stopped
from qam_jax.training import evaluation, stage
from qam_jax.training.run import inherited_settings
from qam_jax.training.train import train
from qam_jax.training.update import NotFiniteError

# An environment that is not ours: it knows no success, its actions lie in [-2, 2], and its
# episodes are truncated after 200 steps.
_ENV_NAME = "Pendulum-v1"


@pytest.fixture(name="settings", scope="module")
def _settings(short_run):
    assert short_run.env_name == _ENV_NAME
    return dataclasses.replace(short_run, save_interval=8)


@pytest.fixture(name="offline", scope="module")
def _offline(settings, small_config):
    rare = dataclasses.replace(settings, run_id="offline", eval_interval=200, save_interval=200)
    return train(rare, small_config())


def _steps(folder, kind):
    return [int(row["step"]) for row in read_csv(folder / f"{kind}.csv")]


@pytest.mark.slow
def test_an_offline_run_goes_straight_on_online(settings, offline, small_config):
    """In its own folder, by one more flag, with one curve; and with episodes that are logged."""
    again = dataclasses.replace(
        settings, run_id="offline", online_steps=408, num_envs=2, buffer_size=0
    )
    with pytest.raises(ValueError, match=r"eval_interval is 200 there and 8 here"):
        train(again, small_config())
    again = dataclasses.replace(again, eval_interval=200, save_interval=200)
    result = train(dataclasses.replace(again, online_steps=404), small_config())
    assert result.folder == offline.folder
    assert int(result.state.step) == 8 + 404
    assert _steps(result.folder, "eval") == [8, 200, 400, 412]
    assert _steps(result.folder, "train")[-1] == 412
    episodes = read_csv(result.folder / "env.csv")
    assert [row["length"] for row in episodes] == [200, 200]
    assert [row["step"] for row in episodes] == [408, 408]
    assert all(-2000 < row["return"] < 0 and np.isnan(row["success"]) for row in episodes)
    assert read_csv(result.folder / "train.csv")[-1]["replay_size"] == 404
    with pytest.raises(ValueError, match=r"holds 412 steps already, more than the 28"):
        train(dataclasses.replace(again, online_steps=20), small_config())
    with pytest.raises(ValueError, match=r"began its online stage after 8 steps.*now put it after"):
        train(dataclasses.replace(again, offline_steps=12), small_config())
    with pytest.raises(ValueError, match=r"num_envs is 2 there and 1 here"):
        train(dataclasses.replace(again, num_envs=1), small_config())


@pytest.mark.slow
def test_updates_per_step_and_random_actions_before_training(
    settings, small_config, monkeypatch, caplog
):
    """From nothing: no update and uniform actions until the start, then so many for each step."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(stage, "_SHORT_SECONDS", -1)
    alone = dataclasses.replace(
        settings, group="nothing", offline_steps=0, online_steps=24, start_training=11, utd_ratio=3,
        balanced_sampling=True,
    )  # fmt: skip
    result = train(alone, small_config())
    assert int(result.state.step) == 3 * (24 - 11)
    assert re.search(r"online: about [\d:]+ for 4 steps at .* per second", caplog.text)
    rows = read_csv(result.folder / "train.csv")
    assert np.isnan(rows[0]["loss"])
    assert np.isfinite(rows[-1]["loss"])
    logged = [np.load(path) for path in sorted((result.folder / "replay").glob("*.npz"))]
    actions = np.concatenate([file["actions"] for file in logged])
    expected = [np.random.default_rng([0, 0, chunk]).uniform(-1, 1, (2, 1)) for chunk in range(6)]
    np.testing.assert_allclose(actions[:12], np.concatenate(expected), rtol=1e-6)
    assert not np.allclose(actions[12:14], np.random.default_rng([0, 0, 6]).uniform(-1, 1, (2, 1)))


@pytest.fixture(name="without_data", scope="module")
def _without_data(settings):
    return dataclasses.replace(
        settings, dataset="", group="no_data", offline_steps=0, online_steps=8, num_envs=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", algorithm_names())
def test_experience_alone_is_enough(without_data, small_config, method):
    result = train(without_data, small_config(method))
    assert int(result.state.step) == 8
    rows = read_csv(result.folder / "train.csv")
    assert np.isfinite([rows[-1]["loss"], result.episodes[0].episode_return]).all()
    metadata = json.loads((result.folder / "metadata.json").read_text())
    assert metadata["dataset_source"] == "none but the run's own experience"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"offline_steps": 8}, "its offline stage"),
        ({"bc_steps": 8}, "its cloning stage"),
        ({"balanced_sampling": True}, "--balanced_sampling or --offline_ratio"),
        ({"offline_ratio": 0.3}, "--balanced_sampling or --offline_ratio"),
    ],
)
def test_what_needs_data_says_so(without_data, small_config, changes, reason):
    settings = dataclasses.replace(without_data, group="refused", **changes)
    message = f"no data of Pendulum-v1, which {reason} needs.*--dataset.*record_dataset.py"
    with pytest.raises(ValueError, match=message):
        train(settings, small_config())


@pytest.mark.slow
def test_rounds_that_go_beyond_an_interval_keep_its_number(settings, small_config):
    odd = dataclasses.replace(
        settings, group="odd", offline_steps=0, online_steps=16, num_envs=3, start_training=0
    )
    result = train(odd, small_config())  # six steps in a round
    assert _steps(result.folder, "train") == [4, 12, 16]  # after 6, 12 and 18 steps
    assert _steps(result.folder, "eval") == [8, 16]
    assert int(result.state.step) == 18
    assert load_run(result.folder).step == 18
    assert train(odd, small_config()).folder == result.folder  # finished
    assert _steps(result.folder, "eval") == [8, 16]


@pytest.mark.slow
def test_a_stage_of_behavior_cloning_comes_first(settings, small_config):
    cloned = dataclasses.replace(settings, group="cloned", bc_steps=8, offline_steps=8)
    config = small_config(lr=1e-9)  # so that what follows hardly changes the flow
    result = train(cloned, config)
    assert _steps(result.folder, "train") == [4, 8, 12, 16]
    assert _steps(result.folder, "eval") == [8, 16]
    assert int(result.state.step) == 8
    flow, behavior = result.state.params["flow"], result.state.params["behavior"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), flow, behavior)
    rows = read_csv(result.folder / "train.csv")
    assert np.isnan(rows[0]["critic_loss"])
    assert np.isfinite(rows[0]["bc_loss"])
    assert np.isfinite(rows[-1]["critic_loss"])
    assert load_run(result.folder, 8).agent is not None


def test_a_run_starts_from_another_ones_checkpoint(settings, offline, small_config):
    inherited = inherited_settings(str(offline.folder), "8")
    assert (inherited["offline_steps"], inherited["env_name"]) == (8, _ENV_NAME)
    tuned = RunSettings(**{
        **inherited, "run": str(offline.folder), "run_step": "8", "group": "tuned",
        "save_dir": settings.save_dir, "online_steps": 8, "num_envs": 1,
    })  # fmt: skip
    result = train(tuned, small_config(lr=1e-9))
    assert int(result.state.step) == 16
    assert _steps(result.folder, "train") == [4, 8, 12, 16]  # one curve
    assert _steps(result.folder, "eval") == [8, 16]
    assert json.loads((result.folder / "config.json").read_text())["run"] == str(offline.folder)
    with pytest.raises(ValueError, match=r"has 8 steps.*raise --offline_steps to 8"):
        train(dataclasses.replace(tuned, run_id="other", offline_steps=4), small_config())


@pytest.mark.slow
def test_a_run_starts_from_behavior_cloning_alone(settings, small_config):
    cloned = train(dataclasses.replace(settings, group="bc"), small_config("bc"))
    tuned = dataclasses.replace(
        settings, run=str(cloned.folder), group="from_bc", offline_steps=8, online_steps=4
    )
    result = train(tuned, small_config(lr=1e-9))
    expected = cloned.state.params["behavior"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        result.state.params["flow"],
        expected,
    )


@pytest.mark.parametrize(
    ("misfit", "message"),
    [
        ({"agent_name": "bc"}, r"agent_name = 'qam', this one 'bc'"),
        ({"horizon_length": 3}, r"horizon_length = 2, this one 3.*--config.horizon_length=2"),
        (
            {"critic_hidden_dims": (16,)},
            r"params/critic/.* has the shape \(2, 8\) there.*critic_hidden_dims = \[8\] there",
        ),
        ({"num_qs": 3}, r"num_qs = 2 there and 3 here"),
    ],
)
@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_refused(
    settings, offline, small_config, misfit, message
):
    tuned = dataclasses.replace(
        settings, run=str(offline.folder), run_step="8", group="misfit", online_steps=4
    )
    with pytest.raises(ValueError, match=message):
        train(tuned, small_config(**misfit))


@pytest.mark.slow
def test_training_without_an_environment(settings, small_config):
    alone = dataclasses.replace(settings, env_name="")
    result = train(alone, small_config())
    assert result.episodes == result.behavior_episodes == []
    assert int(load_run(result.folder).state.step) == 8
    assert not (result.folder / "eval.csv").exists()
    assert result.folder.parent.name == "no_environment"


@pytest.mark.slow
def test_a_run_that_is_stopped_during_an_evaluation_makes_up_for_it(
    settings, offline, monkeypatch, small_config
):
    stopped = dataclasses.replace(settings, group="stopped", run_id="offline")

    def stop(*_):
        raise Stopped("SIGTERM")

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(evaluation, "run_episodes", stop)
        train(stopped, small_config())
    folder = next(Path(settings.save_dir).glob("stopped/*/offline"))
    assert load_run(folder).step == 8
    assert not (folder / "eval.csv").exists()
    result = train(stopped, small_config())
    jax.tree.map(np.testing.assert_array_equal, result.state, load_run(offline.folder, 8).state)
    assert _steps(folder, "train") == [4, 8]
    rows = read_csv(folder / "eval.csv")
    np.testing.assert_equal(rows, read_csv(offline.folder / "eval.csv")[:1])


@pytest.mark.slow
def test_a_broken_environment_does_not_cost_a_checkpoint(
    settings, tmp_path, monkeypatch, small_config
):
    started = dataclasses.replace(settings, group="broken", online_steps=8)
    folder = train(started, small_config()).folder
    (tmp_path / "breaks_pendulum.py").write_text(
        "import gymnasium.envs.classic_control.pendulum as module\n"
        "def broken(*_, **__): raise RuntimeError('no licence')\n"
        "module.PendulumEnv.__init__ = broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    make = partial(make_env, _ENV_NAME, "breaks_pendulum")
    monkeypatch.setattr("qam_jax.training.evaluation.make_env", lambda *_: make())
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(EnvFailure, match="no licence"):
        train(dataclasses.replace(started, online_steps=12), small_config())
    assert load_run(folder).step == 16


@pytest.mark.slow
def test_training_that_goes_wrong_stops_and_keeps_the_last_checkpoint(settings, small_config):
    wrong = dataclasses.replace(
        settings, group="wrong", offline_steps=2000, log_interval=1, eval_interval=2000,
        save_interval=1,
    )  # fmt: skip
    with pytest.raises(
        NotFiniteError, match=r"the metric '\w+' is not finite at update (\d+)"
    ) as e:
        train(wrong, small_config(lr=3e5, clip_grad_norm=0.0))
    update = int(re.search(r"at update (\d+)", str(e.value))[1])
    folder = next(Path(settings.save_dir).glob("wrong/*/*"))
    saved = load_run(folder)
    assert 0 < saved.step < update
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.state.params))
    assert _steps(folder, "train")[-1] == saved.step
