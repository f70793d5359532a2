"""Summary of runs: everything that a report says, as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qam_jax.files import atomic_write, user_path
from qam_jax.reports.collect import collect, latest, missing_runs
from qam_jax.reports.comparisons import GroupComparison, compare_groups, compare_with_published
from qam_jax.reports.other_papers import beside_other_papers, source_notes
from qam_jax.reports.published import ordered_methods
from qam_jax.reports.results import (
    OVERALL,
    aggregates,
    curve_notes,
    improvements,
    seed_notes,
    sensitivity,
    task_results,
)

_NOT_WRITTEN = "domain task configs metadata episodes other_episodes run_scores".split()
_RUN_COLUMNS = ["folder", "env_name", "method", "seed", "step", "end", "score", "unit"]


class Report(NamedTuple):
    """Contents of a report: tables, each as the function of its name makes it, and notes."""

    folders: tuple[str, ...]  # that runs were looked for in
    runs: pd.DataFrame  # the table of `collect`
    notes: list[str]  # lines that a reader has to know first
    results: pd.DataFrame  # the table of `task_results`
    aggregates: pd.DataFrame
    improvements: pd.DataFrame
    reference: str | None  # method that the probability of improvement in `aggregates` is over
    published: pd.DataFrame  # comparison with the paper's figures
    other_papers: pd.DataFrame  # results beside the figures of other papers
    comparison: GroupComparison | None  # with another group of runs
    missing: pd.DataFrame
    sensitivity: dict[str, pd.DataFrame]  # by the setting that results are shown against

    @property
    def overall(self) -> pd.DataFrame:
        """Aggregates of success rates over all tasks, or over the tasks of the only domain."""
        rows = self.aggregates[self.aggregates["unit"] == "%"]
        overall = rows[rows["domain"] == OVERALL]
        return overall if len(overall) else rows


def make_report(
    folders: Sequence[str],
    *,
    compare: str = "",
    reference: str = "",
    expected: pd.DataFrame | None = None,
    at: int | None = None,
    settings: Sequence[str] = (),
) -> Report:
    """Reads runs and computes everything that the report says.

    Args:
      folders: folders of runs, or folders above them.
      compare: a folder of other runs to compare with, or a method among these runs.
      reference: the method that the probability of improvement is over; empty: QAM, or the first.
      expected: all runs that should be there, see `missing_runs`.
      at: the step to take results at, in place of the ends of the offline and online stages.
      settings: the settings that results are shown against, see `sensitivity`.

    Raises:
      ValueError: if `compare` or `reference` was not found; says what there is.
    """
    runs, notes = collect(folders, apart=[setting for setting in settings if setting != "seed"])
    results = task_results(runs, at)
    methods = ordered_methods(runs["method"])
    if reference and reference not in methods:
        raise ValueError(
            f"--reference: there are no runs of {reference!r}; the methods found are "
            f"{', '.join(methods) or 'none'}."
        )
    against = reference or next(iter(ordered_methods(results["method"])), None)
    by_setting = {setting: sensitivity(runs, setting, at) for setting in settings}
    notes += [line for _, lines in by_setting.values() for line in lines]
    at_ends = results if at is None else results.iloc[:0]
    published, other_papers = compare_with_published(at_ends), beside_other_papers(at_ends)
    if len(published) or len(other_papers):
        notes += source_notes(runs)
    return Report(
        folders=tuple(map(str, folders)),
        runs=runs,
        notes=[*notes, *seed_notes(runs), *curve_notes(runs)],
        results=results,
        aggregates=aggregates(results, against),
        improvements=improvements(results),
        reference=against,
        published=published,
        other_papers=other_papers,
        comparison=_compare(folders, runs, compare, at) if compare else None,
        missing=missing_runs(runs, expected, at),
        sensitivity={name: table for name, (table, _) in by_setting.items() if len(table)},
    )


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Writes the tables of a report as CSV; returns the files.

    A table without rows has no file; the file of an earlier report is removed.
    """
    runs = latest(report.runs)[_RUN_COLUMNS]
    by_setting = list(report.sensitivity.values())
    tables = {
        "runs": runs.rename(columns={"step": "last_evaluation", "score": "last_score"}),
        "results": report.results,
        "aggregates": report.aggregates,
        "improvements": report.improvements,
        "sensitivity": pd.concat(by_setting) if by_setting else pd.DataFrame(),
        "missing": report.missing,
        "published": report.published,
        "other_papers": report.other_papers.drop(columns="label", errors="ignore"),
        "comparison": report.comparison.table if report.comparison else pd.DataFrame(),
    }
    files = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        if "env_name" in table:
            table = table.drop(columns=_NOT_WRITTEN, errors="ignore")
        if table.empty:
            path.unlink(missing_ok=True)
            continue
        with atomic_write(path) as temporary:
            table.map(_cell).to_csv(temporary, index=False, float_format="%.6g")
        files.append(path)
    return files


def _cell(value: Any) -> Any:
    """Value of a cell that holds several values, as text."""
    if not isinstance(value, tuple):
        return value
    separator = "; " if any(isinstance(part, str) for part in value) else " "
    return separator.join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)


def _compare(
    folders: Sequence[str], runs: pd.DataFrame, compare: str, at: int | None
) -> GroupComparison:
    """Comparison with a folder of other runs, or with one of the methods."""
    if user_path(compare).exists():
        others, notes = collect([compare])
        name = ", ".join(_short(folder) for folder in folders)
        comparison = compare_groups(runs, others, name, _short(compare), at)
        return comparison._replace(notes=[*notes, *comparison.notes])
    is_other = runs["method"] == compare
    if not is_other.any():
        raise ValueError(
            f"--compare: {compare!r} is neither a folder nor a method of these runs, which are "
            f"{', '.join(ordered_methods(runs['method'])) or 'none'}."
        )
    return compare_groups(runs[~is_other], runs[is_other], "the other methods", compare, at)


def _short(folder: str) -> str:
    """Last two parts of a path."""
    return "/".join(user_path(folder).resolve().parts[-2:])
