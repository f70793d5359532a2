"""Summary of runs: everything that a report says, as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qam_jax.files import atomic_write, user_path
from qam_jax.reports import comparisons, results
from qam_jax.reports.collect import collect, latest, missing_runs
from qam_jax.reports.comparisons import GroupComparison, compare_groups
from qam_jax.reports.published import ordered_methods

_HIDDEN = "domain task configs metadata episodes other_episodes run_scores letter label".split()
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
        overall = rows[rows["domain"] == results.OVERALL]
        return overall if len(overall) else rows


def make_report(
    folders: Sequence[str],  # of runs, or above them
    *,
    compare: str = "",  # folder of other runs to compare with, or a method among these runs
    reference: str = "",  # that the probability of improvement is over; empty: QAM, or the first
    expected: pd.DataFrame | None = None,  # all runs that should be there, see `missing_runs`
    at: int | None = None,  # step to take results at; None: the ends of the stages
    settings: Sequence[str] = (),  # that results are shown against, see `sensitivity`
) -> Report:
    """Reads runs and computes everything that the report says.

    Raises ValueError, which says what there is, if `compare` or `reference` was not found.
    """
    runs, notes = collect(folders, apart=[setting for setting in settings if setting != "seed"])
    on_tasks = results.task_results(runs, at)
    methods = ordered_methods(runs["method"])
    if reference and reference not in methods:
        raise ValueError(
            f"--reference: there are no runs of {reference!r}; the methods found are "
            f"{', '.join(methods) or 'none'}."
        )
    against = reference or next(iter(ordered_methods(on_tasks["method"])), None)
    by_setting = {setting: results.sensitivity(runs, setting, at) for setting in settings}
    notes += [line for _, lines in by_setting.values() for line in lines]
    at_ends = on_tasks if at is None else on_tasks.iloc[:0]
    published = comparisons.compare_with_published(at_ends)
    other_papers = comparisons.beside_other_papers(at_ends)
    if len(published) or len(other_papers):
        notes += comparisons.source_notes(runs)
    return Report(
        folders=tuple(map(str, folders)),
        runs=runs,
        notes=[*notes, *results.seed_notes(runs), *results.curve_notes(runs)],
        results=on_tasks,
        aggregates=results.aggregates(on_tasks, against),
        improvements=results.improvements(on_tasks),
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
    tables = report._asdict() | {
        "runs": runs.rename(columns={"step": "last_evaluation", "score": "last_score"}),
        "sensitivity": pd.concat([pd.DataFrame(), *report.sensitivity.values()]),
        "comparison": report.comparison.table if report.comparison else pd.DataFrame(),
    }
    files = []
    for name, table in tables.items():
        if not isinstance(table, pd.DataFrame):
            continue
        path = folder / f"{name}.csv"
        if table.empty:
            path.unlink(missing_ok=True)
            continue
        if "env_name" in table:
            table = table.drop(columns=_HIDDEN, errors="ignore")
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
        *names, other = ("/".join(user_path(f).resolve().parts[-2:]) for f in (*folders, compare))
        comparison = compare_groups(runs, others, ", ".join(names), other, at)
        return comparison._replace(notes=[*notes, *comparison.notes])
    is_other = runs["method"] == compare
    if not is_other.any():
        raise ValueError(
            f"--compare: {compare!r} is neither a folder nor a method of these runs, which are "
            f"{', '.join(ordered_methods(runs['method'])) or 'none'}."
        )
    return compare_groups(runs[~is_other], runs[is_other], "the other methods", compare, at)
