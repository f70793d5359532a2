"""Comparisons of results, task by task: with the paper's figures, or with another group of runs.

A comparison is a table with a row for each result that both sides have. Its columns:

- `env_name`, `domain`, `task`, `method`, `other` (the other side's method), `stage` and `unit`;
- `mean`, `std` and `num_runs` of these runs, and `other_mean` and so on of the other side;
- `difference` of the means, with its interval;
- `standing`, `test` and `p_value`, see `statistics.TestResult`, and `adjusted_p_value`;
- `differences`: settings of these runs that are not the other side's, in words;
- `run_scores`: the scores of these runs.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from qam_jax.reports import statistics
from qam_jax.reports.collect import configuration
from qam_jax.reports.labels import setting_words
from qam_jax.reports.paper_settings import paper_differences
from qam_jax.reports.published import base_method, ordered_methods, published_result, sort_key
from qam_jax.reports.results import task_results
from qam_jax.reports.statistics import FISHER, PREDICTION, STUDENT, WELCH, Sample

_PAPER_EPISODES = 50
_TESTS = {WELCH: "Welch", STUDENT: "Student", PREDICTION: "prediction", FISHER: "Fisher"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STANDINGS = {"within": "●", "above": "▲", "below": "▼", "untested": "○"}
"""Standings of a result, and their marks."""


class GroupComparison(NamedTuple):
    """Comparison of two groups of runs."""

    name: str  # of the first group
    other: str  # name of the second group
    table: pd.DataFrame  # the comparison, see above
    improvements: pd.DataFrame
    """Probability that a run of the first group is better than a run of the second: a row for each
    `stage`, `method` and `other` with success rates of both on some task."""
    notes: list[str]  # what could not be compared


def compare_with_published(results: pd.DataFrame) -> pd.DataFrame:
    """Compares each result (of `task_results`) that the paper has too with the paper's result."""
    rows = []
    for result in results[results["unit"] == "%"].itertuples():
        paper = published_result(result.env_name, result.method) or published_result(
            result.env_name, base_method(result.method)
        )
        mean, std = (getattr(paper, f"{result.stage}_{name}", np.nan) for name in ("mean", "std"))
        if paper is not None and not np.isnan(mean):
            theirs = Sample(mean, std, paper.num_seeds, _PAPER_EPISODES)
            texts = [
                text
                for run in zip(result.configs, result.metadata, strict=True)
                for text in paper_differences(*run, result.stage).values()
            ]
            rows.append(_row(result, theirs, paper.method, dict.fromkeys(texts)))
    return _table(rows)


def compare_groups(
    runs: pd.DataFrame, others: pd.DataFrame, name: str, other: str, at: int | None = None
) -> GroupComparison:
    """Compares two groups of runs (tables of `collect`), method by method and task by task.

    Methods with the same label are compared. If no label is shared and the second group has a
    single method, all methods of the first group are compared with it. Results are compared at step
    `at`, or else at the ends of the stages.
    """
    pairs, notes = _pairs(runs, others, name, other)
    ours, theirs = task_results(runs, at), task_results(others, at)
    ours["partner"] = [pairs.get(method, "") for method in ours["method"]]
    theirs["partner"] = theirs["method"]
    by = ["env_name", "partner", "stage", "unit"]
    theirs = theirs.drop_duplicates(by, keep="last")
    both = ours.merge(theirs, on=by, suffixes=("", "_theirs"))
    rows = [
        _row(
            result,
            _sample(result.scores_theirs, result.configs_theirs, result.unit),
            result.partner,
            _setting_differences(result.configs[0], result.configs_theirs[0]),
        )
        for result in both.itertuples()
    ]
    if pairs and not rows:
        notes.append(f"{name} and {other} share no task with results of both yet.")
    chances = []
    rated = both[both["unit"] == "%"].groupby(["stage", "method", "partner"], sort=False)
    for (stage, method, partner), tasks in rated:
        sides = ([np.array(task) for task in tasks[side]] for side in ("scores", "scores_theirs"))
        chance = statistics.estimate("probability", statistics.probability_of_improvement, *sides)
        chances.append({"stage": stage, "method": method, "other": partner} | chance)
    return GroupComparison(name, other, _table(rows), pd.DataFrame(chances), notes)


def comparison_view(table: pd.DataFrame) -> dict[str, Any]:
    """Contents of a comparison with at least one row, for its reader.

    Returns:
      `domains`: rows by domain, each with its `letter` and `short_test`; `letters`: a letter for
      each set of settings that differ; `counts` of rows by standing; `summary`: the same counts by
      method and domain; and numbers for the sentence above the table.
    """
    letters = difference_letters(table)
    table = table.sort_values(["env_name", "method", "stage"], key=sort_key)
    table = table.assign(
        letter=[letters.get(texts, "") for texts in table["differences"]],
        short_test=table["test"].map(_TESTS).fillna("none"),
    )
    summary = pd.crosstab([table["method"], table["domain"]], table["standing"])
    counts = summary.reindex(columns=list(STANDINGS), fill_value=0)
    tested = len(table) - int(counts["untested"].sum())
    return {
        "domains": {
            domain: rows.to_dict("records") for domain, rows in table.groupby("domain", sort=False)
        },
        "summary": counts.to_dict("index"),
        "methods": ordered_methods(table["method"]),
        "counts": counts.sum().to_dict(),
        "total": len(table),
        "tested": tested,
        "by_chance": 0.05 * tested,
        "adjusted": int((table["adjusted_p_value"] < 0.05).sum()),
        "same_settings": int((table["letter"] == "").sum()),
        "letters": {letter: texts for texts, letter in letters.items()},
    }


def difference_letters(table: pd.DataFrame) -> dict[tuple[str, ...], str]:
    """A letter for each set of settings that differ in a table, by its `differences`."""
    different = [texts for texts in table["differences"].unique() if texts]
    return {texts: _LETTERS[i % 26] * (i // 26 + 1) for i, texts in enumerate(different)}


def _pairs(
    runs: pd.DataFrame, others: pd.DataFrame, name: str, other: str
) -> tuple[dict[str, str], list[str]]:
    """Method of the second group for each method of the first, and a note on the others."""
    ours, theirs = ordered_methods(runs["method"]), ordered_methods(others["method"])
    shared = [method for method in ours if method in theirs]
    if not shared and len(theirs) == 1:
        return dict.fromkeys(ours, theirs[0]), []
    sides = ((name, ours), (other, theirs))
    alone = [f"{m} (only in {side})" for side, methods in sides for m in methods if m not in shared]
    notes = [f"Not compared: {', '.join(alone)}."] if alone else []
    return dict(zip(shared, shared, strict=True)), notes


def _row(result: Any, theirs: Sample, other: str, differences: Iterable[str]) -> dict[str, Any]:
    """Row of a comparison, without its adjusted p-value."""
    ours = _sample(result.scores, result.configs, result.unit)
    test = statistics.compare_samples(ours, theirs)
    return {
        "env_name": result.env_name, "domain": result.domain, "task": result.task,
        "method": result.method, "other": other, "stage": result.stage, "unit": result.unit,
        **ours._asdict(), **{f"other_{name}": value for name, value in theirs._asdict().items()},
        **test._asdict(), "adjusted_p_value": np.nan, "differences": tuple(differences),
        "run_scores": result.scores,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table.assign(adjusted_p_value=statistics.adjusted(table["p_value"])) if rows else table


def _sample(scores: tuple, configs: tuple, unit: str) -> Sample:
    """Sample of a result's runs, with their episodes where scores are success rates."""
    episodes = min(config["eval_episodes"] for config in configs)
    return statistics.summarize_runs(scores, episodes if unit == "%" else 0)


def _setting_differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    ours, theirs = configuration(config), configuration(other)
    return [
        f"{name} = {setting_words(json.loads(ours[name]))} "
        f"(there: {setting_words(json.loads(theirs[name]))})"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
