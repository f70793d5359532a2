"""Every method, through the public interface, in an environment of gymnasium: two seeds at once,
offline, continued from disk, fine-tuned online, evaluated, and read back."""

import dataclasses

import jax
import numpy as np
import pytest

from qam_jax.agents import acts_by_behavior, algorithm_names
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.saved import load_run
from qam_jax.training.train import train_seeds

pytestmark = pytest.mark.slow


@pytest.fixture(name="settings", scope="module")
def _settings(short_run):
    return dataclasses.replace(
        short_run, num_seeds=2, offline_steps=4, start_training=2, log_interval=2,
        eval_interval=10, save_interval=2,
    )  # fmt: skip


@pytest.mark.parametrize("name", algorithm_names())
def test_every_method_can_do_all_that_the_others_can(settings, small_config, name):
    _do_all(dataclasses.replace(settings, run_id=name), small_config(name))


@pytest.mark.parametrize(("name", "learning"), [("qam", "iql"), ("fql", "divl"), ("qam_e", "lql")])
def test_so_it_can_with_another_value_learning(settings, small_config, name, learning):
    settings = dataclasses.replace(settings, run_id=f"{name}-{learning}")
    _do_all(settings, small_config(name, value_learning=learning))


def _do_all(settings, config):
    """Trains two seeds offline, continues them from disk and online, and reads them back."""
    name = config.agent_name
    before = [result.state.params for result in train_seeds(settings, config)]
    results = train_seeds(
        dataclasses.replace(settings, online_steps=6), config
    )  # goes on from disk
    for result, earlier in zip(results, before, strict=True):
        saved = load_run(result.folder)
        assert (saved.step, int(saved.state.step)) == (10, 8)  # 2 of the 6 steps are waited
        jax.tree.map(np.testing.assert_array_equal, saved.state, result.state)
        assert _changed(earlier, saved.state.params)
        rows = read_csv(result.folder / "train.csv")
        assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
        assert all(np.isfinite(row["loss"]) for row in rows[:2] + rows[3:])
        assert [row["step"] for row in read_csv(result.folder / "eval.csv")] == [4, 10]
        assert result.episodes[0].length == 200
        has_behavior = "behavior" in result.state.params and not acts_by_behavior(name)
        assert bool(result.behavior_episodes) == has_behavior
    assert _changed(results[0].state.params, results[1].state.params)


def _changed(before, after):
    """Whether every network differs."""
    first = {name: jax.tree.leaves(before[name])[-1] for name in before}
    last = {name: jax.tree.leaves(after[name])[-1] for name in after}
    return all(not np.array_equal(first[name], last[name]) for name in first)
