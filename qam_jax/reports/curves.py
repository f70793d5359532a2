"""Learning curves and performance profiles over runs, with their intervals."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from qam_jax.reports.collect import Run, ranges
from qam_jax.reports.labels import method_order
from qam_jax.reports.results import Result
from qam_jax.reports.statistics import bootstrap, performance_profile

_REPLICATES = 1000
THRESHOLDS = np.linspace(0, 100, 101)


class Curve(NamedTuple):
    """A method's mean score against steps, over the runs of one task or more.

    Attributes:
      method: the method's label.
      steps: [S] int, or [S] thresholds of a profile.
      mean: [S].
      low: [S], of the 95% interval; nan without one.
      high: [S].
      seeds: the smallest and the largest number of runs on a task.
      num_tasks: how many tasks.
    """

    method: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: tuple[int, int]
    num_tasks: int


def learning_curves(runs: Iterable[Run]) -> list[Curve]:
    """A curve for each method, over the steps at which all of its runs were evaluated.

    A run that ends before half of its method's runs on the task is left out, so that it neither
    cuts the curve short nor makes it jump; see `left_out`.
    """
    curves = []
    for method, by_task in _by_method(runs).items():
        tasks = [_split(task)[0] for task in by_task.values()]
        steps = np.array(
            sorted(set.intersection(*(set(run.steps) for task in tasks for run in task)))
        )
        if not len(steps):
            continue
        scores = [np.array([[run.score_at(s) for s in steps] for run in task]) for task in tasks]
        bounds = bootstrap(_mean_curve, scores, replicates=_REPLICATES)
        sizes = [len(task) for task in tasks]
        curves.append(Curve(method, steps, *bounds, (min(sizes), max(sizes)), len(tasks)))
    return curves


def left_out(runs: Iterable[Run]) -> list[str]:
    """A line for each task and method of which runs are left out of the learning curves."""
    notes = []
    for method, by_task in _by_method(runs).items():
        for env_name, task in by_task.items():
            kept, late = _split(task)
            if late:
                seeds = ranges(run.seed for run in late)
                notes.append(
                    f"{method} on {env_name}: seed{'s' * (len(late) > 1)} {seeds} not yet "
                    f"evaluated at step {min(run.last for run in kept):,}, as the others are; left "
                    "out of the learning curves."
                )
            if not set.intersection(*(set(run.steps) for run in kept)):
                notes.append(
                    f"{method} on {env_name}: its runs were not evaluated at the same steps; "
                    "there is no learning curve."
                )
    return notes


def profiles(results: Iterable[Result], stage: str) -> list[Curve]:
    """The performance profile of each method: the fraction of runs above each success rate."""
    methods: dict[str, list[np.ndarray]] = {}
    for result in results:
        if result.stage == stage and result.unit == "%":
            methods.setdefault(result.method, []).append(result.scores)
    curves = []
    for method in sorted(methods, key=method_order):
        scores = methods[method]
        bounds = bootstrap(
            lambda tasks: performance_profile(tasks, THRESHOLDS), scores, replicates=_REPLICATES
        )
        sizes = [len(task) for task in scores]
        curves.append(Curve(method, THRESHOLDS, *bounds, (min(sizes), max(sizes)), len(scores)))
    return curves


def borders(runs: Iterable[Run]) -> list[int]:
    """The steps at which runs with evaluations go online."""
    return sorted({run.border for run in runs if run.last and run.end > run.border > 0})


def _mean_curve(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Of tasks [..., n, S]: the mean over tasks of the mean over runs, [..., S]."""
    return np.mean([task.mean(axis=-2) for task in scores], axis=0)


def _by_method(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs with evaluations by method and task; the methods in order."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.last:
            found.setdefault(run.method, {}).setdefault(run.env_name, []).append(run)
    return {method: found[method] for method in sorted(found, key=method_order)}


def _split(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Those that have come at least as far as half of them has, and the others."""
    usual = sorted((run.last for run in runs), reverse=True)[(len(runs) - 1) // 2]
    return [run for run in runs if run.last >= usual], [run for run in runs if run.last < usual]
