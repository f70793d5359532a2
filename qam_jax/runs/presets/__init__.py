"""The settings of published experiments, by method and environment.

The paper is Q. Li and S. Levine, Q-learning with Adjoint Matching, arXiv 2601.14234; TRQAM's are
those of its own paper, arXiv 2605.27079, in the schedule of the former.
"""

import csv
import functools
from importlib import resources
from typing import Any, NamedTuple

from qam_jax.data.tasks import find_task

# Of the study of data quality: these domains, with another kind of data, under their settings.
_OTHER_DATA = {
    "antmaze-large-stitch": "antmaze-large-navigate",
    "humanoidmaze-medium-stitch": "humanoidmaze-medium-navigate",
    "cube-double-noisy": "cube-double-play",
    "cube-triple-noisy": "cube-triple-play",
    "scene-noisy": "scene-play",
    "puzzle-3x3-noisy": "puzzle-3x3-play",
}
_LARGE_DATA = ("cube-quadruple-play", "puzzle-4x4-play")  # 100 files of a million transitions
_LONG_TASKS = ("antmaze-giant", "humanoidmaze")
_SPARSE = "-sparse"
_WITHOUT_TABLE = ("bc", "trqam")  # all their hyperparameters are the same everywhere
_OFF_WHERE_NOT_LISTED = {"qam_e": "edit_scale", "qam_f": "fql_alpha"}


class Preset(NamedTuple):
    """What an experiment sets.

    Attributes:
      settings: fields of `qam_jax.runs.settings.RunSettings`.
      config: fields of the algorithm's config.
    """

    settings: dict[str, Any]
    config: dict[str, Any]


def paper(method: str, env_name: str, dataset_dir: str = "~/.ogbench/data") -> Preset:
    """The paper's run of a method in an environment: 1M updates offline, then 500k steps online.

    RLPD has no offline stage; TRQAM starts from behaviour cloning; `bc`, which is not fine-tuned,
    ends after the offline stage. Where the paper lists no `edit_scale` or `fql_alpha` for QAM-E
    or QAM-F it is 0, which is plain QAM.

    Args:
      method: name of an algorithm; see `paper_methods`.
      env_name: a single task of one of `paper_domains`, such as
        `cube-double-play-singletask-task2-v0`; without `-task<k>`, OGBench's default task.
      dataset_dir: folder of OGBench's files, and of the folders `<domain>-100m-v0` that
        cube-quadruple and puzzle-4x4 are trained on.

    Raises:
      ValueError: if the paper does not have that method or environment; says what it has.
    """
    if method not in paper_methods():
        raise ValueError(
            f"the paper has no method {method!r}; it has {', '.join(paper_methods())}."
        )
    domain = find_domain(env_name)
    base_domain = _OTHER_DATA.get(domain, domain)
    sparse = f"{base_domain}{_SPARSE}" in _table()
    listed = _table()[f"{base_domain}{_SPARSE}" if sparse else base_domain].get(method, {})
    fields = _domain_fields(method, base_domain)
    if method in _OFF_WHERE_NOT_LISTED:
        fields[_OFF_WHERE_NOT_LISTED[method]] = 0.0
    settings = {
        "sparse": sparse,
        **_schedule(method),
        "ogbench_dataset_dir": "",
        "dataset_replace_interval": 1000,
    }
    if domain in _LARGE_DATA:
        settings["ogbench_dataset_dir"] = f"{dataset_dir.rstrip('/')}/{domain}-100m-v0"
    return Preset(settings, {**fields, **listed})


def paper_methods() -> list[str]:
    """Names of the algorithms that `paper` knows."""
    listed = {method for methods in _table().values() for method in methods}
    return sorted(listed.union(_WITHOUT_TABLE))


def paper_domains() -> list[str]:
    """The ten domains of the main results, and the six of the study of data quality."""
    return [*(domain.removesuffix(_SPARSE) for domain in _table()), *_OTHER_DATA]


def find_domain(env_name: str) -> str:
    """The domain that an environment belongs to, such as `cube-double-play`.

    Raises:
      ValueError: if it is none of the paper's; names these.
    """
    task = find_task(env_name)
    domain = task.domain if task and task.version == "v0" else ""
    if domain not in paper_domains():
        raise ValueError(
            f"the paper has no environment {env_name!r}; it has "
            "<domain>-singletask-task<1..5>-v0 for the domains "
            f"{', '.join(paper_domains())}."
        )
    return domain


def _schedule(method: str) -> dict[str, Any]:
    schedule = {
        "bc_steps": 0,
        "offline_steps": 1_000_000,
        "online_steps": 500_000,
        "start_training": 5000,
        "utd_ratio": 1,
        "balanced_sampling": False,
        "eval_interval": 50_000,
        "eval_episodes": 50,
    }
    of_method = {
        "bc": {"online_steps": 0},
        "rlpd": {"offline_steps": 0, "balanced_sampling": True},
        "trqam": {"bc_steps": 300_000},
    }
    return {**schedule, **of_method.get(method, {})}


def _domain_fields(method: str, domain: str) -> dict[str, Any]:
    """What the domain alone decides, and with TRQAM its own discount."""
    locomotion = "maze" in domain
    humanoid = domain.startswith("humanoidmaze")
    discount = 0.995 if domain.startswith(_LONG_TASKS) else 0.99
    if method == "trqam":
        discount = 0.999 if humanoid else 0.995
    fields = {
        "horizon_length": 1 if locomotion else 5,
        "action_chunking": not locomotion,
        "discount": discount,
    }
    return fields if method == "bc" else {**fields, "rho": 0.0 if humanoid else 0.5}


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
