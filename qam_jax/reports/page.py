"""A report as one page of HTML that needs neither other files nor a network."""

import datetime
from typing import Any

import jinja2
import pandas as pd

from qam_jax.reports.collect import describe_missing, latest
from qam_jax.reports.comparisons import STANDINGS, comparison_view, other_papers_view
from qam_jax.reports.figures import inline_figures, report_figures, report_lines
from qam_jax.reports.labels import estimate_words, number
from qam_jax.reports.published import ordered_methods
from qam_jax.reports.summary import Report

_LIBRARIES = ("jax", "ogbench", "mujoco")  # whose versions the page names


def render_page(report: Report, title: str, command: str = "") -> str:
    """Renders a report under a title, with the command that made it if one is given."""
    figures = report_figures(report)
    results = report.results.sort_values("stage", kind="stable")
    return page_template("report").render(
        title=title,
        command=command,
        report=report,
        last=latest(report.runs),
        standings=STANDINGS,
        words=estimate_words,
        line_of=report_lines(report),
        figures=figures,
        pictures=inline_figures(figures),
        overall=_grid(report.overall, "stage"),
        matrices=_grids(report.improvements, "stage", "other"),
        domains={
            domain: (
                _grid(report.aggregates[report.aggregates["domain"] == domain], "stage"),
                _grids(results[results["domain"] == domain], "stage", "task"),
            )
            for domain in sorted(report.runs["domain"].unique())
        },
        sensitivities={
            setting: _grids(table, ["domain", "task", "stage"], "value")
            for setting, table in report.sensitivity.items()
        },
        published=comparison_view(report.published),
        other_papers=other_papers_view(report.other_papers),
        comparison=comparison_view(report.comparison.table) if report.comparison else {},
        missing=describe_missing(report.missing),
        provenance=_provenance(report),
    )


def page_template(name: str) -> jinja2.Template:
    """Template of a page, `<name>.html.j2`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qam_jax.reports", "."), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = number
    now = datetime.datetime.now().astimezone()
    environment.globals["made"] = now.strftime("%d %B %Y, %H:%M %Z")
    return environment.get_template(f"{name}.html.j2")


def _grid(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    """Rows as cells by method and by the value of a column, with the best mean of each value."""
    return {
        "rows": rows,
        "methods": ordered_methods(rows["method"]),
        "columns": sorted(rows[column].unique()),
        "cells": {(row["method"], row[column]): row for row in rows.to_dict("records")},
        "best": rows.groupby(column)["mean"].max().to_dict() if "mean" in rows else {},
    }


def _grids(rows: pd.DataFrame, by: str | list[str], column: str) -> dict[Any, dict[str, Any]]:
    """A grid for each group of rows."""
    return {key: _grid(group, column) for key, group in rows.groupby(by, sort=False)}


def _provenance(report: Report) -> dict[str, str]:
    """Origin of the runs: folders, code, machines, libraries and data."""
    metadata = list(latest(report.runs)["metadata"])
    starts = [each["starts"][-1] for each in metadata if each.get("starts")]
    found: dict[str, Any] = {
        "Folders": report.folders,
        "Code": [
            (start.get("git_revision") or "unknown")[:12]
            + (" with local changes" if start.get("git_changes") else "")
            for start in starts
        ],
        "Devices": [start.get("device") for start in starts],
        "Libraries": [
            f"{name} {version}"
            for start in starts
            for name, version in start.get("versions", {}).items()
            if name in _LIBRARIES and version
        ],
        "Data": [each.get("dataset_source") for each in metadata],
    }
    return {name: "; ".join(sorted(set(filter(None, texts)))) for name, texts in found.items()}
