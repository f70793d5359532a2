"""Data that several of these tests train on, made once."""

import numpy as np
import pytest

from qam_jax.data import generate


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
