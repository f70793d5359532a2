"""A report in the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qam_jax.reports.collect import describe_missing
from qam_jax.reports.comparisons import STANDINGS, comparison_view, other_papers_view
from qam_jax.reports.labels import estimate_words, number
from qam_jax.reports.results import OVERALL
from qam_jax.reports.summary import Report

_MAX_LINES = 20  # of missing runs
_MAX_ROWS = 40  # of a comparison, above which it is shown in part


def print_report(report: Report, console: Console) -> None:
    """Prints a table for each domain and overall, the comparisons, and the missing runs."""
    comparison, lines = report.comparison, describe_missing(report.missing)
    _print_notes(report.notes, console)
    for domain in sorted({*report.aggregates["domain"]}, key=lambda name: (name == OVERALL, name)):
        rows = report.aggregates[report.aggregates["domain"] == domain]
        console.print(_aggregate_table(domain, rows, report.reference))
    _print_comparison("Against the published figures", "published", report.published, console)
    _print_other_papers(report.other_papers, console)
    if comparison:
        _print_notes(comparison.notes, console)
        title = f"{comparison.name} against {comparison.other}"
        _print_comparison(title, "theirs", comparison.table, console)
        for row in comparison.improvements.to_dict("records"):
            ours, theirs = f"{row['method']} in {comparison.name}", f"{row['other']} in "
            chance = _estimate(row, "probability", 100, 0)
            text = f"{row['stage']}: P({ours} > {theirs}{comparison.other}) = {chance} %"
            console.print(escape(text))
    for setting, table in report.sensitivity.items():
        console.print(_sensitivity_table(setting, table))
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
    chance = [f"P(> {reference}) in %"] if rows["method"].nunique() > 1 else []

    def cells(row: dict[str, Any]) -> list[str]:
        few, many = row["min_seeds"], row["max_seeds"]
        return [
            row["method"], row["stage"], _estimate(row, "mean"), _estimate(row, "iqm"),
            *(_estimate(row, "probability_of_improvement", 100, 0) for _ in chance),
            f"{few}" if few == many else f"{few}–{many}",
            f"{row['num_tasks']} of {row['of_tasks']}",
        ]  # fmt: skip

    return _table(
        f"{domain}: {unit}, with 95% intervals",
        ["method", "stage", "mean", "IQM", *chance, "seeds", "tasks"],
        [map(cells, here.to_dict("records")) for _, here in rows.groupby("stage")],
    )


def _sensitivity_table(setting: str, rows: pd.DataFrame) -> Table:
    values = sorted(rows["value"].unique())
    lines = []
    for task, group in rows.groupby(["domain", "task", "method", "stage"], sort=False):
        points = {row["value"]: _estimate(row, "mean") for row in group.to_dict("records")}
        place = [" ".join(dict.fromkeys(task[:2])), *task[2:]]
        lines.append([*place, *(points.get(value, "–") for value in values)])
    headings = ["task", "method", "stage", *(f"{value:g}" for value in values)]
    return _table(f"Sensitivity to {setting}, with 95% intervals", headings, [lines])


def _print_comparison(title: str, theirs: str, rows: pd.DataFrame, console: Console) -> None:
    if not (view := comparison_view(rows)):
        return
    counts, short = view["counts"], view["total"] > _MAX_ROWS
    shown = ("above", "below") if short else STANDINGS
    headings = ["task", "method", "stage", "these runs (n)", f"{theirs} (n)", "difference"]
    headings += ["standing", "test", "p", "settings"]
    sections = [
        [[domain], *(_comparison_cells(row) for row in members if row["standing"] in shown)]
        for domain, members in view["domains"].items()
    ]
    console.print(_table(f"{title}: {view['total']} results", headings, sections))
    if short:
        console.print("Shown are the results outside the spread; report.html has all of them.")
    console.print(
        f"{counts['within']} within, {counts['above']} above, {counts['below']} below at the 5% "
        f"level ({view['by_chance']:.1f} outside would be chance; adjusted for {view['tested']} "
        f"tests: {view['adjusted']}), {counts['untested']} untested."
    )
    _print_letters(view, console)
    if view["letters"]:
        console.print("  Settings differ (≠): the standing then says nothing about the method.")


def _comparison_cells(row: dict[str, Any]) -> list[str]:
    against = f" / {row['other']}" if row["other"] != row["method"] else ""
    sides = []
    for side in ("", "other_"):
        runs = row[f"{side}num_runs"]
        spread = f" ± {number(row[f'{side}std'])}" if runs > 1 else ""
        sides.append(f"{number(row[f'{side}mean'])}{spread} ({runs})")
    return [
        f"  {row['task']}", row["method"] + against, row["stage"], *sides,
        _estimate(row, "difference"), f"{STANDINGS[row['standing']]} {row['standing']}",
        row["short_test"], "–" if pd.isna(row["p_value"]) else f"{row['p_value']:.2g}",
        f"≠ {row['letter']}" if row["letter"] else "same",
    ]  # fmt: skip


def _print_other_papers(rows: pd.DataFrame, console: Console) -> None:
    if not (view := other_papers_view(rows)):
        return
    shown, comparable = len(rows) <= _MAX_ROWS, (rows["letter"] == "").sum()
    heading = f"Beside the figures of other papers: {len(rows)} results, {comparable} comparable"
    console.print(f"[bold]{heading}{'' if shown else '; report.html has their tables'}.[/]")
    if shown:
        headings = ["task", "published (seeds)", "method", "these runs (n)", "comparable"]
        for protocol, tasks in view["protocols"].items():
            sections = [
                [_paper_cells(row, row is here[0]) for row in here] for here in tasks.values()
            ]
            console.print(_table(protocol, headings, sections))
        _print_letters(view, console)
    for name, source in view["sources"].items():
        words = f"{name}: {source['title']}, arXiv {source['arxiv']}. {source['note']}"
        console.print(escape(words))


def _paper_cells(row: dict[str, Any], is_first: bool) -> list[str]:
    """Cells of a result; the first result on a task has the task and its published figures."""
    return [
        *([row["label"], ", ".join(row["figures"])] if is_first else ["", ""]), row["method"],
        f"{number(row['mean'])} ({row['num_runs']})",
        f"no ≠ {row['letter']}" if row["letter"] else "yes",
    ]  # fmt: skip


def _print_letters(view: dict[str, Any], console: Console) -> None:
    for letter, texts in view["letters"].items():
        console.print(f"  [yellow]≠ {letter}[/] {escape('; '.join(texts))}")


def _table(
    title: str, headings: Sequence[str], sections: Iterable[Iterable[Sequence[str]]]
) -> Table:
    """Table of sections of rows. A row with one cell is a heading."""
    table = Table(
        *map(escape, headings), title=escape(title), title_justify="left", title_style="bold",
        pad_edge=False,
    )  # fmt: skip
    for rows in sections:
        for cells in rows:
            table.add_row(*map(escape, cells), style="bold" if len(cells) == 1 else None)
        table.add_section()
    return table


def _estimate(row: dict[str, Any], name: str, scale: float = 1, digits: int = 1) -> str:
    value, span = estimate_words(row, name, scale, digits)
    return f"{value} ({span})" if span else value
