"""The files of a report: tables as CSV, figures as PNG and SVG."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qam_jax.files import atomic_write
from qam_jax.reports import panels
from qam_jax.reports.comparisons import Standing
from qam_jax.reports.figures import save_panels
from qam_jax.reports.sensitivity import sensitivity_tables
from qam_jax.reports.statistics import Estimate
from qam_jax.reports.summary import Report

_TABLES = (
    "runs", "results", "aggregates", "improvements", "sensitivity", "missing", "published",
    "comparison",
)  # fmt: skip


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Writes everything that the report says as CSV; returns the files.

    A table without rows has no file; that of an earlier report is removed.
    """
    tables = {
        "runs": [
            {
                "folder": run.folder, "env_name": run.env_name, "method": run.method,
                "seed": run.seed, "last_evaluation": run.last, "end": run.end,
                "last_score": run.scores[-1] if run.last else math.nan, "unit": run.unit,
            }
            for run in report.runs
        ],
        "results": [
            {
                "env_name": result.env_name, "method": result.method, "stage": result.stage,
                "step": result.step, "unit": result.unit, **_columns("mean", result.mean),
                "num_seeds": len(result.seeds), "seeds": " ".join(map(str, result.seeds)),
                "scores": " ".join(f"{score:g}" for score in result.scores),
            }
            for result in report.results
        ],
        "aggregates": [
            {
                "domain": row.domain, "method": row.method, "stage": row.stage, "unit": row.unit,
                **_columns("mean", row.mean), **_columns("iqm", row.iqm),
                "reference": report.reference,
                **_columns("probability_of_improvement", row.improvement),
                "num_tasks": row.num_tasks, "of_tasks": row.of_tasks,
                "min_seeds": row.seeds[0], "max_seeds": row.seeds[1],
            }
            for row in report.aggregates
        ],
        "improvements": [
            {"stage": stage, "method": method, "other": other, **_columns("probability", value)}
            for stage, pairs in report.improvements.items()
            for (method, other), value in pairs.items()
        ],
        "sensitivity": [
            {
                "setting": point.field, "value": point.value, "env_name": point.env_name,
                "method": point.method, "stage": point.stage, "unit": point.unit,
                **_columns("mean", point.mean), "num_seeds": len(point.seeds),
                "seeds": " ".join(map(str, point.seeds)),
                "scores": " ".join(f"{score:g}" for score in point.scores),
            }
            for point in report.sensitivity
        ],
        "missing": [run._asdict() for run in report.missing],
        "published": list(map(_standing_row, report.published)),
    }  # fmt: skip
    if report.comparison:
        tables["comparison"] = list(map(_standing_row, report.comparison.standings))
    for name in _TABLES:
        if not tables.get(name):
            (folder / f"{name}.csv").unlink(missing_ok=True)
    return [
        _write_csv(folder / f"{name}.csv", tables[name]) for name in _TABLES if tables.get(name)
    ]


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Draws all figures as PNG and SVG; returns the files."""
    line_of = panels.line_styles(report)
    files = []
    for domain in report.domains:
        drawn = [draw for _, draw in panels.curve_panels(report, domain)]
        if drawn:
            members = {run.method for run in report.runs if run.task.domain == domain and run.last}
            legend = [method for method in report.methods if method in members]
            name = folder / f"curves_{domain.replace('/', '_')}"
            files += save_panels(name, drawn, line_of, legend=legend)
    drawn = [draw for _, draw in panels.profile_panels(report)]
    if drawn:
        legend = list(dict.fromkeys(row.method for row in panels.overall_rows(report)))
        files += save_panels(folder / "profiles", drawn, line_of, legend=legend)
    drawn = [draw for _, draw in panels.interval_panels(report)]
    if drawn:
        size = panels.interval_size(report)
        files += save_panels(folder / "intervals", drawn, line_of, columns=2, size=size)
    for table in sensitivity_tables(report.sensitivity):
        drawn = [draw for _, draw in panels.sensitivity_panels(report, table)]
        name = folder / f"sensitivity_{table.field.replace('.', '_')}"
        columns = 4 if len(report.stages) == 2 else 3  # so that a task's panels are in one row
        files += save_panels(name, drawn, line_of, legend=table.methods, columns=columns)
    return files


def _columns(name: str, estimate: Estimate | None) -> dict[str, float]:
    value, low, high = estimate or (math.nan,) * 3
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _standing_row(standing: Standing) -> dict[str, Any]:
    ours, theirs, verdict = standing.ours, standing.theirs, standing.verdict
    return {
        "env_name": standing.env_name, "method": standing.method, "other": standing.other,
        "stage": standing.stage, "unit": standing.unit,
        "mean": ours.mean, "std": ours.std, "num_runs": ours.num_runs,
        "other_mean": theirs.mean, "other_std": theirs.std, "other_num_runs": theirs.num_runs,
        "difference": verdict.difference,
        "difference_low": verdict.low, "difference_high": verdict.high,
        "standing": verdict.standing, "test": verdict.test, "p_value": verdict.p_value,
        "adjusted_p_value": standing.adjusted_p, "differences": "; ".join(standing.differences),
    }  # fmt: skip


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows as CSV; what is not known is left empty."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})
    return path


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
