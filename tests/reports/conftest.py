"""Run folders as training leaves them, by the same writers, without the training."""

from functools import partial

import numpy as np
import pytest

from qam_jax import agents
from qam_jax.runs.folder import find_folder, record_start
from qam_jax.runs.metrics import MetricLog
from qam_jax.runs.settings import RunSettings
from qam_jax.training.evaluation import Episode, summarize

TASK = "cube-double-play-singletask-task2-v0"


@pytest.fixture(name="make_run")
def _make_run(tmp_path):
    return partial(_write_run, tmp_path / "exp")


@pytest.fixture(scope="module", name="make_shared_run")
def _make_shared_run(tmp_path_factory):
    """As `make_run`, for runs that all tests of a file read; `.args[0]` is the folder."""
    return partial(_write_run, tmp_path_factory.mktemp("shared") / "exp")


def _write_run(
    save_dir,
    rates=(0.0, 0.5),
    *,
    agent_name="qam",
    env_name=TASK,
    seed=0,
    offline_steps=1000,
    online_steps=0,
    interval=500,
    group="study",
    config=None,
    returns=None,
    **settings,
):
    """Writes a run with an evaluation every `interval` steps and returns its folder.

    Args:
      rates: success rate of each evaluation so far; nan where it is unknown.
      config: fields of the agent's config that are not the default.
      returns: mean returns in the same order.
    """
    run = RunSettings(
        env_name=env_name, seed=seed, offline_steps=offline_steps, online_steps=online_steps,
        eval_interval=interval, log_interval=interval, save_interval=interval, group=group,
        save_dir=str(save_dir), eval_episodes=20, **settings,
    )  # fmt: skip
    agent = agents.get_config(agent_name)
    agent.update(config or {})
    folder = find_folder(run, agent)
    record_start(
        folder, run, agent,
        dataset_source="downloaded from a mirror", dataset_fingerprint="f", seed=seed,
        observation_dim=3, action_dim=2,
    )  # fmt: skip
    log = MetricLog(folder, {"train": 0, "eval": 0}, "", {})
    returns = np.full(len(rates), -100.0) if returns is None else returns
    for index, (rate, value) in enumerate(zip(rates, returns, strict=True)):
        step = (index + 1) * interval
        unit = "update" if step <= offline_steps else "step"
        log.write("train", step, {"loss": 1.0, f"{unit}s_per_second": 25.0})
        log.write("eval", step, summarize(_episodes(rate, value)))
    log.close()
    return folder


def _episodes(rate, value, count=20):
    episode = Episode(rate, value, 100, np.zeros((0, 2)))
    if np.isnan(rate):
        return [episode] * count
    successes = round(rate * count)
    return [episode._replace(success=float(index < successes)) for index in range(count)]
