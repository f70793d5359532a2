"""The panels of a report's figures, for its files and its page alike."""

from functools import partial

from qam_jax.reports import figures
from qam_jax.reports.collect import Run
from qam_jax.reports.curves import Curve, borders, learning_curves, profiles
from qam_jax.reports.labels import parse_task
from qam_jax.reports.results import OVERALL, Aggregate
from qam_jax.reports.sensitivity import Point, Table
from qam_jax.reports.summary import Report

Panel = tuple[str, figures.Draw]
"""A title, and what draws the panel."""


def line_styles(report: Report) -> dict[str, figures.Line]:
    """How the line of each method is drawn in all figures of a report."""
    others = [point.method for point in report.sensitivity]
    return figures.lines(list(dict.fromkeys([*report.methods, *others])))


def curve_panels(report: Report, domain: str) -> list[Panel]:
    """A panel of learning curves for each task of a domain, and one of their mean."""
    line_of = line_styles(report)
    runs = [run for run in report.runs if run.task.domain == domain]
    names = list(dict.fromkeys(run.env_name for run in runs))
    parts = [
        (parse_task(name).label, [run for run in runs if run.env_name == name]) for name in names
    ]
    if len(names) > 1:
        parts.append((f"mean of {len(names)} tasks", _on_all_tasks(runs)))
    panels = []
    for title, members in parts:
        for unit in sorted({run.unit for run in members if run.last}):
            same = [run for run in members if run.unit == unit]
            drawer = partial(
                figures.draw_curves,
                curves=_side_by_side(same),
                line_of=line_of,
                title=title,
                unit=unit,
                borders=borders(same),
            )
            panels.append((title, drawer))
    return panels


def profile_panels(report: Report) -> list[Panel]:
    """A panel of performance profiles for each stage."""
    line_of = line_styles(report)
    panels = []
    for stage in report.stages:
        curves = profiles(report.results, stage)
        if curves:
            title = f"performance profile, {stage}"
            drawer = partial(figures.draw_profiles, curves=curves, line_of=line_of, title=title)
            panels.append((title, drawer))
    return panels


def interval_panels(report: Report) -> list[Panel]:
    """For each stage a panel of the means and one of the IQMs, over all tasks."""
    line_of = line_styles(report)
    rows = overall_rows(report)
    panels = []
    for stage in report.stages:
        here = [row for row in rows if row.stage == stage]
        for field, words in (("mean", "mean"), ("iqm", "interquartile mean")):
            entries = [(row.method, _label(row), getattr(row, field)) for row in here]
            if entries:
                title = f"{words}, {stage}"
                drawer = partial(figures.draw_intervals, rows=entries, line_of=line_of, title=title)
                panels.append((title, drawer))
    return panels


def sensitivity_panels(report: Report, table: Table) -> list[Panel]:
    """A panel for each task and stage, of the results against the values of a setting."""
    line_of = line_styles(report)
    groups: dict[tuple[str, str, str], list[dict[float, Point]]] = {}
    for row in table.rows:
        point = next(iter(row.values()))
        groups.setdefault((point.env_name, point.stage, point.unit), []).append(row)
    panels = []
    for (env_name, stage, unit), rows in groups.items():
        task = parse_task(env_name)
        name = task.domain if task.label == task.domain else f"{task.domain}\n{task.label}"
        drawer = partial(
            figures.draw_sensitivity,
            rows=[list(row.values()) for row in rows],
            line_of=line_of,
            title=f"{name}, {stage}",
            unit=unit,
        )
        panels.append((name, drawer))
    return panels


def interval_size(report: Report) -> tuple[float, float]:
    """Of a panel of intervals, in inches."""
    labels = {_label(row) for row in overall_rows(report)}
    return 4.4, 0.9 + 0.24 * max(2, sum(len(figures.wrapped(label)) for label in labels))


def overall_rows(report: Report) -> list[Aggregate]:
    """The aggregates over all tasks: of the only domain, if there is just one."""
    rows = [row for row in report.aggregates if row.unit == "%"]
    overall = [row for row in rows if row.domain == OVERALL]
    return overall or rows


def _side_by_side(runs: list[Run]) -> list[Curve]:
    """Learning curves; those of methods without an offline stage begin where others go online."""
    curves, at = learning_curves(runs), borders(runs)
    online = {run.method for run in runs if run.border == 0}
    return [
        curve._replace(steps=curve.steps + at[0])
        if len(at) == 1 and curve.method in online
        else curve
        for curve in curves
    ]


def _label(row: Aggregate) -> str:
    partial = row.num_tasks < row.of_tasks
    return f"{row.method}, {row.num_tasks} of {row.of_tasks} tasks" if partial else row.method


def _on_all_tasks(runs: list[Run]) -> list[Run]:
    """The runs of those methods that have come to an evaluation on every task."""
    tasks: dict[str, set[str]] = {}
    for run in runs:
        if run.last:
            tasks.setdefault(run.method, set()).add(run.env_name)
    count = len({run.env_name for run in runs})
    return [run for run in runs if len(tasks.get(run.method, ())) == count]
