"""OGBench's environment and dataset names (arXiv 2410.20092)."""

import re
from typing import NamedTuple

_DATASET_TYPES = ("navigate", "stitch", "explore", "play", "noisy")
_SINGLETASK = re.compile(
    rf"^(?P<base>[a-z0-9-]+)-(?P<type>{'|'.join(_DATASET_TYPES)})"
    r"-singletask(?P<task>-task[1-5])?-(?P<version>v\d+)$"
)


class OGBenchName(NamedTuple):
    """What one single-task name stands for.

    Attributes:
      env_id: gymnasium's id of the simulator with this task's reward.
      dataset_name: OGBench's name of the reward-free dataset, shared by all tasks.
    """

    env_id: str
    dataset_name: str


def parse_env_name(env_name: str) -> OGBenchName:
    """Splits a name such as `cube-double-play-singletask-task2-v0` into simulator and dataset.

    Without `-task<k>` the name means OGBench's default task of that environment.

    Raises:
      ValueError: if the name does not have OGBench's single-task form.

    Examples:
      >>> parse_env_name("cube-double-play-singletask-task2-v0")
      OGBenchName(env_id='cube-double-singletask-task2-v0', dataset_name='cube-double-play-v0')
    """
    match = _SINGLETASK.match(env_name)
    if match is None:
        raise ValueError(
            f"unknown environment {env_name!r}: expected an OGBench single-task name of the form "
            f"<environment>-<dataset type>-singletask[-task<1..5>]-v0, with dataset type one of "
            f"{', '.join(_DATASET_TYPES)}; for example 'cube-double-play-singletask-task2-v0' or "
            "'pointmaze-medium-navigate-singletask-v0' (the default task)."
        )
    base, kind, task, version = match["base"], match["type"], match["task"] or "", match["version"]
    return OGBenchName(f"{base}-singletask{task}-{version}", f"{base}-{kind}-{version}")
