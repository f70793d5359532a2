"""Several seeds in one program: each is the run that it would be alone."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.runs.metrics import read_csv
from qam_jax.runs.saved import load_run
from qam_jax.runs.stopping import Stopped
from qam_jax.training import loop
from qam_jax.training.collector import Collector
from qam_jax.training.devices import Layout
from qam_jax.training.train import train, train_seeds


@pytest.fixture(name="base", scope="module")
def _base(short_run):
    """Two seeds of a short run, offline and then online."""
    return dataclasses.replace(
        short_run, seed=3, num_seeds=2, online_steps=12, start_training=4, eval_interval=4
    )


@pytest.fixture(name="config", scope="module")
def _config(small_config):
    return small_config()


@pytest.fixture(name="settings")
def _settings(base, tmp_path):
    return dataclasses.replace(base, save_dir=str(tmp_path))


@pytest.fixture(name="alone", scope="module")
def _alone(base, config):
    """The result of each seed as a run of its own."""
    runs = [dataclasses.replace(base, seed=seed, num_seeds=1) for seed in (3, 4)]
    return [train(run, config) for run in runs]


def _assert_same(result, expected):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4), result.state, expected.state
    )
    for kind in ("train", "eval", "env"):
        rows, expected_rows = (read_csv(each.folder / f"{kind}.csv") for each in (result, expected))
        assert [row.keys() for row in rows] == [row.keys() for row in expected_rows]
        for row, expected_row in zip(rows, expected_rows, strict=True):
            for name in row.keys() - {"updates_per_second", "steps_per_second"}:
                np.testing.assert_allclose(
                    row[name], expected_row[name], rtol=5e-3, atol=1e-3, err_msg=f"{kind} {name}"
                )


@pytest.mark.slow
def test_each_seed_is_the_run_that_it_would_be_alone(settings, config, alone):
    together = train_seeds(settings, config)
    assert [result.seed for result in together] == [3, 4]
    for result, expected in zip(together, alone, strict=True):
        assert result.folder.name == expected.folder.name
        saved = json.loads((result.folder / "config.json").read_text())
        assert (saved["seed"], saved["num_seeds"]) == (result.seed, 1)
        _assert_same(result, expected)
    more = dataclasses.replace(settings, seed=4, num_seeds=1, online_steps=14)
    assert load_run(train(more, config).folder).step == 22


@pytest.mark.slow
def test_seeds_that_are_not_equally_far_catch_up(settings, config, alone):
    first = dataclasses.replace(settings, num_seeds=1, online_steps=4)
    train(first, config)  # seed 3 is online when seed 4 has not begun
    for result, expected in zip(train_seeds(settings, config), alone, strict=True):
        _assert_same(result, expected)


def _stopping(function, number):
    """A function that asks to stop after one of its calls."""
    calls = []

    def stop(*arguments):
        result = function(*arguments)
        calls.append(None)
        if len(calls) == number:
            raise Stopped("SIGTERM")
        return result

    return stop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [(loop, "_check_stop", 4), (loop, "_check_stop", 9), (Collector, "_step", 5)],
)
def test_seeds_that_are_stopped_are_continued(
    settings, config, alone, monkeypatch, owner, name, number
):
    """Also amid a round of acting, which one of them has finished."""
    stopped = dataclasses.replace(settings, group=f"stopped{name}{number}")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _stopping(getattr(owner, name), number))
        with pytest.raises(Stopped):
            train_seeds(stopped, config)
    folder = next((Path(settings.save_dir) / stopped.group).glob("*/*"))
    assert load_run(folder).step
    for result, expected in zip(train_seeds(stopped, config), alone, strict=True):
        _assert_same(result, expected)


@pytest.mark.slow
def test_a_run_id_serves_several_seeds(settings, config):
    own = dataclasses.replace(settings, run_id="mine", offline_steps=4, online_steps=0)
    results = train_seeds(dataclasses.replace(own, eval_interval=4), config)
    assert [result.folder.name for result in results] == ["mine-seed3", "mine-seed4"]
    with pytest.raises(ValueError, match="num_seeds is 2: train_seeds trains several"):
        train(own, config)


def test_more_devices_than_there_are(settings, config):
    count = jax.local_device_count() + 1
    with pytest.raises(
        ValueError, match=rf"--num_devices={count}, but this process has {count - 1}"
    ):
        train_seeds(dataclasses.replace(settings, num_devices=count), config)


def test_joined_trees_come_apart_again():
    layout, trees = Layout([0, 1]), [{"a": jnp.ones(3)}, {"a": jnp.zeros(3)}]
    joined = layout.join(trees)
    for index in range(2):
        np.testing.assert_array_equal(layout.pick(joined, index)["a"], trees[index]["a"])
    swapped = layout.put(joined, 0, {"a": jnp.full(3, 7.0)})
    np.testing.assert_array_equal(swapped["a"], [[7] * 3, [0] * 3])
    alone = Layout([0])
    np.testing.assert_array_equal(alone.join(trees[:1])["a"], trees[0]["a"])
    assert alone.stack(trees[:1]) is trees[0] is alone.pick(trees[0], 0)


_ON_EIGHT_DEVICES = """
import dataclasses, json, sys
from qam_jax.agents import get_config
from qam_jax.training.train import train_seeds
from qam_jax.runs.settings import RunSettings
import jax
assert jax.local_device_count() == 8
config = get_config("qam")
config.update(json.loads(sys.argv[2]))
results = train_seeds(RunSettings(**json.loads(sys.argv[1])), config)
print("FOLDERS", json.dumps([str(result.folder) for result in results]))
"""


@pytest.mark.parametrize(("num_seeds", "num_devices"), [(2, 8), (1, 2)])
@pytest.mark.slow
def test_eight_devices_agree_with_one(settings, config, alone, num_seeds, num_devices):
    """Two seeds, the batches of each over four devices; and one whose batches two devices share."""
    several = dataclasses.replace(settings, num_seeds=num_seeds, num_devices=num_devices)
    arguments = [dataclasses.asdict(several), config.to_dict()]
    devices = " --xla_force_host_platform_device_count=8"
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + devices,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", _ON_EIGHT_DEVICES, *map(json.dumps, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    folders = json.loads(process.stdout.split("FOLDERS")[1])
    assert len(folders) == num_seeds
    for folder, expected in zip(folders, alone, strict=False):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4),
            load_run(folder).state,
            expected.state,
        )
