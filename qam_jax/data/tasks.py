"""Names of OGBench's single tasks (arXiv 2410.20092), parsed in one place for the whole package."""

import re
from typing import NamedTuple

DATASET_TYPES = ("navigate", "stitch", "explore", "play", "noisy")

_NAME = re.compile(rf"([a-z0-9-]+)-({'|'.join(DATASET_TYPES)})-singletask(?:-task([1-5]))?-(v\d+)")
# OGBench 1.2 means these tasks by a name without a number (`reward_task_id == 0` in its sources).
_DEFAULT_NUMBERS = {
    "pointmaze": 1, "antmaze": 1, "humanoidmaze": 1, "antsoccer": 4, "cube": 2, "scene": 2,
    "puzzle": 4,
}  # fmt: skip


class OGBenchTask(NamedTuple):
    """Parts of a name such as `cube-double-play-singletask-task2-v0`."""

    environment: str  # cube-double
    dataset_type: str  # play; one of DATASET_TYPES
    number: int | None  # 2, from 1 to 5; None where the name leaves it out
    version: str  # v0

    @property
    def domain(self) -> str:
        """Environment and dataset type, such as `cube-double-play`."""
        return f"{self.environment}-{self.dataset_type}"

    @property
    def dataset_name(self) -> str:
        """OGBench's name of the dataset, which has no rewards and serves all tasks."""
        return f"{self.domain}-{self.version}"

    @property
    def env_id(self) -> str:
        """Gymnasium's id of the simulator with the reward of this task."""
        return f"{self.environment}-{self._suffix(self.number)}"

    @property
    def actual_number(self) -> int | None:
        """Number of the task, OGBench's default where the name leaves it out; None if unknown."""
        return self.number or _DEFAULT_NUMBERS.get(self.environment.split("-")[0])

    @property
    def full_name(self) -> str:
        """Name of the task with its number, wherever the number is known."""
        return f"{self.domain}-{self._suffix(self.actual_number)}"

    def _suffix(self, number: int | None) -> str:
        return f"singletask{f'-task{number}' if number else ''}-{self.version}"


def find_task(env_name: str) -> OGBenchTask | None:
    """Parts of a single-task name; None if the name does not have this form.

    Examples:
      >>> find_task("cube-double-play-singletask-task2-v0").dataset_name
      'cube-double-play-v0'
    """
    match = _NAME.fullmatch(env_name)
    if match is None:
        return None
    environment, dataset_type, number, version = match.groups()
    return OGBenchTask(environment, dataset_type, int(number) if number else None, version)


def parse_task(env_name: str) -> OGBenchTask:
    """Parts of a single-task name. Raises ValueError if the name does not have this form."""
    task = find_task(env_name)
    if task is None:
        raise ValueError(
            f"unknown environment {env_name!r}: expected an OGBench single-task name of the form "
            f"<environment>-<dataset type>-singletask[-task<1..5>]-v0, with dataset type one of "
            f"{', '.join(DATASET_TYPES)}; for example 'cube-double-play-singletask-task2-v0' or "
            "'pointmaze-medium-navigate-singletask-v0' (the default task)."
        )
    return task
