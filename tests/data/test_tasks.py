import gymnasium
import ogbench  # noqa: F401 - registers the environments
import pytest

from qam_jax.data.tasks import find_task, parse_task


@pytest.mark.parametrize(
    ("env_name", "env_id", "domain", "actual_number"),
    [
        ("cube-double-play-singletask-task3-v0", "cube-double-singletask-task3-v0",
         "cube-double-play", 3),
        ("pointmaze-medium-navigate-singletask-v0", "pointmaze-medium-singletask-v0",
         "pointmaze-medium-navigate", 1),
        ("humanoidmaze-large-stitch-singletask-task5-v0", "humanoidmaze-large-singletask-task5-v0",
         "humanoidmaze-large-stitch", 5),
        ("puzzle-4x4-noisy-singletask-v0", "puzzle-4x4-singletask-v0", "puzzle-4x4-noisy", 4),
    ],
)  # fmt: skip
def test_names_split_into_simulator_dataset_and_task(env_name, env_id, domain, actual_number):
    task = parse_task(env_name)
    assert (task.env_id, task.domain, task.actual_number) == (env_id, domain, actual_number)
    assert task.dataset_name == f"{domain}-v0"
    assert task.full_name == f"{domain}-singletask-task{actual_number}-v0"
    assert task.number == (None if "-task" not in env_name.replace("-singletask", "") else
                           actual_number)  # fmt: skip
    assert env_id in gymnasium.registry


def test_the_default_task_of_an_unknown_environment_stays_unknown():
    task = parse_task("soccer-play-singletask-v0")
    assert task.actual_number is None and task.full_name == "soccer-play-singletask-v0"


@pytest.mark.parametrize(
    "env_name", ["cube-double-v0", "cube-double-play-singletask-task9-v0", "HalfCheetah-v5", ""]
)
def test_other_names_are_refused_with_an_example(env_name):
    assert find_task(env_name) is None
    with pytest.raises(ValueError, match=f"unknown environment '{env_name}'.*for example"):
        parse_task(env_name)
