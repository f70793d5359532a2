"""Data, settings and configs that several of these tests train with."""

import numpy as np
import pytest

from qam_jax.agents import get_config
from qam_jax.data import generate
from qam_jax.runs.settings import RunSettings

_SMALL = {
    "actor_hidden_dims": (8,),
    "critic_hidden_dims": (8,),
    "num_qs": 2,
    "flow_steps": 2,
    "batch_size": 8,
    "horizon_length": 2,
}


@pytest.fixture(name="maze_data", scope="session")
def _maze_data(tmp_path_factory):
    """A folder with a small dataset of `pointmaze-medium-navigate`, by the real recipe."""
    folder = tmp_path_factory.mktemp("maze")
    name = "pointmaze-medium-navigate-v0"
    generate.generate_dataset(name, folder, num_episodes=3, num_processes=1, progress=False)
    return folder


@pytest.fixture(name="random_data", scope="session")
def _random_data(tmp_path_factory):
    """A file of two random episodes, in the shapes of `Pendulum-v1`."""
    path = tmp_path_factory.mktemp("random") / "pendulum.npz"
    rng, rows = np.random.default_rng(0), 60
    terminals = np.zeros(rows)
    terminals[[29, 59]] = 1
    np.savez(
        path,
        observations=rng.normal(size=(rows, 3)),
        actions=rng.uniform(-1, 1, size=(rows, 1)),
        rewards=rng.normal(size=rows),
        terminals=terminals,
    )
    return path


@pytest.fixture(name="short_run", scope="module")
def _short_run(random_data, tmp_path_factory):
    """Settings of a short run on random data, in a folder of the test's module."""
    return RunSettings(
        dataset=str(random_data),
        env_name="Pendulum-v1",
        save_dir=str(tmp_path_factory.mktemp("exp")),
        offline_steps=8,
        start_training=0,
        buffer_size=64,  # of one size, so that one program serves the online stages of all tests
        log_interval=4,
        eval_interval=8,
        save_interval=4,
        eval_episodes=1,
        eval_envs=1,
    )


@pytest.fixture(name="small_config", scope="session")
def _small_config():
    """Makes the config of a method with the smallest networks."""

    def make(agent_name="qam", **changes):
        config = get_config(agent_name)
        config.update({name: value for name, value in _SMALL.items() if name in config})
        config.update(changes)
        return config

    return make
