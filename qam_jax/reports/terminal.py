"""A report in the terminal."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qam_jax.reports.collect import describe_missing
from qam_jax.reports.comparisons import STANDINGS, GroupComparison, comparison_view
from qam_jax.reports.labels import estimate_words, number
from qam_jax.reports.other_papers import other_papers_view
from qam_jax.reports.results import OVERALL
from qam_jax.reports.summary import Report

_MAX_LINES = 20  # of missing runs
_MAX_ROWS = 40  # of a comparison, above which it is shown in part


def print_report(report: Report, console: Console) -> None:
    """Prints a table for each domain and overall, the comparisons, and the missing runs."""
    _print_notes(report.notes, console)
    order = {name: (name == OVERALL, name) for name in report.aggregates["domain"]}
    for domain in sorted(order, key=order.__getitem__):
        rows = report.aggregates[report.aggregates["domain"] == domain]
        console.print(_aggregate_table(domain, rows, report.reference))
    if len(report.published):
        title = "Against the published figures"
        _print_comparison(title, "published", report.published, console)
    if len(report.other_papers):
        _print_other_papers(report.other_papers, console)
    if report.comparison:
        _print_group_comparison(report.comparison, console)
    for setting, table in report.sensitivity.items():
        console.print(_sensitivity_table(setting, table))
    lines = describe_missing(report.missing)
    if lines:
        count = len(report.missing)
        console.print(f"\n[bold]Missing or not done: {count:,} run{'s' * (count > 1)}[/]")
        for line in lines[:_MAX_LINES]:
            console.print(f"  {escape(line)}")
        if len(lines) > _MAX_LINES:
            console.print(f"  … and {len(lines) - _MAX_LINES} lines more, in missing.csv")


def _print_notes(notes: Iterable[str], console: Console) -> None:
    for note in notes:
        console.print(f"[yellow]Note:[/] {escape(note)}")


def _aggregate_table(domain: str, rows: pd.DataFrame, reference: str | None) -> Table:
    unit = {"return": "mean return", "%": "success rate in %"}[rows["unit"].iloc[0]]
    several = rows["method"].nunique() > 1
    chance = [f"P(> {reference}) in %"] if several else []
    headings = ["method", "stage", "mean", "IQM", *chance, "seeds", "tasks"]
    table = _table(f"{domain}: {unit}, with 95% intervals", headings)
    for stage, here in rows.groupby("stage"):
        for row in here.to_dict("records"):
            few, many = row["min_seeds"], row["max_seeds"]
            cells = [row["method"], stage, _estimate(row, "mean"), _estimate(row, "iqm")]
            cells += [_chance(row, "probability_of_improvement")] if several else []
            cells += [f"{few}" if few == many else f"{few}–{many}"]
            table.add_row(*map(escape, cells), f"{row['num_tasks']} of {row['of_tasks']}")
        table.add_section()
    return table


def _sensitivity_table(setting: str, rows: pd.DataFrame) -> Table:
    values = sorted(rows["value"].unique())
    headings = ["task", "method", "stage", *(f"{value:g}" for value in values)]
    table = _table(f"Sensitivity to {setting}, with 95% intervals", headings)
    by = ["domain", "task", "method", "stage"]
    for (domain, task, method, stage), group in rows.groupby(by, sort=False):
        points = {row["value"]: _estimate(row, "mean") for row in group.to_dict("records")}
        cells = [" ".join(dict.fromkeys([domain, task])), method, stage]
        table.add_row(*map(escape, cells), *(points.get(value, "–") for value in values))
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


def _print_other_papers(rows: pd.DataFrame, console: Console) -> None:
    view = other_papers_view(rows)
    comparable = (rows["differences"].map(len) == 0).sum()
    heading = f"Beside the figures of other papers: {len(rows)} results, {comparable} comparable"
    shown = len(rows) <= _MAX_ROWS
    console.print(f"[bold]{heading}{'' if shown else '; report.html has their tables'}.[/]")
    if shown:
        for protocol, by_task in view["protocols"].items():
            console.print(_protocol_table(protocol, by_task))
        for letter, texts in view["letters"].items():
            console.print(f"  [yellow]≠ {letter}[/] {escape('; '.join(texts))}")
    for name, source in view["sources"].items():
        words = f"{name}: {source['title']}, arXiv {source['arxiv']}. {source['note']}"
        console.print(escape(words))


def _protocol_table(protocol: str, by_task: dict[str, list[dict[str, Any]]]) -> Table:
    headings = ["task", "published (seeds)", "method", "these runs (n)", "comparable"]
    table = _table(protocol, headings)
    for label, rows in by_task.items():
        first = label, ", ".join(rows[0]["figures"])
        for row in rows:
            runs = f"{number(row['mean'])} ({row['num_runs']})"
            verdict = f"no ≠ {row['letter']}" if row["letter"] else "yes"
            table.add_row(*map(escape, (*first, row["method"], runs, verdict)))
            first = "", ""
        table.add_section()
    return table


def _comparison_cells(row: dict[str, Any]) -> list[str]:
    method = row["method"]
    if row["other"] != method:
        method += f" / {row['other']}"
    sides = []
    for side in ("", "other_"):
        runs = row[f"{side}num_runs"]
        spread = f" ± {number(row[f'{side}std'])}" if runs > 1 else ""
        sides.append(f"{number(row[f'{side}mean'])}{spread} ({runs})")
    standing = f"{STANDINGS[row['standing']]} {row['standing']}"
    p_value = "–" if pd.isna(row["p_value"]) else f"{row['p_value']:.2g}"
    settings = f"≠ {row['letter']}" if row["letter"] else "same"
    return [
        f"  {row['task']}", method, row["stage"], *sides, _estimate(row, "difference"),
        standing, row["short_test"], p_value, settings,
    ]  # fmt: skip


def _print_group_comparison(comparison: GroupComparison, console: Console) -> None:
    _print_notes(comparison.notes, console)
    if len(comparison.table):
        title = f"{comparison.name} against {comparison.other}"
        _print_comparison(title, "theirs", comparison.table, console)
    for row in comparison.improvements.to_dict("records"):
        ours = f"{row['method']} in {comparison.name}"
        theirs = f"{row['other']} in {comparison.other}"
        chance = _chance(row, "probability")
        console.print(escape(f"{row['stage']}: P({ours} > {theirs}) = {chance} %"))


def _table(title: str, headings: Iterable[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(escape(heading))
    return table


def _estimate(row: dict[str, Any], name: str, scale: float = 1, digits: int = 1) -> str:
    value, span = estimate_words(row, name, scale, digits)
    return f"{value} ({span})" if span else value


def _chance(row: dict[str, Any], name: str) -> str:
    return _estimate(row, name, scale=100, digits=0)
