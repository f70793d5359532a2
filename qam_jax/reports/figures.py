"""Figures over many runs: learning curves, performance profiles, intervals, published figures."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from qam_jax.files import atomic_write
from qam_jax.reports.curves import Curve
from qam_jax.reports.sensitivity import Point
from qam_jax.reports.statistics import Estimate

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Draw = Callable[[Any], None]

_COLORS = "#2f6fdb #d9541e #14946a #b58900 #9b59c4 #d1407f #1697b7 #7a7f87 #8c6d46 #6b8e23".split()
_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
_INK = "#1d2733"  # text and axes; on the page it becomes the colour of the text around
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
    "svg.hashsalt": "qam_jax",  # the same file for the same runs
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


class Line(NamedTuple):
    """How a method's line is drawn."""

    color: str
    dash: Any


def lines(methods: Sequence[str]) -> dict[str, Line]:
    """A line for each method that no other has, for all figures of a report."""
    count = len(_COLORS)
    return {
        method: Line(_COLORS[i % count], _DASHES[i // count % len(_DASHES)])
        for i, method in enumerate(methods)
    }


def draw_curves(
    axes: Any,
    curves: Sequence[Curve],
    line_of: Mapping[str, Line],
    *,
    title: str,
    unit: str = "%",
    borders: Sequence[int] = (),
) -> None:
    """Learning curves with their 95% intervals, and the borders between offline and online."""
    for curve in curves:
        _draw(axes, curve, line_of[curve.method], "." if len(curve.steps) < 3 else None)
    for border in borders:
        axes.axvline(border, color=_INK, linestyle=(0, (3, 3)), linewidth=0.9, alpha=0.7)
    if len(borders) == 1:
        border = borders[0]
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        style = {"fontsize": 7.5, "alpha": 0.8, "annotation_clip": False}
        axes.annotate("offline ", (border, 1), (-2, 2), ha="right", **place, **style)
        axes.annotate(" online", (border, 1), (2, 2), ha="left", **place, **style)
    if unit == "%":
        axes.set(ylabel="success rate (%)", ylim=(-3, 103), yticks=range(0, 101, 25))
    else:
        axes.set(ylabel="return")
    axes.set_title(title, pad=14 if borders else 6)
    axes.set_xlim(left=0)
    axes.set_xlabel("updates, then environment steps" if borders else "updates")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.grid(color="#808080", alpha=0.2)


def draw_profiles(
    axes: Any, curves: Sequence[Curve], line_of: Mapping[str, Line], *, title: str
) -> None:
    """Performance profiles: the fraction of runs above each success rate."""
    for curve in curves:
        _draw(axes, curve, line_of[curve.method], None, drawstyle="steps-post", step="post")
    axes.set(xlabel="success rate τ (%)", ylabel="fraction of runs above τ", title=title)
    axes.set(xlim=(0, 100), ylim=(-0.02, 1.02))
    axes.grid(color="#808080", alpha=0.2)


def draw_intervals(
    axes: Any,
    rows: Sequence[tuple[str, str, Estimate]],
    line_of: Mapping[str, Line],
    *,
    title: str,
) -> None:
    """An estimate with its interval for each method and its label, from top to bottom."""
    for place, (method, _, estimate) in enumerate(rows):
        color = line_of[method].color
        if not np.isnan(estimate.low):
            bar = {"linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}
            axes.plot(estimate[1:], [place, place], color=color, **bar)
        axes.plot([estimate.value], [place], "|", color=color, markersize=13, markeredgewidth=2.2)
    axes.set(title=title, ylim=(len(rows) - 0.5, -0.5), xlabel="success rate (%)")
    axes.set_xlim(*_range([value for *_, estimate in rows for value in estimate]))
    axes.set_yticks(range(len(rows)), ["\n".join(wrapped(label)) for _, label, _ in rows])
    axes.grid(color="#808080", alpha=0.2, axis="x")


def draw_sensitivity(
    axes: Any,
    rows: Sequence[Sequence[Point]],
    line_of: Mapping[str, Line],
    *,
    title: str,
    unit: str = "%",
) -> None:
    """A line for each method against the values of a setting, with 95% intervals.

    The axis is logarithmic if the values, all above 0, span more than a factor 10.
    """
    for points in rows:
        line = line_of[points[0].method]
        values = np.array([point.value for point in points])
        mean, low, high = np.array([point.mean for point in points]).T
        axes.plot(
            values, mean, color=line.color, linestyle=line.dash, linewidth=1.7,
            marker="o", markersize=3.5,
        )  # fmt: skip
        known = ~np.isnan(low)
        axes.vlines(
            values[known], low[known], high[known], color=line.color, linewidth=4, alpha=0.35
        )
    values = sorted({point.value for points in rows for point in points})
    if values[0] > 0 and values[-1] > 10 * values[0]:
        axes.set_xscale("log")
    places = np.log(values) if axes.get_xscale() == "log" else np.array(values)
    if len(values) > 1 and np.diff(places).min() > (places[-1] - places[0]) / 10:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xticks([], minor=True)
    if unit == "%":
        axes.set(ylabel="success rate (%)", ylim=(-3, 103), yticks=range(0, 101, 25))
    else:
        axes.set(ylabel="return")
    axes.set(title=title, xlabel=rows[0][0].field)
    axes.grid(color="#808080", alpha=0.2)


def wrapped(label: str) -> list[str]:
    """A label in lines that fit beside a panel."""
    return textwrap.wrap(label, 28) or [""]


def save_panels(
    path: Path,
    panels: Sequence[Draw],
    line_of: Mapping[str, Line],
    *,
    legend: Sequence[str] = (),
    columns: int = 3,
    size: tuple[float, float] = (3.5, 2.7),
) -> list[Path]:
    """Draws panels side by side into `<path>.png` and `<path>.svg`.

    Args:
      path: without suffix.
      panels: each draws on the axes that it is given.
      line_of: by method.
      legend: the methods that the legend below has.
      columns: at most so many in a row.
      size: of a panel, in inches.

    Returns:
      The paths of the files.
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
        for place, ax in enumerate(axes.flat):
            if place < len(panels):
                panels[place](ax)
            else:
                ax.set_axis_off()
        if legend:
            handles = [
                plt.Line2D([], [], color=line_of[m].color, linestyle=line_of[m].dash, label=m)
                for m in legend
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=per_row)
        files = []
        for suffix in (".png", ".svg"):
            files.append(path.with_suffix(suffix))
            with atomic_write(files[-1]) as temporary:
                metadata = {"Date": None} if suffix == ".svg" else None
                figure.savefig(temporary, dpi=150, metadata=metadata)
        plt.close(figure)
    return files


def inline_svg(draw: Draw, name: str, *, size: tuple[float, float] = (3.5, 2.7)) -> str:
    """One panel as an SVG element for a page, in the colour of the text around it.

    Args:
      draw: draws on the axes that it is given.
      name: what the ids in it begin with, so that no two panels share one.
      size: in inches.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
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


def _draw(
    axes: Any,
    curve: Curve,
    line: Line,
    marker: str | None,
    drawstyle: str = "default",
    step: str | None = None,
) -> None:
    style = {"color": line.color, "linestyle": line.dash, "linewidth": 1.7}
    axes.plot(curve.steps, curve.mean, marker=marker, drawstyle=drawstyle, **style)
    if not np.isnan(curve.low).all():
        band = {"color": line.color, "alpha": 0.16, "linewidth": 0, "step": step}
        axes.fill_between(curve.steps, curve.low, curve.high, **band)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The part of the scale that holds these rates: wide enough not to magnify what is nothing."""
    low, high = np.nanmin(values), np.nanmax(values)
    low = min(low, max(0.0, (low + high) / 2 - 15))
    high = max(high, min(100.0, low + 30))
    low = min(low, high - 30)
    return max(low - 2, -1), min(high + 2, 101)


def _short(value: float) -> str:
    """A number of steps in short: 50k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
