"""What runs are called in tables: their method and their task, as the paper calls them."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# By `agent_name`, in the order of the tables and with the paper's spelling.
_METHODS = {
    "qam": "QAM",
    "qam_e": "QAM-E",
    "qam_f": "QAM-F",
    "trqam": "TRQAM",
    "bam": "BAM",
    "fql": "FQL",
    "fedit": "FEdit",
    "ifql": "IFQL",
    "dsrl": "DSRL",
    "cgql": "CGQL",
    "cgql_m": "CGQL-M",
    "cgql_l": "CGQL-L",
    "fbrac": "FBRAC",
    "fawac": "FAWAC",
    "dac": "DAC",
    "qsm": "QSM",
    "rebrac": "ReBRAC",
    "rlpd": "RLPD",
    "bc": "BC",
}
METHODS = tuple(_METHODS.values())

_SINGLETASK = re.compile(r"^(?P<domain>.+)-singletask(-task(?P<task>\d))?-v\d+$")

# The task that OGBench 1.2 means by a name without one (`reward_task_id == 0` in its sources).
_DEFAULT_TASKS = {"pointmaze": 1, "antmaze": 1, "humanoidmaze": 1, "antsoccer": 4} | {
    "cube": 2,
    "scene": 2,
    "puzzle": 4,
}


class Task(NamedTuple):
    """What an `env_name` stands for.

    Attributes:
      domain: `cube-double-play`, or the whole name where it is not one of OGBench's.
      label: `task 2`, or the whole name.
    """

    domain: str
    label: str


def method_name(agent_config: Mapping[str, Any]) -> str:
    """The paper's name of the method that an agent's config describes.

    QAM with an edit policy is QAM-E and with a one-step actor QAM-F, whether the config says so by
    its name or by its fields. A name that the paper does not have stays as it is.
    """
    name = agent_config["agent_name"]
    if name == "qam" and agent_config.get("edit_scale", 0) > 0:
        name = "qam_e"
    elif name == "qam" and agent_config.get("fql_alpha", 0) > 0:
        name = "qam_f"
    return _METHODS.get(name, name)


def agent_name(method: str) -> str | None:
    """The `agent_name` of one of the paper's methods; None of any other."""
    return next((name for name, label in _METHODS.items() if label == method), None)


def method_order(label: str) -> tuple[int, str]:
    """A sorting key: the paper's methods first, each followed by its variants."""
    method = base_method(label)
    return (METHODS.index(method) if method in METHODS else len(METHODS), label)


def base_method(label: str) -> str:
    """The method of a label such as `QAM-E (T=3)`."""
    return label.split(" (")[0].removesuffix("-NOCLIP")


def parse_task(env_name: str) -> Task:
    """Splits a name such as `cube-double-play-singletask-task2-v0` into domain and task."""
    match = _SINGLETASK.match(env_name)
    if match is None:
        return Task(env_name, env_name)
    return Task(match["domain"], f"task {match['task'] or _default_task(env_name) or 'default'}")


def full_env_name(env_name: str) -> str:
    """The name with its task, where it leaves out OGBench's default one."""
    match = _SINGLETASK.match(env_name)
    number = _default_task(env_name)
    if match is None or match["task"] or number is None:
        return env_name
    return env_name.replace("-singletask-", f"-singletask-task{number}-")


def _default_task(env_name: str) -> int | None:
    return _DEFAULT_TASKS.get(env_name.split("-")[0])
