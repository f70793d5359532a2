"""A report in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qam_jax.reports.comparisons import Comparison, Standing
from qam_jax.reports.page import interval, number, standings_view
from qam_jax.reports.results import OVERALL, Aggregate, describe_missing
from qam_jax.reports.sensitivity import Table as SensitivityTable
from qam_jax.reports.sensitivity import sensitivity_tables
from qam_jax.reports.statistics import Estimate
from qam_jax.reports.summary import Report

_MAX_LINES = 20  # of missing runs
_MAX_STANDINGS = 40  # of results that are within the others' spread
_MARKS = {"within": "● within", "above": "▲ above", "below": "▼ below", "untested": "○ untested"}


def print_report(report: Report, console: Console) -> None:
    """Prints a table for each domain and overall, the standings, and what is missing."""
    for note in report.notes:
        console.print(f"[yellow]Note:[/] {escape(note)}")
    names = list(dict.fromkeys(row.domain for row in report.aggregates))
    for domain in sorted(names, key=lambda name: (name == OVERALL, name)):
        rows = [row for row in report.aggregates if row.domain == domain]
        console.print(_aggregate_table(domain, rows, report))
    if report.published:
        _print_standings("Against the published figures", "published", report.published, console)
    if report.comparison:
        _print_comparison(report.comparison, console)
    for each in sensitivity_tables(report.sensitivity):
        console.print(_sensitivity_table(each))
    lines = describe_missing(report.missing)
    if lines:
        count = len(report.missing)
        console.print(f"\n[bold]Missing or not done: {count:,} run{'s' * (count > 1)}[/]")
        for line in lines[:_MAX_LINES]:
            console.print(f"  {escape(line)}")
        if len(lines) > _MAX_LINES:
            console.print(f"  … and {len(lines) - _MAX_LINES} lines more, in missing.csv")


def _aggregate_table(domain: str, rows: Sequence[Aggregate], report: Report) -> Table:
    unit = "mean return" if rows[0].unit == "return" else "success rate in %"
    table = _table(f"{domain}: {unit}, with 95% intervals")
    several = len({row.method for row in rows}) > 1
    headings = ["method", "stage", "mean", "IQM"]
    headings += [f"P(> {report.reference}) in %"] if several else []
    for heading in [*headings, "seeds", "tasks"]:
        table.add_column(escape(heading))
    for stage in report.stages:
        for row in (row for row in rows if row.stage == stage):
            few, many = row.seeds
            cells = [row.method, stage, _estimate(row.mean), _estimate(row.iqm)]
            cells += [_chance(row.improvement)] if several else []
            cells += [f"{few}" if few == many else f"{few}–{many}"]
            cells += [f"{row.num_tasks} of {row.of_tasks}"]
            table.add_row(*map(escape, cells))
        table.add_section()
    return table


def _sensitivity_table(found: SensitivityTable) -> Table:
    table = _table(f"Sensitivity to {found.field}, with 95% intervals")
    for heading in ("task", "method", "stage", *(f"{value:g}" for value in found.values)):
        table.add_column(escape(heading))
    for task, rows in found.tasks.items():
        for row in rows:
            first = next(iter(row.values()))
            cells = [task, first.method, first.stage]
            cells += [_estimate(row[value].mean) if value in row else "–" for value in found.values]
            table.add_row(*map(escape, cells))
    return table


def _print_standings(
    title: str, theirs: str, standings: Sequence[Standing], console: Console
) -> None:
    view = standings_view(standings)
    table = _table(f"{title}: {view['total']} results")
    for name in ("task", "method", "stage", "these runs (n)", f"{theirs} (n)", "difference"):
        table.add_column(name)
    for name in ("standing", "test", "p", "settings"):
        table.add_column(name)
    short = view["total"] > _MAX_STANDINGS
    for domain, rows in view["domains"].items():
        table.add_row(Text(domain, style="bold"))
        for row in rows:
            if not short or row["standing"].verdict.standing in ("above", "below"):
                table.add_row(*map(escape, _standing_cells(row)))
        table.add_section()
    console.print(table)
    counts = view["counts"]
    if short:
        console.print("Shown are those outside the spread; report.html has all of them.")
    console.print(
        f"{counts['within']} within, {counts['above']} above, {counts['below']} below at the 5% "
        f"level ({view['by_chance']:.1f} outside would be chance; adjusted for {view['tested']} "
        f"tests: {view['adjusted']}), {counts['untested']} untested."
    )
    for letter, texts in view["letters"].items():
        console.print(f"  [yellow]≠ {letter}[/] {escape('; '.join(texts))}")
    if view["letters"]:
        console.print("  Settings that differ (≠): a standing then says nothing of the method.")


def _standing_cells(row: dict) -> list[str]:
    standing, verdict = row["standing"], row["standing"].verdict
    method = standing.method
    if standing.other != method:
        method += f" / {standing.other}"
    sides = []
    for side in (standing.ours, standing.theirs):
        spread = f" ± {number(side.std)}" if side.num_runs > 1 else ""
        sides.append(f"{number(side.mean)}{spread} ({side.num_runs})")
    span = interval(Estimate(verdict.difference, verdict.low, verdict.high))
    difference = number(verdict.difference) + (f" ({span})" if span else "")
    p_value = "–" if verdict.p_value != verdict.p_value else f"{verdict.p_value:.2g}"
    mark = _MARKS[verdict.standing]
    settings = f"≠ {row['letter']}" if row["letter"] else "same"
    return [
        f"  {row['task']}",
        method,
        standing.stage,
        *sides,
        difference,
        mark,
        row["test"],
        p_value,
        settings,
    ]


def _print_comparison(comparison: Comparison, console: Console) -> None:
    for note in comparison.notes:
        console.print(f"[yellow]Note:[/] {escape(note)}")
    title = escape(f"{comparison.name} against {comparison.other}")
    if comparison.standings:
        _print_standings(title, "theirs", comparison.standings, console)
    for (stage, method, other), value in comparison.improvements.items():
        console.print(
            escape(
                f"{stage}: P({method} in {comparison.name} > {other} in {comparison.other}) = "
                f"{_chance(value)} %"
            )
        )


def _table(title: str) -> Table:
    return Table(title=escape(title), title_justify="left", title_style="bold", pad_edge=False)


def _estimate(estimate: Estimate) -> str:
    span = interval(estimate)
    return f"{number(estimate.value)} ({span})" if span else number(estimate.value)


def _chance(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    span = interval(Estimate(*(100 * part for part in estimate)), 0)
    return f"{number(100 * estimate.value, 0)}" + (f" ({span})" if span else "")
