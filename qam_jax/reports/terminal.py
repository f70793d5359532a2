"""A report in the terminal."""

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qam_jax.reports.comparisons import GroupComparison, comparison_view
from qam_jax.reports.labels import interval, number
from qam_jax.reports.missing import describe_missing
from qam_jax.reports.results import OVERALL, estimate_of
from qam_jax.reports.statistics import Estimate
from qam_jax.reports.summary import Report, sensitivity_views

_WIDTH = 140  # where the output is no terminal
_MAX_LINES = 20  # of missing runs
_MAX_ROWS = 40  # of a comparison, above which rows that are `within` are not shown
_MARKS = {"within": "● within", "above": "▲ above", "below": "▼ below", "untested": "○ untested"}


def make_console() -> Console:
    """Makes a console that is wide enough for tables where the output is no terminal.

    It raises BrokenPipeError where nobody reads what it prints, see `until_closed`.
    """
    return _Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


class _Console(Console):
    def on_broken_pipe(self) -> None:  # rich would end the process with status 1
        raise BrokenPipeError


def print_report(report: Report, console: Console) -> None:
    """Prints a table for each domain and overall, the comparisons, and the missing runs."""
    _print_notes(report.notes, console)
    names = report.aggregates["domain"].unique()
    for domain in sorted(names, key=lambda name: (name == OVERALL, name)):
        rows = report.aggregates[report.aggregates["domain"] == domain]
        console.print(_aggregate_table(domain, rows, report))
    if len(report.published):
        title = "Against the published figures"
        _print_comparison(title, "published", report.published, console)
    if report.comparison:
        _print_group_comparison(report.comparison, console)
    for view in sensitivity_views(report):
        console.print(_sensitivity_table(view))
    lines = describe_missing(report.missing)
    if lines:
        count = len(report.missing)
        console.print(f"\n[bold]Missing or not done: {count:,} run{'s' * (count > 1)}[/]")
        for line in lines[:_MAX_LINES]:
            console.print(f"  {escape(line)}")
        if len(lines) > _MAX_LINES:
            console.print(f"  … and {len(lines) - _MAX_LINES} lines more, in missing.csv")


def _print_notes(notes: Sequence[str], console: Console) -> None:
    for note in notes:
        console.print(f"[yellow]Note:[/] {escape(note)}")


def _aggregate_table(domain: str, rows: pd.DataFrame, report: Report) -> Table:
    is_return = rows["unit"].iloc[0] == "return"
    unit = "mean return" if is_return else "success rate in %"
    several = rows["method"].nunique() > 1
    chance = [f"P(> {report.reference}) in %"] if several else []
    headings = ["method", "stage", "mean", "IQM", *chance, "seeds", "tasks"]
    table = _table(f"{domain}: {unit}, with 95% intervals", headings)
    for stage in report.stages:
        for row in rows[rows["stage"] == stage].to_dict("records"):
            few, many = row["min_seeds"], row["max_seeds"]
            cells = [row["method"], stage, _estimate(row, "mean"), _estimate(row, "iqm")]
            cells += [_chance(row, "probability_of_improvement")] if several else []
            cells += [f"{few}" if few == many else f"{few}–{many}"]
            table.add_row(*map(escape, cells), f"{row['num_tasks']} of {row['of_tasks']}")
        table.add_section()
    return table


def _sensitivity_table(view: dict[str, Any]) -> Table:
    headings = ["task", "method", "stage", *(f"{value:g}" for value in view["numbers"])]
    table = _table(f"Sensitivity to {view['field']}, with 95% intervals", headings)
    for task, rows in view["tasks"].items():
        for row in rows:
            points = (row["points"].get(value) for value in view["numbers"])
            cells = [_estimate(point, "mean") if point else "–" for point in points]
            table.add_row(*map(escape, [task, row["method"], row["stage"], *cells]))
    return table


def _print_comparison(title: str, theirs: str, rows: pd.DataFrame, console: Console) -> None:
    view = comparison_view(rows)
    headings = ["task", "method", "stage", "these runs (n)", f"{theirs} (n)", "difference"]
    headings += ["standing", "test", "p", "settings"]
    table = _table(f"{title}: {view['total']} results", headings)
    short = view["total"] > _MAX_ROWS
    for domain, members in view["domains"].items():
        table.add_row(Text(domain, style="bold"))
        for row in members:
            if not short or row["standing"] in ("above", "below"):
                table.add_row(*map(escape, _comparison_cells(row)))
        table.add_section()
    console.print(table)
    counts = view["counts"]
    if short:
        console.print("Shown are the results outside the spread; report.html has all of them.")
    console.print(
        f"{counts['within']} within, {counts['above']} above, {counts['below']} below at the 5% "
        f"level ({view['by_chance']:.1f} outside would be chance; adjusted for {view['tested']} "
        f"tests: {view['adjusted']}), {counts['untested']} untested."
    )
    for letter, texts in view["letters"].items():
        console.print(f"  [yellow]≠ {letter}[/] {escape('; '.join(texts))}")
    if view["letters"]:
        console.print("  Settings differ (≠): the standing then says nothing about the method.")


def _comparison_cells(row: dict[str, Any]) -> list[str]:
    method = row["method"]
    if row["other"] != method:
        method += f" / {row['other']}"
    sides = []
    for side in ("", "other_"):
        runs = row[f"{side}num_runs"]
        spread = f" ± {number(row[f'{side}std'])}" if runs > 1 else ""
        sides.append(f"{number(row[f'{side}mean'])}{spread} ({runs})")
    p_value = "–" if pd.isna(row["p_value"]) else f"{row['p_value']:.2g}"
    settings = f"≠ {row['letter']}" if row["letter"] else "same"
    return [
        f"  {row['task']}", method, row["stage"], *sides, _estimate(row, "difference"),
        _MARKS[row["standing"]], row["short_test"], p_value, settings,
    ]  # fmt: skip


def _print_group_comparison(comparison: GroupComparison, console: Console) -> None:
    _print_notes(comparison.notes, console)
    if len(comparison.table):
        title = f"{comparison.name} against {comparison.other}"
        _print_comparison(title, "theirs", comparison.table, console)
    for row in comparison.improvements.to_dict("records"):
        ours, theirs = (
            f"{row['method']} in {comparison.name}",
            f"{row['other']} in {comparison.other}",
        )
        chance = _chance(row, "probability")
        console.print(escape(f"{row['stage']}: P({ours} > {theirs}) = {chance} %"))


def _table(title: str, headings: Sequence[str]) -> Table:
    names = map(escape, headings)
    return Table(
        *names, title=escape(title), title_justify="left", title_style="bold", pad_edge=False
    )


def _estimate(row: dict[str, Any], name: str, scale: float = 1, digits: int = 1) -> str:
    """Estimate with its interval, times `scale`."""
    estimate = Estimate(*(scale * part for part in estimate_of(row, name)))
    span = interval(estimate, digits)
    return number(estimate.value, digits) + (f" ({span})" if span else "")


def _chance(row: dict[str, Any], name: str) -> str:
    return _estimate(row, name, scale=100, digits=0)
