"""How a method's result depends on one setting in which its runs differ."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qam_jax.reports.collect import Run, identities, tell_apart
from qam_jax.reports.labels import method_name, method_order, parse_task
from qam_jax.reports.paper_settings import setting_words
from qam_jax.reports.results import stage_steps
from qam_jax.reports.statistics import Estimate, estimate, mean_score


class Point(NamedTuple):
    """A method's result on a task with one value of a setting.

    Attributes:
      field: the setting, `config.<field>` of the algorithm or one of the run.
      env_name: the task.
      method: the method's label, without what the setting changes.
      stage: as that of `Result`.
      unit: `%` or `return`.
      value: of the setting.
      seeds: of the runs that have come so far.
      scores: theirs.
      mean: of the scores, with its interval over seeds.
    """

    field: str
    env_name: str
    method: str
    stage: str
    unit: str
    value: float
    seeds: tuple[int, ...]
    scores: np.ndarray
    mean: Estimate


class Table(NamedTuple):
    """The points of one setting.

    Attributes:
      field: the setting.
      values: of it, in order.
      rows: a method's line on a task at the end of a stage each, by value.
    """

    field: str
    values: list[float]
    rows: list[dict[float, Point]]

    @property
    def methods(self) -> list[str]:
        """The methods of all rows, in the order of tables."""
        names = {point.method for row in self.rows for point in row.values()}
        return sorted(names, key=method_order)

    @property
    def tasks(self) -> dict[str, list[dict[float, Point]]]:
        """The rows by the task's name, in words."""
        found: dict[str, list[dict[float, Point]]] = {}
        for row in self.rows:
            task = parse_task(next(iter(row.values())).env_name)
            found.setdefault(" ".join(dict.fromkeys(task)), []).append(row)
        return found


def sensitivity(
    runs: Sequence[Run], field: str, at: int | None = None
) -> tuple[list[Point], list[str]]:
    """The results of each method on each task by the value of a setting.

    A method has a line where its runs have several values of the setting; those that differ in
    other settings too have a line for each of their other settings' values.

    Args:
      runs: with at most one of each task, method, configuration and seed.
      field: the setting, with `config.` before it if it is one of the algorithm.
      at: the step to take results at, in place of the ends of the stages.

    Returns:
      The points, in order, and lines that say why there is none, or what they leave out.
    """
    prefix = f"--sensitivity={field}:"
    having = [(run, value) for run in runs if (value := _value(run, field)) is not None]
    if not having:
        return [], [f"{prefix} no run has such a setting.{_hint(runs, field)}"]
    for run, value in having:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return [], [f"{prefix} it is no number, but {setting_words(value)}, in {run.folder}."]
    named, notes = _lines([run for run, _ in having], field)
    if not named:
        values = ", ".join(f"{value:g}" for value in sorted({value for _, value in having}))
        return [], [f"{prefix} no method has runs of several values on one task (found {values})."]
    points = _points(named, field, at)
    notes += [] if points else ["no run has come to the end of a stage yet."]
    return points, [f"{prefix} {note}" for note in notes]


def sensitivity_tables(points: Iterable[Point]) -> list[Table]:
    """The points by setting, and by task, method and stage."""
    fields: dict[str, dict[tuple, dict[float, Point]]] = {}
    for point in points:
        key = point.env_name, point.method, point.stage, point.unit
        fields.setdefault(point.field, {}).setdefault(key, {})[point.value] = point
    return [
        Table(field, sorted({value for row in rows.values() for value in row}), list(rows.values()))
        for field, rows in fields.items()
    ]


def _value(run: Run, field: str) -> Any:
    """The value of a run's setting; None if it has no such one."""
    name = field.removeprefix("config.")
    return (run.config if name == field else run.config["agent"]).get(name)


def _hint(runs: Iterable[Run], field: str) -> str:
    full = {name: name for run in runs for name in run.config if name != "agent"}
    full |= {name: f"config.{name}" for run in runs for name in run.config["agent"]}
    name = field.removeprefix("config.")
    near = [name] if name in full else difflib.get_close_matches(name, sorted(full), n=3)
    near = [full[each] for each in near]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _lines(runs: Iterable[Run], field: str) -> tuple[list[Run], list[str]]:
    """The runs whose setting has several values, each under the label of its line."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        method = method_name({"agent_name": run.config["agent"]["agent_name"]})
        groups.setdefault((run.env_name, method), []).append(run._replace(method=method))
    found, notes = [], []
    for members in groups.values():
        kinds: dict[tuple, list[Run]] = {}
        for run, identity in zip(members, identities(members), strict=True):
            others = tuple(part for part in identity if part[0] != field.removeprefix("config."))
            kinds.setdefault(others, []).append(run)
        kinds = {
            identity: same
            for identity, same in kinds.items()
            if len({_value(run, field) for run in same}) > 1
        }
        if kinds:
            named, lines = tell_apart(kinds)
            found += named
            notes += lines
    return found, notes


def _points(runs: Iterable[Run], field: str, at: int | None) -> list[Point]:
    groups: dict[tuple, list[tuple[int, float]]] = {}
    for run in runs:
        for stage, step in stage_steps(run, at):
            score = run.score_at(step)
            if not math.isnan(score):
                value = float(_value(run, field))
                key = (field, run.env_name, run.method, stage, run.unit, value)
                groups.setdefault(key, []).append((run.seed, score))
    found = []
    for key, pairs in groups.items():
        seeds, scores = zip(*sorted(pairs), strict=True)
        values = np.array(scores)
        found.append(Point(*key, seeds, values, estimate(mean_score, [values])))
    return sorted(found, key=lambda p: (p.env_name, p.stage, method_order(p.method), p.value))
