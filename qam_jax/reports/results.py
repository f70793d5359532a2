"""Results of runs: on each task, over a domain's tasks, over all; and what is missing."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from qam_jax.reports.collect import Run, ranges
from qam_jax.reports.labels import method_order, parse_task
from qam_jax.reports.missing import Key, absent_runs
from qam_jax.reports.statistics import (
    Estimate,
    estimate,
    interquartile_mean,
    mean_score,
    probability_of_improvement,
)

OVERALL = "overall"


class Result(NamedTuple):
    """A method's result on a task at the end of a stage.

    Attributes:
      env_name: the task.
      method: the method's label.
      stage: `offline`, `online` or `step <N>`.
      unit: `%` or `return`.
      step: at which the runs were evaluated.
      seeds: of the runs that have come so far.
      scores: theirs.
      mean: of the scores, with its interval.
    """

    env_name: str
    method: str
    stage: str
    unit: str
    step: int
    seeds: tuple[int, ...]
    scores: np.ndarray
    mean: Estimate


class Aggregate(NamedTuple):
    """A method's results over a domain's tasks, or over all.

    Attributes:
      domain: its name, or `OVERALL`.
      method: the method's label.
      stage: as that of `Result`.
      unit: as that of `Result`.
      mean: over tasks, with its interval.
      iqm: interquartile mean, with its interval.
      improvement: probability of improvement over the reference, with its interval; None for the
        reference itself and where no task is shared with it.
      num_tasks: tasks with results of this method.
      of_tasks: tasks with results of any.
      seeds: the smallest and the largest number of runs on a task.
    """

    domain: str
    method: str
    stage: str
    unit: str
    mean: Estimate
    iqm: Estimate
    improvement: Estimate | None
    num_tasks: int
    of_tasks: int
    seeds: tuple[int, int]


class Missing(NamedTuple):
    """A run that is expected and not done.

    Attributes:
      method: the method's label.
      env_name: the task.
      seed: the run's.
      state: how far it is.
    """

    method: str
    env_name: str
    seed: int
    state: str


def task_results(runs: Iterable[Run], at: int | None = None) -> list[Result]:
    """The results of each method on each task, of the runs that have come so far.

    Args:
      runs: with at most one of each task, method and seed.
      at: a step to take them at, in place of the ends of the offline and online stages.
    """
    groups: dict[tuple, list[tuple[int, float]]] = {}
    for run in runs:
        for stage, step in stage_steps(run, at):
            score = run.score_at(step)
            if not math.isnan(score):
                key = (run.env_name, run.method, stage, run.unit, step)
                groups.setdefault(key, []).append((run.seed, score))
    found = []
    for key, pairs in groups.items():
        seeds, scores = zip(*sorted(pairs), strict=True)
        values = np.array(scores)
        found.append(Result(*key, seeds, values, estimate(mean_score, [values])))
    return sorted(found, key=lambda result: (result.env_name, method_order(result.method)))


def stage_steps(run: Run, at: int | None) -> list[tuple[str, int]]:
    """The stages of a run, each with the step at which its result is taken.

    Args:
      run: of one stage or two.
      at: a step to take it at, in place of the ends of the offline and online stages.
    """
    if at is not None:
        return [(f"step {at:,}", at)]
    steps = [("offline", run.border)] if run.border else []
    return [*steps, ("online", run.end)] if run.end > run.border else steps


def aggregates(results: Sequence[Result], reference: str | None) -> list[Aggregate]:
    """Over the tasks of each domain, and over all that have a success rate if these are several.

    Args:
      results: of `task_results`.
      reference: the method over which the probability of improvement is taken; None for none.
    """
    rows = []
    rated = {parse_task(result.env_name).domain for result in results if result.unit == "%"}
    for stage in dict.fromkeys(result.stage for result in results):
        here = [result for result in results if result.stage == stage]
        domains: dict[tuple[str, str], list[Result]] = {}
        for result in here:
            domain = parse_task(result.env_name).domain
            domains.setdefault((domain, result.unit), []).append(result)
        rates = [result for result in here if result.unit == "%"]
        if len(rated) > 1 and rates:
            domains[OVERALL, "%"] = rates
        for (domain, unit), members in domains.items():
            rows += _aggregate(domain, stage, unit, members, reference)
    return rows


def default_reference(results: Iterable[Result]) -> str | None:
    """The method that others are compared with: QAM if there are results of it."""
    methods = sorted({result.method for result in results}, key=method_order)
    return methods[0] if methods else None


def improvements(results: Iterable[Result], stage: str) -> dict[tuple[str, str], Estimate]:
    """The probability that one method is better than another over the tasks with results of both.

    Returns:
      By the two methods, of success rates only; pairs that share no task are left out.
    """
    by_method = _by_method(
        result for result in results if result.stage == stage and result.unit == "%"
    )
    found = {}
    for (method, tasks), (other, theirs) in itertools.combinations(by_method.items(), 2):
        if tasks.keys() & theirs.keys():
            value, low, high = found[method, other] = _improvement(tasks, theirs)
            found[other, method] = Estimate(1 - value, 1 - high, 1 - low)
    return found


def missing_runs(
    runs: Sequence[Run], study: str | None = None, at: int | None = None
) -> list[Missing]:
    """The expected runs that are absent, or have not come to their end.

    Args:
      runs: those that were found.
      study: a published or named study, or a file of one, all runs of which are expected. Without
        one, expected are each method, task and seed of a domain of which there is any run.
      at: the step they have to reach, in place of their end.

    Raises:
      ValueError: if there is no such study.
    """
    known = {(run.method, run.env_name, run.seed): run for run in runs}
    others = absent_runs(study, runs) if study else _alike(runs)
    expected = dict.fromkeys(known) | dict.fromkeys(others)
    found = []
    for method, env_name, seed in expected:
        run = known.get((method, env_name, seed))
        goal = 0 if run is None else (run.end if at is None else at)
        if run is None:
            state = "no run"
        elif run.last < goal:
            state = f"at {run.last:,} of {goal:,} steps"
        else:
            continue
        found.append(Missing(method, env_name, seed, state))
    return sorted(found, key=lambda run: (method_order(run.method), run.env_name, run.seed))


def describe_missing(missing: Sequence[Missing]) -> list[str]:
    """Missing runs in few lines: absent ones by method, task and seeds."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for run in missing:
        groups.setdefault((run.method, run.env_name, run.state), []).append(run.seed)
    by_task: dict[tuple[str, str, str, str], list[str]] = {}
    for (method, env_name, state), seeds in groups.items():
        task = parse_task(env_name)
        key = (method, task.domain, state, ranges(seeds))
        by_task.setdefault(key, []).append(task.label)
    lines = []
    for (method, domain, state, seeds), labels in by_task.items():
        numbers = [label.removeprefix("task ") for label in labels]
        tasks = f" {labels[0]}" if len(labels) == 1 else f" tasks {_listed(numbers)}"
        tasks = "" if labels == [domain] else tasks
        plural = "" if seeds.isdigit() else "s"
        lines.append(f"{method} on {domain}{tasks}, seed{plural} {seeds}: {state}")
    return lines


def seed_notes(runs: Iterable[Run]) -> list[str]:
    """A line for each domain in which the methods' runs have different seeds."""
    domains: dict[str, dict[str, set[int]]] = {}
    for run in runs:
        domains.setdefault(run.task.domain, {}).setdefault(run.method, set()).add(run.seed)
    notes = []
    for domain, methods in sorted(domains.items()):
        if len({tuple(sorted(seeds)) for seeds in methods.values()}) > 1:
            each = "; ".join(
                f"{method} {ranges(methods[method])}"
                for method in sorted(methods, key=method_order)
            )
            notes.append(f"{domain}: the methods have different seeds ({each}).")
    return notes


def _aggregate(
    domain: str, stage: str, unit: str, results: Sequence[Result], reference: str | None
) -> list[Aggregate]:
    by_method = _by_method(results)
    of_tasks = len({result.env_name for result in results})
    rows = []
    for method in sorted(by_method, key=method_order):
        tasks = by_method[method]
        scores = list(tasks.values())
        base = by_method.get(reference, {})
        improvement = None
        if method != reference and tasks.keys() & base.keys():
            improvement = _improvement(tasks, base)
        sizes = [len(task) for task in scores]
        mean, iqm = estimate(mean_score, scores), estimate(interquartile_mean, scores)
        rows.append(
            Aggregate(
                domain, method, stage, unit, mean, iqm, improvement,
                len(tasks), of_tasks, (min(sizes), max(sizes)),
            )
        )  # fmt: skip
    return rows


def _by_method(results: Iterable[Result]) -> dict[str, dict[str, np.ndarray]]:
    """Scores by method and task, in order."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for result in results:
        found.setdefault(result.method, {})[result.env_name] = result.scores
    return {method: found[method] for method in sorted(found, key=method_order)}


def _improvement(tasks: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> Estimate:
    shared = [name for name in tasks if name in others]
    ours, theirs = [tasks[name] for name in shared], [others[name] for name in shared]
    return estimate(probability_of_improvement, ours, theirs)


def _alike(runs: Sequence[Run]) -> Iterable[Key]:
    """Each method, task and seed of a domain of which there is any run."""
    domains: dict[str, list[Run]] = {}
    for run in runs:
        domains.setdefault(run.task.domain, []).append(run)
    for members in domains.values():
        for method in {run.method for run in members}:
            for env_name in {run.env_name for run in members}:
                for seed in {run.seed for run in members}:
                    yield method, env_name, seed


def _listed(numbers: Sequence[str]) -> str:
    if all(number.isdigit() for number in numbers):
        return ranges(int(number) for number in numbers)
    return ", ".join(numbers)
