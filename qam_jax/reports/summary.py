"""What a report on runs says."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qam_jax.reports.collect import Run, collect
from qam_jax.reports.comparisons import (
    Comparison,
    Standing,
    compare_groups,
    published_standings,
)
from qam_jax.reports.curves import left_out
from qam_jax.reports.labels import method_order
from qam_jax.reports.results import (
    Aggregate,
    Missing,
    Result,
    aggregates,
    default_reference,
    improvements,
    missing_runs,
    seed_notes,
    task_results,
)
from qam_jax.reports.sensitivity import Point, sensitivity
from qam_jax.reports.statistics import Estimate


class Report(NamedTuple):
    """What a report says.

    Attributes:
      folders: where the runs were looked for.
      runs: those that were found.
      notes: what a reader has to know first, a line each.
      results: on each task.
      aggregates: over domains and over all.
      improvements: by stage, the probability that one method is better than another.
      reference: the method that the aggregates' probability of improvement is over.
      published: standings against the paper's figures.
      comparison: with another group of runs; None without one.
      missing: runs that are expected and not done.
      sensitivity: results by the values of settings that were asked for.
    """

    folders: tuple[str, ...]
    runs: list[Run]
    notes: list[str]
    results: list[Result]
    aggregates: list[Aggregate]
    improvements: dict[str, dict[tuple[str, str], Estimate]]
    reference: str | None
    published: list[Standing]
    comparison: Comparison | None
    missing: list[Missing]
    sensitivity: list[Point]

    @property
    def stages(self) -> list[str]:
        """In order: `offline` and `online`, or the step that was asked for."""
        return [
            stage
            for stage in dict.fromkeys(["offline", "online", *(r.stage for r in self.results)])
            if any(result.stage == stage for result in self.results)
        ]

    @property
    def methods(self) -> list[str]:
        """The methods that there are runs of, the paper's first."""
        return sorted({run.method for run in self.runs}, key=method_order)

    @property
    def domains(self) -> list[str]:
        """The domains that there are runs in."""
        return sorted({run.task.domain for run in self.runs})


def make_report(
    folders: Sequence[str],
    *,
    compare: str = "",
    reference: str = "",
    study: str = "",
    at: int | None = None,
    settings: Sequence[str] = (),
) -> Report:
    """Reads runs and works out everything that the report says.

    Args:
      folders: of runs, or above them.
      compare: a folder of other runs, or a method among these runs, to compare the others with.
      reference: the method that the probability of improvement is over; QAM, if there is any.
      study: all runs of which are expected, see `missing_runs`.
      at: the step to take results at, in place of the ends of the offline and online stages.
      settings: that results are shown against, see `sensitivity`.

    Raises:
      ValueError: if `compare` or `reference` is nothing that was found, or there is no such study;
        says what there is.
    """
    apart = [setting for setting in settings if setting != "seed"]
    runs, notes = collect(folders, apart)
    missing = missing_runs(runs, study or None, at)
    results = task_results(runs, at)
    if reference and reference not in {run.method for run in runs}:
        raise ValueError(
            f"--reference: there are no runs of {reference!r}; the methods found are "
            f"{_names(runs)}."
        )
    reference = reference or default_reference(results)
    points, lines = [], []
    for setting in dict.fromkeys(settings):
        found, why = sensitivity(runs, setting, at)
        points += found
        lines += why
    comparison = _compare(folders, runs, compare, at) if compare else None
    stages = dict.fromkeys(result.stage for result in results)
    return Report(
        folders=tuple(map(str, folders)),
        runs=runs,
        notes=[*notes, *lines, *seed_notes(runs), *left_out(runs)],
        results=results,
        aggregates=aggregates(results, reference),
        improvements={stage: improvements(results, stage) for stage in stages},
        reference=reference,
        published=published_standings(runs, results) if at is None else [],
        comparison=comparison,
        missing=missing,
        sensitivity=points,
    )


def _compare(
    folders: Sequence[str], runs: Sequence[Run], compare: str, at: int | None
) -> Comparison:
    if Path(compare).expanduser().exists():
        others, notes = collect([compare])
        name = ", ".join(_short(folder) for folder in folders)
        comparison = compare_groups(runs, others, name, _short(compare), at)
        return comparison._replace(notes=[*notes, *comparison.notes])
    others = [run for run in runs if run.method == compare]
    if not others:
        raise ValueError(
            f"--compare: {compare!r} is neither a folder nor a method of these runs, which are "
            f"{_names(runs)}."
        )
    rest = [run for run in runs if run.method != compare]
    return compare_groups(rest, others, "the other methods", compare, at)


def _short(folder: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(folder).expanduser().resolve().parts[-2:])


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(sorted({run.method for run in runs}, key=method_order)) or "none"
