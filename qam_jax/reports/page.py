"""A report as one page of HTML that needs neither other files nor a network."""

import datetime
from collections.abc import Sequence
from typing import Any

import jinja2
import pandas as pd

from qam_jax.reports import figures
from qam_jax.reports.collect import latest
from qam_jax.reports.comparisons import comparison_view
from qam_jax.reports.figures import Panel, inline_svg, overall_aggregates
from qam_jax.reports.labels import interval, number, ordered_methods
from qam_jax.reports.missing import describe_missing
from qam_jax.reports.results import OVERALL, estimate_of
from qam_jax.reports.summary import Report, sensitivity_views

_MAX_LINES = 40  # of missing runs; missing.csv has all of them


def render_page(report: Report, title: str, command: str = "") -> str:
    """Renders the page.

    Args:
      report: the contents.
      title: heading of the page.
      command: the command that made the report, to be shown; empty for none.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qam_jax.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "interval": interval, "percent": _percent}
    missing = describe_missing(report.missing)
    return environment.get_template("report.html.j2").render(
        title=title,
        command=command,
        made=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        report=report,
        estimate_of=estimate_of,
        facts=_facts(report),
        line_of=figures.report_lines(report),
        overall=_aggregate_table(report, overall_aggregates(report)),
        overall_name=_overall_name(report),
        intervals=_draw("i", figures.interval_panels(report), figures.interval_size(report)),
        profiles=_draw("p", figures.profile_panels(report), (4.4, 3.0)),
        matrices=_matrices(report.improvements),
        sensitivities=[
            view | {"figures": _draw(f"s{i}-", figures.sensitivity_panels(report, view["field"]))}
            for i, view in enumerate(sensitivity_views(report))
        ],
        domains=[_domain(report, name, f"d{i}-") for i, name in enumerate(report.domains)],
        published=comparison_view(report.published),
        comparison=report.comparison and comparison_view(report.comparison.table),
        missing=missing[:_MAX_LINES],
        more_missing=max(0, len(missing) - _MAX_LINES),
        provenance=_provenance(report),
    )


def _draw(
    prefix: str, panels: Sequence[Panel], size: tuple[float, float] = (3.5, 2.7)
) -> list[str]:
    """Panels as SVG elements, each with ids of its own."""
    return [inline_svg(panel, f"{prefix}{i}", size=size) for i, panel in enumerate(panels)]


def _facts(report: Report) -> list[tuple[str, str]]:
    """Numbers at the head of the page."""
    last = latest(report.runs)
    few, many = report.results["num_seeds"].min(), report.results["num_seeds"].max()
    seeds = f"{few}" if few == many else f"{few} to {many}"
    return [
        ("runs", f"{len(last):,}"),
        ("at their end", f"{(last['step'] >= last['end']).sum():,}"),
        ("tasks", f"{last['env_name'].nunique()}"),
        ("methods", f"{len(report.methods)}"),
        ("seeds per result", seeds if len(report.results) else "–"),
        ("missing or not done", f"{len(report.missing):,}"),
    ]


def _overall_name(report: Report) -> str:
    rows = overall_aggregates(report)
    if rows.empty:
        return ""
    domain = rows["domain"].iloc[0]
    return f"Over all {rows['of_tasks'].max()} tasks" if domain == OVERALL else f"Over {domain}"


def _aggregate_table(report: Report, rows: pd.DataFrame) -> dict[str, Any]:
    """Aggregates by method and stage, with the best mean of each stage."""
    return {
        "stages": [stage for stage in report.stages if stage in set(rows["stage"])],
        "methods": ordered_methods(rows["method"]),
        "cells": {(row["method"], row["stage"]): row for row in rows.to_dict("records")},
        "best": dict(rows.groupby("stage")["mean"].max()) if len(rows) else {},
        "partial": any(row.num_tasks < row.of_tasks for row in rows.itertuples()),
    }


def _matrices(improvements: pd.DataFrame) -> list[dict[str, Any]]:
    """Probability of improvement of each method over each other, by stage."""
    if improvements.empty:
        return []
    return [
        {
            "stage": stage,
            "methods": ordered_methods(rows["method"]),
            "pairs": {
                (row["method"], row["other"]): estimate_of(row, "probability")
                for row in rows.to_dict("records")
            },
        }
        for stage, rows in improvements.groupby("stage", sort=False)
    ]


def _domain(report: Report, domain: str, prefix: str) -> dict[str, Any]:
    """Results of a domain; `prefix` is for the ids in its figures."""
    results = report.results[report.results["domain"] == domain]
    runs = report.runs[report.runs["domain"] == domain]
    returns = (results["unit"] == "return").any()
    return {
        "name": domain,
        "table": _aggregate_table(report, report.aggregates[report.aggregates["domain"] == domain]),
        "tasks": [
            _task_table(stage, results[results["stage"] == stage])
            for stage in report.stages
            if stage in set(results["stage"])
        ],
        "curves": _draw(prefix, figures.curve_panels(report, domain)),
        "methods": ordered_methods(runs["method"]),
        "unit": "mean return" if returns else "success rate (%)",
    }


def _task_table(stage: str, results: pd.DataFrame) -> dict[str, Any]:
    """Results of each method on each task of a domain, with the best mean on each task."""
    return {
        "stage": stage,
        "cells": {(row["method"], row["task"]): row for row in results.to_dict("records")},
        "tasks": sorted(results["task"].unique()),
        "methods": ordered_methods(results["method"]),
        "best": dict(results.groupby("task")["mean"].max()),
        "steps": ", ".join(f"{step:,}" for step in sorted(results["step"].unique())),
    }


def _provenance(report: Report) -> list[tuple[str, str]]:
    """Origin of the runs: folders, code, machines, libraries and data."""
    metadata = list(latest(report.runs)["metadata"])
    starts = [each["starts"][-1] for each in metadata if each.get("starts")]
    changed = {True: " with local changes", False: ""}
    found = {
        "Folders": set(report.folders),
        "Code": {
            f"{(start.get('git_revision') or 'unknown')[:12]}"
            f"{changed[bool(start.get('git_changes'))]}"
            for start in starts
        },
        "Devices": {start["device"] for start in starts if start.get("device")},
        "Libraries": {
            f"{name} {start['versions'][name]}"
            for start in starts
            for name in ("jax", "ogbench", "mujoco")
            if start.get("versions", {}).get(name)
        },
        "Data": {each.get("dataset_source", "") for each in metadata} - {""},
    }
    return [(name, "; ".join(sorted(values))) for name, values in found.items() if values]


def _percent(value: float) -> str:
    return number(100 * value, 0)
