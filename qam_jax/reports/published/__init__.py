"""The paper's figures (Li & Levine, arXiv 2601.14234), as data; README.md says what they are."""

import csv
import functools
from importlib import resources
from typing import NamedTuple

from qam_jax.reports.labels import full_env_name

STUDIES = ("main", "data_quality", "sensitivity")


class PublishedResult(NamedTuple):
    """A line of a published table; success rates in percent.

    Attributes:
      study: the table, one of `STUDIES`.
      env_name: the task's full name.
      method: the method's name there.
      num_seeds: how many runs were made.
      offline: mean and standard deviation at the end of the offline stage; None without one.
      online: the same at the end of fine-tuning.
    """

    study: str
    env_name: str
    method: str
    num_seeds: int
    offline: tuple[float, float] | None
    online: tuple[float, float] | None


def published_result(env_name: str, method: str) -> PublishedResult | None:
    """What the paper has for a method on a task; None if it has nothing."""
    return _by_run().get((full_env_name(env_name), method))


@functools.cache
def published_results(study: str) -> tuple[PublishedResult, ...]:
    """All lines of a study's table.

    Raises:
      ValueError: if there is no such study.
    """
    if study not in STUDIES:
        raise ValueError(f"unknown study {study!r}: expected one of {', '.join(STUDIES)}.")
    return tuple(
        PublishedResult(
            study=study,
            env_name=row["env_name"],
            method=row["method"],
            num_seeds=int(row["num_seeds"]),
            offline=_figures(row, "offline"),
            online=_figures(row, "online"),
        )
        for row in _rows(f"{study}.csv")
    )


@functools.cache
def _by_run() -> dict[tuple[str, str], PublishedResult]:
    results = [result for study in STUDIES for result in published_results(study)]
    return {(result.env_name, result.method): result for result in results}


def _figures(row: dict[str, str], stage: str) -> tuple[float, float] | None:
    mean, deviation = row[f"{stage}_mean"], row[f"{stage}_std"]
    return (float(mean), float(deviation)) if mean else None


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
