"""Figures of a report: learning curves, performance profiles, intervals, effects of a setting."""

import html
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd

from qam_jax.files import atomic_write
from qam_jax.reports.published import ordered_methods
from qam_jax.reports.results import learning_curves, online_borders, performance_profiles
from qam_jax.reports.summary import Report

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Panel = Callable[[Any], None]  # draws on the axes that it is given
Lines = Mapping[str, Mapping[str, Any]]  # matplotlib's colour and line style of each method

_COLORS = "#2f6fdb #d9541e #14946a #b58900 #9b59c4 #d1407f #1697b7 #7a7f87 #8c6d46 #6b8e23".split()
_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
_INK = "#1d2733"  # of text and axes; the page replaces it by the colour of its text
_INKED = "axes.edgecolor axes.labelcolor axes.titlecolor legend.labelcolor text.color xtick.color"
_STYLE = {
    **dict.fromkeys([*_INKED.split(), "ytick.color"], _INK),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "svg.fonttype": "path",
    "svg.hashsalt": "qam_jax",  # equal files for equal runs
}
_NO_METADATA = dict.fromkeys(["Creator", "Date", "Format", "Type"])


class Figure(NamedTuple):
    """Panels side by side."""

    panels: Sequence[Panel]
    legend: Sequence[str] = ()  # methods in the legend
    columns: int = 3  # largest number of panels in a row
    size: tuple[float, float] = (3.5, 2.7)  # of a panel, in inches


def lines(methods: Iterable[str]) -> Lines:
    """Line of each method; the first forty differ."""
    styles = plt.cycler(linestyle=_DASHES) * plt.cycler(color=_COLORS)
    return dict(zip(methods, itertools.cycle(styles), strict=False))


def report_lines(report: Report) -> Lines:
    """Line of each method, the same in all figures of a report."""
    others = [method for table in report.sensitivity.values() for method in table["method"]]
    return lines(dict.fromkeys([*ordered_methods(report.runs["method"]), *others]))


def report_figures(report: Report) -> dict[str, Figure]:
    """Figures of a report, by name; one that shows nothing is left out."""
    line_of, overall = report_lines(report), report.overall
    labels = {_label(row) for row in overall.itertuples()}
    height = 0.9 + 0.24 * max(2, sum(label.count("\n") + 1 for label in labels))
    figures = {
        f"curves_{domain}": _curve_figure(runs, line_of)
        for domain, runs in report.runs[report.runs["step"] > 0].groupby("domain")
    }
    rated = report.results[report.results["unit"] == "%"]
    profiles = [
        partial(_draw_profiles, results=results, line_of=line_of, stage=stage)
        for stage, results in rated.groupby("stage")
    ]
    figures["profiles"] = Figure(profiles, ordered_methods(overall["method"]), size=(4.4, 3.0))
    intervals = [
        partial(_draw_intervals, rows=rows, line_of=line_of, name=name, title=f"{words}, {stage}")
        for stage, rows in overall.groupby("stage")
        for name, words in (("mean", "mean"), ("iqm", "interquartile mean"))
    ]
    figures["intervals"] = Figure(intervals, columns=2, size=(4.4, height))
    columns = 4 if report.results["stage"].nunique() == 2 else 3  # a task's panels are in one row
    for setting, table in report.sensitivity.items():
        panels = [
            partial(_draw_sensitivity, table=group, line_of=line_of)
            for _, group in table.groupby(["env_name", "stage", "unit"], sort=False)
        ]
        figures[f"sensitivity_{setting}"] = Figure(
            panels, ordered_methods(table["method"]), columns
        )
    return {name: figure for name, figure in figures.items() if figure.panels}


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Draws all figures of a report as PNG and SVG; returns the files."""
    return draw_figures(report_figures(report), report_lines(report), folder)


def draw_figures(figures: Mapping[str, Figure], line_of: Lines, folder: Path) -> list[Path]:
    """Draws figures, by the name of their files, as PNG and SVG; returns the files."""
    files = []
    with plt.rc_context(_STYLE):
        for name, figure in figures.items():
            drawn = _draw(figure, line_of)
            for suffix, metadata in (("png", None), ("svg", {"Date": None})):
                files.append(folder / f"{re.sub('[/.]', '_', name)}.{suffix}")
                with atomic_write(files[-1]) as temporary:
                    drawn.savefig(temporary, dpi=150, metadata=metadata)
            plt.close(drawn)
    return files


def inline_figures(figures: Mapping[str, Figure]) -> dict[str, list[str]]:
    """Panels of figures as `inline_svg`, by the name of the figure."""
    return {
        name: [inline_svg(each, f"f{i}-{j}", figure.size) for j, each in enumerate(figure.panels)]
        for i, (name, figure) in enumerate(figures.items())
    }


def inline_svg(panel: Panel, name: str, size: tuple[float, float] = (3.5, 2.7)) -> str:
    """Draws a panel as an SVG element in the colour of a page's text; ids begin with `name`."""
    buffer = io.StringIO()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        panel(axes)
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
        plt.close(figure)
    label = html.escape(axes.get_title().replace("\n", ", ") or name)
    _, _, svg = buffer.getvalue().partition("<svg ")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    return f'<svg role="img" aria-label="{label}" {svg.replace(_INK, "currentColor")}'


def _curve_figure(runs: pd.DataFrame, line_of: Lines) -> Figure:
    """Learning curves on each task of a domain, and their mean over its tasks."""
    groups = [(group["task"].iloc[0], group) for _, group in runs.groupby("env_name")]
    if len(groups) > 1:
        num_tasks = runs.groupby("method")["env_name"].transform("nunique")
        groups.append((f"mean of {len(groups)} tasks", runs[num_tasks == len(groups)]))
    panels = [
        partial(_draw_curves, runs=same, line_of=line_of, title=title, unit=unit)
        for title, group in groups
        for unit, same in group.groupby("unit")
    ]
    return Figure(panels, ordered_methods(runs["method"]))


def _draw(figure: Figure, line_of: Lines) -> Any:
    """Draws panels side by side, with the legend below them."""
    panels, legend, columns, (width, height) = figure
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    per_row = max(1, int(columns * width // (0.5 + 0.085 * max(map(len, legend), default=1))))
    extra = 0.24 * -(-len(legend) // per_row) + 0.1 if legend else 0
    drawn, axes = plt.subplots(
        rows, columns, squeeze=False, layout="constrained",
        figsize=(columns * width, rows * height + extra),
    )  # fmt: skip
    for panel, ax in zip(panels, axes.flat, strict=False):
        panel(ax)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    if legend:
        handles = [plt.Line2D([], [], label=method, **line_of[method]) for method in legend]
        drawn.legend(handles=handles, loc="outside lower center", ncols=per_row)
    return drawn


def _draw_curves(axes: Any, runs: pd.DataFrame, line_of: Lines, title: str, unit: str) -> None:
    """Learning curves with their intervals, and the borders between offline and online.

    The curve of a method without an offline stage begins at the border of the others.
    """
    table, borders = learning_curves(runs), online_borders(runs)
    only_online = set(runs.loc[runs["border"] == 0, "method"])
    for method, curve in table.groupby("method", sort=False):
        shift = borders[0] if len(borders) == 1 and method in only_online else 0
        marker = "." if len(curve) < 3 else None
        _draw_line(axes, curve.assign(step=curve["step"] + shift), line_of[method], marker=marker)
    for border in borders:
        axes.axvline(border, color=_INK, linestyle=(0, (3, 3)), linewidth=0.9, alpha=0.7)
    if len(borders) == 1:
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        style = {"fontsize": 7.5, "alpha": 0.8, "annotation_clip": False, **place}
        axes.annotate("offline ", (borders[0], 1), (-2, 2), ha="right", **style)
        axes.annotate(" online", (borders[0], 1), (2, 2), ha="left", **style)
    _set_score_axis(axes, unit)
    axes.set_title(title, pad=14 if borders else 6)
    axes.set(xlim=(0, None), xlabel="updates, then environment steps" if borders else "updates")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))


def _draw_profiles(axes: Any, results: pd.DataFrame, line_of: Lines, stage: str) -> None:
    for method, curve in performance_profiles(results).groupby("method", sort=False):
        _draw_line(axes, curve, line_of[method], drawstyle="steps-post", step="post")
    axes.set(xlabel="success rate τ (%)", ylabel="fraction of runs above τ")
    axes.set(title=f"performance profile, {stage}", xlim=(0, 100), ylim=(-0.02, 1.02))
    axes.grid(color="#808080", alpha=0.2)


def _draw_intervals(axes: Any, rows: pd.DataFrame, line_of: Lines, name: str, title: str) -> None:
    """Estimate `name` of each method with its interval, from top to bottom."""
    estimates = rows[[name, f"{name}_low", f"{name}_high"]].to_numpy()
    for place, (method, (value, *ends)) in enumerate(zip(rows["method"], estimates, strict=True)):
        color = line_of[method]["color"]
        bar = {"linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}
        axes.plot(ends, [place, place], color=color, **bar)
        axes.plot([value], [place], "|", color=color, markersize=13, markeredgewidth=2.2)
    axes.set(title=title, xlabel="success rate (%)")
    axes.set(xlim=_range(estimates), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows.itertuples()])
    axes.grid(color="#808080", alpha=0.2, axis="x")


def _draw_sensitivity(axes: Any, table: pd.DataFrame, line_of: Lines) -> None:
    """Result of each method against the values of a setting, with intervals.

    The axis is logarithmic if the values, all above 0, span more than a factor of 10.
    """
    first, values = table.iloc[0], sorted(table["value"].unique())
    for method, points in table.groupby("method", sort=False):
        line = {"marker": "o", "markersize": 3.5, **line_of[method]}
        axes.plot(points["value"], points["mean"], **line)
        bars = points["value"], points["mean_low"], points["mean_high"]
        axes.vlines(*bars, color=line["color"], linewidth=4, alpha=0.35)
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
    axes: Any, curve: pd.DataFrame, line: Mapping[str, Any], step: str | None = None, **style: Any
) -> None:
    """Curve with the band of its interval; `style` is of the line, and `step` of the band."""
    axes.plot(curve["step"], curve["score"], **line, **style)
    band = {"color": line["color"], "alpha": 0.16, "linewidth": 0, "step": step}
    axes.fill_between(curve["step"], curve["score_low"], curve["score_high"], **band)


def _set_score_axis(axes: Any, unit: str) -> None:
    if unit == "%":
        axes.set(ylabel="success rate (%)", ylim=(-3, 103), yticks=range(0, 101, 25))
    else:
        axes.set(ylabel="return")
    axes.grid(color="#808080", alpha=0.2)


def _label(row: Any) -> str:
    """Label of a method's interval, in lines that fit beside a panel."""
    partly = f", {row.num_tasks} of {row.of_tasks} tasks" if row.num_tasks < row.of_tasks else ""
    return textwrap.fill(row.method + partly, 28)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Part of the axis that holds these success rates, wide enough not to magnify small gaps."""
    low, high = np.nanmin(values), np.nanmax(values)
    low = min(low, max(0.0, (low + high) / 2 - 15))
    high = max(high, min(100.0, low + 30))
    low = min(low, high - 30)
    return max(low - 2, -1), min(high + 2, 101)
