"""Settings of published experiments, by method and environment. The values are in `paper.toml`."""

import csv
import functools
import tomllib
from fnmatch import fnmatch
from importlib import resources
from typing import Any, NamedTuple

from qam_jax.data.tasks import find_task

_SPARSE = "-sparse"  # ends the names of domains whose rewards are made sparse, in the table


class Preset(NamedTuple):
    """Settings of an experiment: fields of `RunSettings` and of the algorithm's config."""

    settings: dict[str, Any]
    config: dict[str, Any]


def paper(method: str, env_name: str, dataset_dir: str = "~/.ogbench/data") -> Preset:
    """The paper's run of a method in an environment: 1M updates offline, then 500k steps online.

    Args:
      method: name of an algorithm; see `paper_methods`.
      env_name: a single task of one of `paper_domains`, such as
        `cube-double-play-singletask-task2-v0`; without `-task<k>`, OGBench's default task.
      dataset_dir: folder of OGBench's files, and of the folders `<domain>-100m-v0` that
        cube-quadruple and puzzle-4x4 are trained on.

    Raises:
      ValueError: if the paper does not have the method or environment; names those it has.
    """
    if method not in paper_methods():
        raise ValueError(
            f"the paper has no method {method!r}; it has {', '.join(paper_methods())}."
        )
    domain = find_domain(env_name)
    domain = _rules()["same_as"].get(domain, domain)
    sparse = f"{domain}{_SPARSE}" in _table()
    settings: dict[str, Any] = {"sparse": sparse}
    config: dict[str, Any] = {}
    for rule in _rules()["rules"]:
        if fnmatch(method, rule.get("method", "*")) and fnmatch(domain, rule.get("domain", "*")):
            settings |= rule.get("settings", {})
            config |= rule.get("config", {})
            for name in rule.get("without", ()):
                del config[name]
    folder = settings["ogbench_dataset_dir"].format(dataset_dir=dataset_dir.rstrip("/"))
    listed = _table()[f"{domain}{_SPARSE}" if sparse else domain].get(method, {})
    return Preset({**settings, "ogbench_dataset_dir": folder}, {**config, **listed})


def paper_methods() -> list[str]:
    """Names of the algorithms that `paper` knows."""
    listed = {method for methods in _table().values() for method in methods}
    return sorted(listed.union(rule["method"] for rule in _rules()["rules"] if "method" in rule))


def paper_domains() -> list[str]:
    """The ten domains of the main results, and the six of the study of data quality."""
    return [*(domain.removesuffix(_SPARSE) for domain in _table()), *_rules()["same_as"]]


def find_domain(env_name: str) -> str:
    """The domain of an environment. Raises ValueError if the paper does not have it."""
    task = find_task(env_name)
    domain = task.domain if task and task.version == "v0" else ""
    if domain not in paper_domains():
        raise ValueError(
            f"the paper has no environment {env_name!r}; it has "
            f"<domain>-singletask-task<1..5>-v0 for the domains {', '.join(paper_domains())}."
        )
    return domain


@functools.cache
def _rules() -> dict[str, Any]:
    return tomllib.loads((resources.files(__name__) / "paper.toml").read_text())


@functools.cache
def _table() -> dict[str, dict[str, dict[str, float]]]:
    """The published hyperparameters, by domain, algorithm and field."""
    text = (resources.files(__name__) / "paper_hyperparameters.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row in csv.DictReader(lines):
        method = row["method"].lower().replace("-", "_")
        fields = table.setdefault(row["domain"], {}).setdefault(method, {})
        fields[row["parameter"]] = float(row["value"])
    return table
