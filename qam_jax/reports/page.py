"""A report as one page of HTML that opens from disk, with everything in it."""

import datetime
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2

from qam_jax.reports import panels
from qam_jax.reports.compare import FISHER, PREDICTION, STUDENT, WELCH
from qam_jax.reports.comparisons import Standing
from qam_jax.reports.figures import Draw, inline_svg
from qam_jax.reports.labels import method_order, parse_task
from qam_jax.reports.results import OVERALL, Aggregate, Result, describe_missing
from qam_jax.reports.sensitivity import sensitivity_tables
from qam_jax.reports.statistics import Estimate
from qam_jax.reports.summary import Report

_MAX_LINES = 40  # of missing runs; all are in missing.csv
TESTS = {WELCH: "Welch", STUDENT: "Student", PREDICTION: "prediction", FISHER: "Fisher"}
"""The tests in short."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def render_page(report: Report, title: str, command: str = "") -> str:
    """The page.

    Args:
      report: what it says.
      title: its heading.
      command: that made it, to be shown; empty for none.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qam_jax.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "interval": interval, "percent": _percent}
    figures = _Figures()
    missing = describe_missing(report.missing)
    return environment.get_template("report.html.j2").render(
        title=title,
        command=command,
        made=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        report=report,
        facts=_facts(report),
        line_of=panels.line_styles(report),
        overall=_aggregate_table(report, panels.overall_rows(report)),
        overall_name=_overall_name(report),
        intervals=figures.draw(panels.interval_panels(report), panels.interval_size(report)),
        profiles=figures.draw(panels.profile_panels(report), (4.4, 3.0)),
        matrices=_matrices(report),
        sensitivities=[
            {"table": table, "figures": figures.draw(panels.sensitivity_panels(report, table))}
            for table in sensitivity_tables(report.sensitivity)
        ],
        domains=[_domain(report, domain, figures) for domain in report.domains],
        published=standings_view(report.published),
        comparison=report.comparison and standings_view(report.comparison.standings),
        missing=missing[:_MAX_LINES],
        more_missing=max(0, len(missing) - _MAX_LINES),
        provenance=_provenance(report),
    )


def number(value: float, digits: int = 1) -> str:
    """A number as the page shows it; a dash for what is not known."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:,.{digits}f}"
    return ("0" + text[2:] if text.strip("-0.,") == "" and text[0] == "-" else text).replace(
        "-", "−"
    )


def interval(estimate: Estimate | None, digits: int = 1) -> str:
    """The interval of an estimate; nothing if there is none."""
    if estimate is None or math.isnan(estimate.low):
        return ""
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def standings_view(standings: Sequence[Standing]) -> dict[str, Any]:
    """What the page says of standings: rows by domain, a letter for each set of differences."""
    letters: dict[tuple[str, ...], str] = {}
    for standing in standings:
        if standing.differences and standing.differences not in letters:
            count = len(letters)
            letters[standing.differences] = _LETTERS[count % 26] * (count // 26 + 1)
    counts = {
        name: sum(standing.verdict.standing == name for standing in standings)
        for name in ("within", "above", "below", "untested")
    }
    domains: dict[str, list[dict[str, Any]]] = {}
    summary: dict[str, dict[str, dict[str, int]]] = {}
    for standing in sorted(standings, key=_standing_order):
        domain, task = parse_task(standing.env_name)
        row = {
            "task": task, "standing": standing, "letter": letters.get(standing.differences, ""),
            "bar": _bar(standing), "test": TESTS.get(standing.verdict.test, "none"),
        }  # fmt: skip
        domains.setdefault(domain, []).append(row)
        cell = summary.setdefault(standing.method, {}).setdefault(domain, dict.fromkeys(counts, 0))
        cell[standing.verdict.standing] += 1
    tested = len(standings) - counts["untested"]
    return {
        "domains": domains,
        "summary": dict(sorted(summary.items(), key=lambda item: method_order(item[0]))),
        "counts": counts,
        "total": len(standings),
        "tested": tested,
        "by_chance": 0.05 * tested,
        "adjusted": sum(standing.adjusted_p < 0.05 for standing in standings),
        "departing": sum(bool(standing.differences) for standing in standings),
        "letters": {letter: texts for texts, letter in letters.items()},
    }


class _Figures:
    """Draws panels for the page, each with ids of its own."""

    def __init__(self):
        self._count = 0

    def draw(
        self, drawn: Iterable[tuple[str, Draw]], size: tuple[float, float] = (3.5, 2.7)
    ) -> list[str]:
        found = []
        for _, draw in drawn:
            self._count += 1
            found.append(inline_svg(draw, f"f{self._count}", size=size))
        return found


def _facts(report: Report) -> list[tuple[str, str]]:
    """The numbers at the head of the page."""
    done = sum(run.last >= run.end for run in report.runs)
    tasks = len({run.env_name for run in report.runs})
    seeds = [len(result.seeds) for result in report.results]
    spread = f"{min(seeds)} to {max(seeds)}" if seeds and min(seeds) < max(seeds) else ""
    return [
        ("runs", f"{len(report.runs):,}"),
        ("at their end", f"{done:,}"),
        ("tasks", f"{tasks}"),
        ("methods", f"{len(report.methods)}"),
        ("seeds per result", spread or (str(seeds[0]) if seeds else "–")),
        ("missing or not done", f"{len(report.missing):,}"),
    ]


def _overall_name(report: Report) -> str:
    rows = panels.overall_rows(report)
    domains = {row.domain for row in rows}
    if domains == {OVERALL}:
        return f"Over all {max(row.of_tasks for row in rows)} tasks"
    return f"Over {next(iter(domains))}" if domains else ""


def _aggregate_table(report: Report, rows: Sequence[Aggregate]) -> dict[str, Any]:
    """Aggregates by method and stage, with the best mean of each stage marked."""
    stages = [stage for stage in report.stages if any(row.stage == stage for row in rows)]
    cells = {(row.method, row.stage): row for row in rows}
    methods = sorted({row.method for row in rows}, key=method_order)
    best = {stage: max(row.mean.value for row in rows if row.stage == stage) for stage in stages}
    partial = any(row.num_tasks < row.of_tasks for row in rows)
    return {
        "stages": stages, "methods": methods, "cells": cells, "best": best, "partial": partial
    }  # fmt: skip


def _matrices(report: Report) -> list[dict[str, Any]]:
    """The probability of improvement of each method over each, by stage."""
    found = []
    for stage, pairs in report.improvements.items():
        methods = sorted({method for pair in pairs for method in pair}, key=method_order)
        if methods:
            found.append({"stage": stage, "methods": methods, "pairs": pairs})
    return found


def _domain(report: Report, domain: str, figures: _Figures) -> dict[str, Any]:
    results = [r for r in report.results if parse_task(r.env_name).domain == domain]
    runs = [run for run in report.runs if run.task.domain == domain]
    rows = [row for row in report.aggregates if row.domain == domain]
    return {
        "name": domain,
        "table": _aggregate_table(report, rows),
        "tasks": _task_tables(results, report.stages),
        "curves": figures.draw(panels.curve_panels(report, domain)),
        "methods": sorted({run.method for run in runs}, key=method_order),
        "unit": "mean return" if any(r.unit == "return" for r in results) else "success rate (%)",
    }


def _task_tables(results: Sequence[Result], stages: Sequence[str]) -> list[dict[str, Any]]:
    """The results of each method on each task of a domain, by stage."""
    found = []
    for stage in stages:
        cells = {(r.method, parse_task(r.env_name).label): r for r in results if r.stage == stage}
        if cells:
            tasks = sorted({task for _, task in cells})
            methods = sorted({method for method, _ in cells}, key=method_order)
            best = {
                task: max(r.mean.value for (_, t), r in cells.items() if t == task)
                for task in tasks
            }
            steps = sorted({r.step for r in cells.values()})
            found.append(
                {"stage": stage, "cells": cells, "tasks": tasks, "methods": methods}
                | {"best": best, "steps": ", ".join(f"{step:,}" for step in steps)}
            )
    return found


def _standing_order(standing: Standing) -> tuple:
    return standing.env_name, method_order(standing.method), standing.stage


def _bar(standing: Standing) -> dict[str, Any] | None:
    """Where to draw both sides on a scale from 0 to 100; None for returns."""
    if standing.unit != "%":
        return None
    mean, std = standing.theirs[:2]
    std = 0.0 if math.isnan(std) else std
    low, high = max(0.0, mean - std), min(100.0, mean + std)
    ours = round(standing.ours.mean, 2)
    return {
        "low": round(low, 2), "width": round(max(high - low, 0.6), 2), "mean": round(mean, 2),
        "ours": ours, "runs": [round(score, 2) for score in standing.scores],
    }  # fmt: skip


def _provenance(report: Report) -> list[tuple[str, str]]:
    """Where the runs come from: code, machines and libraries."""
    starts = [start for run in report.runs for start in run.metadata.get("starts", [])[-1:]]
    revisions = {
        f"{(start.get('git_revision') or 'unknown')[:12]}"
        f"{' with local changes' if start.get('git_changes') else ''}"
        for start in starts
    }
    versions = {
        f"{name} {start['versions'][name]}"
        for start in starts
        for name in ("jax", "ogbench", "mujoco")
        if start.get("versions", {}).get(name)
    }
    found = {
        "Folders": set(report.folders),
        "Code": revisions,
        "Devices": {start["device"] for start in starts if start.get("device")},
        "Libraries": versions,
        "Data": {run.metadata.get("dataset_source", "") for run in report.runs} - {""},
    }
    return [(name, "; ".join(sorted(values))) for name, values in found.items() if values]


def _percent(value: float) -> str:
    return number(100 * value, 0)
