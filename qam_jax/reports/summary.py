"""Summary of runs: everything that a report says, as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qam_jax.files import atomic_write
from qam_jax.reports.collect import collect, latest
from qam_jax.reports.comparisons import GroupComparison, compare_groups, compare_with_published
from qam_jax.reports.labels import ordered_methods
from qam_jax.reports.missing import missing_runs
from qam_jax.reports.results import (
    aggregates,
    curve_notes,
    default_reference,
    improvements,
    seed_notes,
    sensitivity,
    task_results,
)

_NOT_WRITTEN = ["domain", "task", "configs", "metadata", "run_scores"]
_RUN_COLUMNS = {name: name for name in ("folder", "env_name", "method", "seed")} | {
    "step": "last_evaluation",
    "end": "end",
    "score": "last_score",
    "unit": "unit",
}


class Report(NamedTuple):
    """Contents of a report.

    Attributes:
      folders: the folders that runs were looked for in.
      runs: the table of `collect`.
      notes: lines that a reader has to know first.
      results: the table of `task_results`.
      aggregates: the table of `aggregates`.
      improvements: the table of `improvements`.
      reference: the method that the probability of improvement in `aggregates` is over.
      published: comparison with the paper's figures.
      comparison: comparison with another group of runs; None without one.
      missing: the table of `missing_runs`.
      sensitivity: results by the values of the settings that were asked for.
    """

    folders: tuple[str, ...]
    runs: pd.DataFrame
    notes: list[str]
    results: pd.DataFrame
    aggregates: pd.DataFrame
    improvements: pd.DataFrame
    reference: str | None
    published: pd.DataFrame
    comparison: GroupComparison | None
    missing: pd.DataFrame
    sensitivity: pd.DataFrame

    @property
    def stages(self) -> list[str]:
        """Stages with results, in order: `offline` and `online`, or `step <N>`."""
        return sorted(self.results["stage"].unique())

    @property
    def methods(self) -> list[str]:
        """Methods of the runs, in the order of tables."""
        return ordered_methods(self.runs["method"])

    @property
    def domains(self) -> list[str]:
        """Domains of the runs."""
        return sorted(self.runs["domain"].unique())

    @property
    def settings(self) -> list[str]:
        """Settings that results are shown against."""
        return list(dict.fromkeys(self.sensitivity.get("setting", ())))


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
    apart = [setting for setting in settings if setting != "seed"]
    runs, notes = collect(folders, apart)
    results = task_results(runs, at)
    methods = ordered_methods(runs["method"])
    if reference and reference not in methods:
        raise ValueError(
            f"--reference: there are no runs of {reference!r}; the methods found are "
            f"{', '.join(methods) or 'none'}."
        )
    against = reference or default_reference(results)
    tables = []
    for setting in dict.fromkeys(settings):
        table, lines = sensitivity(runs, setting, at)
        tables += [table] if len(table) else []
        notes += lines
    return Report(
        folders=tuple(map(str, folders)),
        runs=runs,
        notes=[*notes, *seed_notes(runs), *curve_notes(runs)],
        results=results,
        aggregates=aggregates(results, against),
        improvements=improvements(results),
        reference=against,
        published=compare_with_published(results if at is None else results.iloc[:0]),
        comparison=_compare(folders, runs, compare, at) if compare else None,
        missing=missing_runs(runs, expected, at),
        sensitivity=pd.concat(tables) if tables else pd.DataFrame(),
    )


def sensitivity_views(report: Report) -> list[dict[str, Any]]:
    """Results against each setting for their reader.

    Returns:
      For each setting its name as `field`; its values as `numbers`; the `methods`; and `tasks`: by
      the task's name the rows, each with `method`, `stage` and `points`, the result for each value.
    """
    views = []
    by = ["domain", "task", "method", "stage", "unit"]
    for setting in report.settings:
        table = report.sensitivity[report.sensitivity["setting"] == setting]
        tasks: dict[str, list[dict[str, Any]]] = {}
        for (domain, task, method, stage, _), group in table.groupby(by, sort=False):
            points = {row["value"]: row for row in group.to_dict("records")}
            row = {"method": method, "stage": stage, "points": points}
            tasks.setdefault(" ".join(dict.fromkeys([domain, task])), []).append(row)
        numbers, methods = sorted(table["value"].unique()), ordered_methods(table["method"])
        views.append({"field": setting, "numbers": numbers, "methods": methods, "tasks": tasks})
    return views


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Writes the tables of a report as CSV; returns the files.

    A table without rows has no file; the file of an earlier report is removed.
    """
    last = latest(report.runs)
    tables = {
        "runs": last[list(_RUN_COLUMNS)].rename(columns=_RUN_COLUMNS),
        "results": report.results,
        "aggregates": report.aggregates,
        "improvements": report.improvements,
        "sensitivity": report.sensitivity,
        "missing": report.missing,
        "published": report.published,
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
    if Path(compare).expanduser().exists():
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
    return "/".join(Path(folder).expanduser().resolve().parts[-2:])
