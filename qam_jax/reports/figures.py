"""Figures of a report: learning curves, performance profiles, intervals, effects of a setting."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd

from qam_jax.files import atomic_write
from qam_jax.reports.labels import ordered_methods
from qam_jax.reports.results import (
    OVERALL,
    estimate_of,
    learning_curves,
    online_borders,
    performance_profiles,
)
from qam_jax.reports.summary import Report

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Panel = Callable[[Any], None]
"""Function that draws on the axes that it is given."""

_SIZE = (3.5, 2.7)  # of a panel, in inches

_COLORS = "#2f6fdb #d9541e #14946a #b58900 #9b59c4 #d1407f #1697b7 #7a7f87 #8c6d46 #6b8e23".split()
_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
_INK = "#1d2733"  # of text and axes; the page replaces it by the colour of its text
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "qam_jax",  # equal files for equal runs
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


class Line(NamedTuple):
    """Style of a method's line."""

    color: str
    dash: Any


def lines(methods: Sequence[str]) -> dict[str, Line]:
    """Line of each method, different from all others."""
    count = len(_COLORS)
    return {
        method: Line(_COLORS[i % count], _DASHES[i // count % len(_DASHES)])
        for i, method in enumerate(methods)
    }


def report_lines(report: Report) -> dict[str, Line]:
    """Line of each method, the same in all figures of a report."""
    others = report.sensitivity["method"] if len(report.sensitivity) else []
    return lines(list(dict.fromkeys([*report.methods, *others])))


def curve_panels(report: Report, domain: str) -> list[Panel]:
    """Learning curves on each task of a domain, and their mean over its tasks."""
    runs = report.runs[report.runs["domain"] == domain]
    groups = [(group["task"].iloc[0], group) for _, group in runs.groupby("env_name")]
    evaluated = runs[runs["step"] > 0]
    if len(groups) > 1:
        num_tasks = evaluated.groupby("method")["env_name"].transform("nunique")
        groups.append((f"mean of {len(groups)} tasks", evaluated[num_tasks == len(groups)]))
    line_of = report_lines(report)
    return [
        partial(_draw_curves, runs=same, line_of=line_of, title=title, unit=unit)
        for title, group in groups
        for unit, same in group[group["step"] > 0].groupby("unit")
    ]


def profile_panels(report: Report) -> list[Panel]:
    """Performance profiles, one panel for each stage with success rates."""
    line_of = report_lines(report)
    tables = {
        stage: performance_profiles(report.results[report.results["stage"] == stage])
        for stage in report.stages
    }
    return [
        partial(_draw_profiles, table=table, line_of=line_of, title=f"performance profile, {stage}")
        for stage, table in tables.items()
        if len(table)
    ]


def interval_panels(report: Report) -> list[Panel]:
    """Means and interquartile means over all tasks, one panel of each for each stage."""
    line_of, rows = report_lines(report), overall_aggregates(report)
    return [
        partial(_draw_intervals, rows=here, line_of=line_of, name=name, title=f"{words}, {stage}")
        for stage, here in rows.groupby("stage")
        for name, words in (("mean", "mean"), ("iqm", "interquartile mean"))
    ]


def interval_size(report: Report) -> tuple[float, float]:
    """Size of a panel of intervals, in inches."""
    labels = {_label(row) for row in overall_aggregates(report).itertuples()}
    return 4.4, 0.9 + 0.24 * max(2, sum(label.count("\n") + 1 for label in labels))


def sensitivity_panels(report: Report, setting: str) -> list[Panel]:
    """Results against the values of a setting, one panel for each task and stage."""
    line_of = report_lines(report)
    table = report.sensitivity[report.sensitivity["setting"] == setting]
    return [
        partial(_draw_sensitivity, table=group, line_of=line_of)
        for _, group in table.groupby(["env_name", "stage", "unit"], sort=False)
    ]


def overall_aggregates(report: Report) -> pd.DataFrame:
    """Aggregates over all tasks, or over the tasks of the only domain."""
    rows = report.aggregates[report.aggregates["unit"] == "%"]
    overall = rows[rows["domain"] == OVERALL]
    return overall if len(overall) else rows


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Draws all figures as PNG and SVG; returns the files."""
    figures: list[tuple[str, list[Panel], dict[str, Any]]] = []
    for domain in report.domains:
        here = report.runs[(report.runs["domain"] == domain) & (report.runs["step"] > 0)]
        legend = ordered_methods(here["method"])
        name = f"curves_{domain.replace('/', '_')}"
        figures.append((name, curve_panels(report, domain), {"legend": legend}))
    legend = ordered_methods(overall_aggregates(report)["method"])
    figures.append(("profiles", profile_panels(report), {"legend": legend}))
    size = interval_size(report)
    figures.append(("intervals", interval_panels(report), {"columns": 2, "size": size}))
    columns = 4 if len(report.stages) == 2 else 3  # the panels of a task are in one row
    for setting in report.settings:
        table = report.sensitivity[report.sensitivity["setting"] == setting]
        options = {"legend": ordered_methods(table["method"]), "columns": columns}
        name = f"sensitivity_{setting.replace('.', '_')}"
        figures.append((name, sensitivity_panels(report, setting), options))
    line_of = report_lines(report)
    return [
        path
        for name, panels, options in figures
        if panels
        for path in _save_panels(folder / name, panels, line_of, **options)
    ]


def inline_svg(panel: Panel, name: str, *, size: tuple[float, float] = _SIZE) -> str:
    """Draws a panel as an SVG element for a page, in the colour of the page's text.

    Args:
      panel: draws on the axes that it is given.
      name: prefix of the ids in the element, different for each panel of a page.
      size: size in inches.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        panel(axes)
        title = axes.get_title().replace("\n", ", ") or name
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = svg.replace(_INK, "currentColor")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _save_panels(
    path: Path,
    panels: Sequence[Panel],
    line_of: Mapping[str, Line],
    *,
    legend: Sequence[str] = (),
    columns: int = 3,
    size: tuple[float, float] = _SIZE,
) -> list[Path]:
    """Draws panels side by side into `<path>.png` and `<path>.svg`.

    Args:
      path: path without suffix.
      panels: each draws on the axes that it is given.
      line_of: line of each method.
      legend: methods in the legend below the panels.
      columns: largest number of panels in a row.
      size: size of a panel in inches.

    Returns:
      The paths of both files.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(_STYLE):
        per_row = max(1, int(columns * size[0] // (0.5 + 0.085 * max(map(len, legend), default=1))))
        extra = 0.24 * -(-len(legend) // per_row) + 0.1 if legend else 0
        figure, axes = plt.subplots(
            rows, columns, squeeze=False, layout="constrained",
            figsize=(columns * size[0], rows * size[1] + extra),
        )  # fmt: skip
        for panel, ax in zip(panels, axes.flat, strict=False):
            panel(ax)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        if legend:
            handles = [
                plt.Line2D([], [], color=line_of[m].color, linestyle=line_of[m].dash, label=m)
                for m in legend
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=per_row)
        files = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
        for file in files:
            with atomic_write(file) as temporary:
                metadata = {"Date": None} if file.suffix == ".svg" else None
                figure.savefig(temporary, dpi=150, metadata=metadata)
        plt.close(figure)
    return files


def _draw_curves(
    axes: Any, runs: pd.DataFrame, line_of: Mapping[str, Line], title: str, unit: str
) -> None:
    """Learning curves with their intervals, and the borders between offline and online.

    The curve of a method without an offline stage begins at the border of the others.
    """
    table, borders = learning_curves(runs), online_borders(runs)
    only_online = set(runs.loc[runs["border"] == 0, "method"])
    for method, curve in table.groupby("method", sort=False):
        shift = borders[0] if len(borders) == 1 and method in only_online else 0
        marker = "." if len(curve) < 3 else None
        _draw_line(axes, curve.assign(step=curve["step"] + shift), line_of[method], marker)
    for border in borders:
        axes.axvline(border, color=_INK, linestyle=(0, (3, 3)), linewidth=0.9, alpha=0.7)
    if len(borders) == 1:
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        style = {"fontsize": 7.5, "alpha": 0.8, "annotation_clip": False}
        axes.annotate("offline ", (borders[0], 1), (-2, 2), ha="right", **place, **style)
        axes.annotate(" online", (borders[0], 1), (2, 2), ha="left", **place, **style)
    _set_score_axis(axes, unit)
    axes.set_title(title, pad=14 if borders else 6)
    axes.set_xlim(left=0)
    axes.set_xlabel("updates, then environment steps" if borders else "updates")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))


def _draw_profiles(axes: Any, table: pd.DataFrame, line_of: Mapping[str, Line], title: str) -> None:
    for method, curve in table.groupby("method", sort=False):
        _draw_line(axes, curve, line_of[method], None, drawstyle="steps-post", step="post")
    axes.set(xlabel="success rate τ (%)", ylabel="fraction of runs above τ", title=title)
    axes.set(xlim=(0, 100), ylim=(-0.02, 1.02))
    axes.grid(color="#808080", alpha=0.2)


def _draw_intervals(
    axes: Any, rows: pd.DataFrame, line_of: Mapping[str, Line], name: str, title: str
) -> None:
    """Estimate `name` of each method with its interval, from top to bottom."""
    for place, row in enumerate(rows.to_dict("records")):
        estimate, color = estimate_of(row, name), line_of[row["method"]].color
        if not np.isnan(estimate.low):
            bar = {"linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}
            axes.plot(estimate[1:], [place, place], color=color, **bar)
        axes.plot([estimate.value], [place], "|", color=color, markersize=13, markeredgewidth=2.2)
    axes.set(title=title, ylim=(len(rows) - 0.5, -0.5), xlabel="success rate (%)")
    axes.set_xlim(*_range(rows[[name, f"{name}_low", f"{name}_high"]].to_numpy()))
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows.itertuples()])
    axes.grid(color="#808080", alpha=0.2, axis="x")


def _draw_sensitivity(axes: Any, table: pd.DataFrame, line_of: Mapping[str, Line]) -> None:
    """Result of each method against the values of a setting, with intervals.

    The axis is logarithmic if the values, all above 0, span more than a factor of 10.
    """
    first = table.iloc[0]
    for method, points in table.groupby("method", sort=False):
        line = line_of[method]
        axes.plot(
            points["value"], points["mean"], color=line.color, linestyle=line.dash, linewidth=1.7,
            marker="o", markersize=3.5,
        )  # fmt: skip
        known = points.dropna(subset="mean_low")
        bars = known["value"], known["mean_low"], known["mean_high"]
        axes.vlines(*bars, color=line.color, linewidth=4, alpha=0.35)
    values = sorted(table["value"].unique())
    if values[0] > 0 and values[-1] > 10 * values[0]:
        axes.set_xscale("log")
    places = np.log(values) if axes.get_xscale() == "log" else np.array(values)
    if len(values) > 1 and np.diff(places).min() > (places[-1] - places[0]) / 10:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xticks([], minor=True)
    _set_score_axis(axes, first["unit"])
    task = "\n".join(dict.fromkeys([first["domain"], first["task"]]))
    axes.set(title=f"{task}, {first['stage']}", xlabel=first["setting"])


def _draw_line(
    axes: Any,
    curve: pd.DataFrame,
    line: Line,
    marker: str | None,
    drawstyle: str = "default",
    step: str | None = None,
) -> None:
    """Curve with the band of its interval; `drawstyle` and `step` as matplotlib takes them."""
    style = {"color": line.color, "linestyle": line.dash, "linewidth": 1.7}
    axes.plot(curve["step"], curve["score"], marker=marker, drawstyle=drawstyle, **style)
    if curve["score_low"].notna().any():
        band = {"color": line.color, "alpha": 0.16, "linewidth": 0, "step": step}
        axes.fill_between(curve["step"], curve["score_low"], curve["score_high"], **band)


def _set_score_axis(axes: Any, unit: str) -> None:
    if unit == "%":
        axes.set(ylabel="success rate (%)", ylim=(-3, 103), yticks=range(0, 101, 25))
    else:
        axes.set(ylabel="return")
    axes.grid(color="#808080", alpha=0.2)


def _label(row: Any) -> str:
    """Label of a method's interval, in lines that fit beside a panel."""
    label = row.method
    if row.num_tasks < row.of_tasks:
        label += f", {row.num_tasks} of {row.of_tasks} tasks"
    return textwrap.fill(label, 28)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Part of the axis that holds these success rates, wide enough not to magnify small gaps."""
    low, high = np.nanmin(values), np.nanmax(values)
    low = min(low, max(0.0, (low + high) / 2 - 15))
    high = max(high, min(100.0, low + 30))
    low = min(low, high - 30)
    return max(low - 2, -1), min(high + 2, 101)


def _short(value: float) -> str:
    """Number of steps in short: 50k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
