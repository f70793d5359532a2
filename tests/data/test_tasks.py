import gymnasium
import ogbench  # noqa: F401 - registers the environments
import pytest

from qam_jax.data.tasks import parse_env_name


@pytest.mark.parametrize(
    ("env_name", "env_id", "dataset_name"),
    [
        (
            "cube-double-play-singletask-task2-v0",
            "cube-double-singletask-task2-v0",
            "cube-double-play-v0",
        ),
        (
            "pointmaze-medium-navigate-singletask-v0",
            "pointmaze-medium-singletask-v0",
            "pointmaze-medium-navigate-v0",
        ),
        (
            "humanoidmaze-large-stitch-singletask-task5-v0",
            "humanoidmaze-large-singletask-task5-v0",
            "humanoidmaze-large-stitch-v0",
        ),
        ("puzzle-4x4-noisy-singletask-v0", "puzzle-4x4-singletask-v0", "puzzle-4x4-noisy-v0"),
    ],
)
def test_names_split_into_simulator_and_dataset(env_name, env_id, dataset_name):
    assert parse_env_name(env_name) == (env_id, dataset_name)
    assert env_id in gymnasium.registry


@pytest.mark.parametrize(
    "env_name", ["cube-double-v0", "cube-double-play-singletask-task9-v0", "HalfCheetah-v5", ""]
)
def test_other_names_are_refused_with_an_example(env_name):
    with pytest.raises(ValueError, match=f"unknown environment '{env_name}'.*for example"):
        parse_env_name(env_name)
