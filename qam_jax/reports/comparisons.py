"""Where runs stand, task by task: against the paper's figures, or against other runs."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from qam_jax.reports.collect import Run, configuration
from qam_jax.reports.compare import Sample, Verdict, adjusted, compare, summarize_runs
from qam_jax.reports.labels import base_method, method_order
from qam_jax.reports.paper_settings import departures, setting_words
from qam_jax.reports.published import published_result
from qam_jax.reports.results import Result, task_results
from qam_jax.reports.statistics import Estimate, estimate, probability_of_improvement

_PAPER_EPISODES = 50


class Standing(NamedTuple):
    """One method's runs on one task beside others'.

    Attributes:
      env_name: the task.
      method: the method's label.
      other: the other side's method.
      stage: as that of `Result`.
      unit: `%` or `return`.
      ours: the runs.
      theirs: the other side's.
      verdict: how they stand.
      adjusted_p: its p-value, for as many tests as there are (Benjamini and Hochberg).
      differences: settings of these runs that are not the other side's, in words.
      scores: of these runs.
    """

    env_name: str
    method: str
    other: str
    stage: str
    unit: str
    ours: Sample
    theirs: Sample
    verdict: Verdict
    adjusted_p: float
    differences: tuple[str, ...]
    scores: tuple[float, ...]


class Comparison(NamedTuple):
    """Two groups of runs side by side.

    Attributes:
      name: of the first group.
      other: of the second.
      standings: of the first against the second, task by task.
      improvements: by stage and the two methods, the probability that a run of the first group is
        better than one of the second, over the tasks with success rates that both have.
      notes: what could not be compared.
    """

    name: str
    other: str
    standings: list[Standing]
    improvements: dict[tuple[str, str, str], Estimate]
    notes: list[str]


def published_standings(runs: Sequence[Run], results: Sequence[Result]) -> list[Standing]:
    """Every result that the paper has too, against the paper's."""
    found, by_result = [], _by_result(runs)
    for result in results:
        members = _members(by_result, result)
        paper = published_result(result.env_name, result.method) or published_result(
            result.env_name, base_method(result.method)
        )
        figures = getattr(paper, result.stage, None)
        if figures is None or result.unit != "%":
            continue
        theirs = Sample(*figures, paper.num_seeds, _PAPER_EPISODES)
        texts = [
            part.text
            for run in members
            for part in departures(run.config, run.metadata)
            if result.stage == "online" or part.kind != "online budget"
        ]
        found.append(_standing(result, members, paper.method, theirs, dict.fromkeys(texts)))
    return _adjusted(found)


def compare_groups(
    runs: Sequence[Run], others: Sequence[Run], name: str, other: str, at: int | None = None
) -> Comparison:
    """Compares two groups of runs, method by method and task by task.

    Methods with the same label are compared; if no label is shared and each group has one method
    alone, these two.

    Args:
      runs: of the first group.
      others: of the second.
      name: what the first group is called.
      other: what the second group is called.
      at: a step at which they are compared, in place of the ends of their stages.
    """
    pairs, notes = _pairs(runs, others, name, other)
    ours, theirs = task_results(runs, at), task_results(others, at)
    by_run = {(result.env_name, result.method, result.stage): result for result in theirs}
    our_runs, their_runs = _by_result(runs), _by_result(others)
    standings, tasks = [], {}
    for result in ours:
        partner = by_run.get((result.env_name, pairs.get(result.method, ""), result.stage))
        if partner is None or partner.unit != result.unit:
            continue
        members = _members(our_runs, result)
        partners = _members(their_runs, partner)
        sample = summarize_runs(partner.scores, _episodes(partners, partner.unit))
        differences = _setting_differences(members, partners)
        standings.append(_standing(result, members, partner.method, sample, differences))
        if result.unit == "%":
            key = result.stage, result.method, partner.method
            tasks.setdefault(key, []).append((result.scores, partner.scores))
    if pairs and not standings:
        notes.append(f"{name} and {other} share no task with results of both yet.")
    chances = {
        key: estimate(probability_of_improvement, *map(list, zip(*scores, strict=True)))
        for key, scores in tasks.items()
    }
    return Comparison(name, other, _adjusted(standings), chances, notes)


def _pairs(
    runs: Sequence[Run], others: Sequence[Run], name: str, other: str
) -> tuple[dict[str, str], list[str]]:
    """Which method is compared with which."""
    ours = sorted({run.method for run in runs}, key=method_order)
    theirs = sorted({run.method for run in others}, key=method_order)
    if not set(ours) & set(theirs) and len(theirs) == 1:
        return dict.fromkeys(ours, theirs[0]), []
    pairs = {method: method for method in ours if method in theirs}
    alone = [f"{method} (only in {name})" for method in ours if method not in pairs]
    alone += [f"{method} (only in {other})" for method in theirs if method not in pairs]
    return pairs, [f"Not compared: {', '.join(alone)}."] if alone else []


def _by_result(runs: Sequence[Run]) -> dict[tuple[str, str], dict[int, Run]]:
    """Runs by task and method, and by seed."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        found.setdefault((run.env_name, run.method), {})[run.seed] = run
    return found


def _members(runs: dict[tuple[str, str], dict[int, Run]], result: Result) -> list[Run]:
    """The runs that a result is of."""
    return [runs[result.env_name, result.method][seed] for seed in result.seeds]


def _standing(
    result: Result, members: Sequence[Run], other: str, theirs: Sample, differences: Sequence[str]
) -> Standing:
    ours = summarize_runs(result.scores, _episodes(members, result.unit))
    return Standing(
        result.env_name, result.method, other, result.stage, result.unit, ours, theirs,
        compare(ours, theirs), float("nan"), tuple(differences), tuple(result.scores),
    )  # fmt: skip


def _adjusted(standings: Sequence[Standing]) -> list[Standing]:
    values = adjusted([standing.verdict for standing in standings])
    return [
        standing._replace(adjusted_p=value)
        for standing, value in zip(standings, values, strict=True)
    ]


def _episodes(runs: Sequence[Run], unit: str) -> int:
    """Episodes of an evaluation; 0 where scores are no success rates."""
    return min(run.config["eval_episodes"] for run in runs) if unit == "%" else 0


def _setting_differences(runs: Sequence[Run], others: Sequence[Run]) -> list[str]:
    ours, theirs = configuration(runs[0].config), configuration(others[0].config)
    texts = []
    for name in sorted(ours.keys() & theirs.keys()):
        here, there = (json.loads(side[name]) for side in (ours, theirs))
        if here != there:
            texts.append(f"{name} = {setting_words(here)} (there: {setting_words(there)})")
    return texts
