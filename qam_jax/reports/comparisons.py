"""Comparisons of results, task by task: with the paper's figures, or with another group of runs.

A comparison is a table with a row for each result that both sides have: `env_name`, `domain`,
`task`, `method`, `other` (the other side's method), `stage` and `unit`; `mean`, `std` and
`num_runs` of either side (the other side's as `other_mean` and so on); `difference` of the means
with its interval; `standing`, `test` and `p_value`, see `statistics.TestResult`, and
`adjusted_p_value` for the number of tests; `differences`, the settings of these runs that are not
the other side's, in words; and `run_scores`, the scores of these runs.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from qam_jax.reports.collect import configuration
from qam_jax.reports.labels import base_method, ordered_methods, setting_words
from qam_jax.reports.paper_settings import paper_differences
from qam_jax.reports.published import published_result
from qam_jax.reports.results import estimate_columns, sort_key, task_results
from qam_jax.reports.statistics import (
    FISHER,
    PREDICTION,
    STUDENT,
    WELCH,
    Estimate,
    Sample,
    adjusted,
    compare_samples,
    estimate,
    probability_of_improvement,
    summarize_runs,
)

_PAPER_EPISODES = 50
_TESTS = {WELCH: "Welch", STUDENT: "Student", PREDICTION: "prediction", FISHER: "Fisher"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class GroupComparison(NamedTuple):
    """Comparison of two groups of runs.

    Attributes:
      name: name of the first group.
      other: name of the second group.
      table: the comparison, see above.
      improvements: probability that a run of the first group is better than a run of the second,
        over the tasks with success rates of both: a row for each `stage`, `method` and `other`.
      notes: what could not be compared.
    """

    name: str
    other: str
    table: pd.DataFrame
    improvements: pd.DataFrame
    notes: list[str]


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
                difference.text
                for run in zip(result.configs, result.metadata, strict=True)
                for difference in paper_differences(*run)
                if result.stage == "online" or not difference.only_online
            ]
            rows.append(_row(result, theirs, paper.method, dict.fromkeys(texts)))
    return _table(rows)


def compare_groups(
    runs: pd.DataFrame, others: pd.DataFrame, name: str, other: str, at: int | None = None
) -> GroupComparison:
    """Compares two groups of runs, method by method and task by task.

    Methods with the same label are compared. If no label is shared and the second group has a
    single method, all methods of the first group are compared with it.

    Args:
      runs: table of the first group, see `collect`.
      others: table of the second group.
      name: name of the first group.
      other: name of the second group.
      at: the step to compare at, in place of the ends of the stages.
    """
    pairs, notes = _pairs(runs, others, name, other)
    theirs = {
        (row.env_name, row.method, row.stage, row.unit): row
        for row in task_results(others, at).itertuples()
    }
    rows: list[dict[str, Any]] = []
    scores: dict[tuple[str, ...], list[tuple]] = {}
    for result in task_results(runs, at).itertuples():
        method = pairs.get(result.method, "")
        partner = theirs.get((result.env_name, method, result.stage, result.unit))
        if partner is not None:
            differences = _setting_differences(result.configs[0], partner.configs[0])
            rows.append(_row(result, _sample(partner), method, differences))
            pair = np.array(result.scores), np.array(partner.scores)
            scores.setdefault((result.stage, result.method, method, result.unit), []).append(pair)
    if pairs and not rows:
        notes.append(f"{name} and {other} share no task with results of both yet.")
    chances = []
    for (stage, method, partner, unit), tasks in scores.items():
        if unit == "%":
            chance = estimate(probability_of_improvement, *zip(*tasks, strict=True))
            row = {"stage": stage, "method": method, "other": partner}
            chances.append(row | estimate_columns("probability", chance))
    return GroupComparison(name, other, _table(rows), pd.DataFrame(chances), notes)


def comparison_view(table: pd.DataFrame) -> dict[str, Any]:
    """Contents of a comparison for its reader.

    Args:
      table: the table of a comparison.

    Returns:
      `domains`: rows by domain, each with its `letter`, `bar` and `short_test`; `letters`: a letter
      for each set of settings that differ; `counts` of rows by standing; `summary`: the same counts
      by method and domain; and numbers for the sentence above the table.
    """
    names = ("within", "above", "below", "untested")
    if table.empty:
        return {"total": 0, "counts": dict.fromkeys(names, 0), "domains": {}, "letters": {}}
    different = [texts for texts in dict.fromkeys(table["differences"]) if texts]
    letters = {texts: _LETTERS[i % 26] * (i // 26 + 1) for i, texts in enumerate(different)}
    table = table.sort_values(["env_name", "method", "stage"], key=sort_key)
    rows = [
        row | {"letter": letters.get(row["differences"], ""), "bar": _bar(row)}
        | {"short_test": _TESTS.get(row["test"], "none")}
        for row in table.to_dict("records")
    ]  # fmt: skip
    domains: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        domains.setdefault(row["domain"], []).append(row)
    counts = {name: int((table["standing"] == name).sum()) for name in names}
    tested = len(table) - counts["untested"]
    return {
        "domains": domains,
        "summary": pd.crosstab([table["method"], table["domain"]], table["standing"])
        .reindex(columns=names, fill_value=0).to_dict("index"),
        "methods": ordered_methods(table["method"]),
        "counts": counts,
        "total": len(table),
        "tested": tested,
        "by_chance": 0.05 * tested,
        "adjusted": int((table["adjusted_p_value"] < 0.05).sum()),
        "differing": int(table["differences"].map(bool).sum()),
        "letters": {letter: texts for texts, letter in letters.items()},
    }  # fmt: skip


def _pairs(
    runs: pd.DataFrame, others: pd.DataFrame, name: str, other: str
) -> tuple[dict[str, str], list[str]]:
    """Method of the second group for each method of the first, and notes on the others."""
    ours, theirs = ordered_methods(runs["method"]), ordered_methods(others["method"])
    if not set(ours) & set(theirs) and len(theirs) == 1:
        return dict.fromkeys(ours, theirs[0]), []
    alone = [f"{method} (only in {name})" for method in ours if method not in theirs]
    alone += [f"{method} (only in {other})" for method in theirs if method not in ours]
    notes = [f"Not compared: {', '.join(alone)}."] if alone else []
    return {method: method for method in ours if method in theirs}, notes


def _row(result: Any, theirs: Sample, other: str, differences: Iterable[str]) -> dict[str, Any]:
    """Row of a comparison, without its adjusted p-value."""
    ours = _sample(result)
    test = compare_samples(ours, theirs)
    return {
        "env_name": result.env_name, "domain": result.domain, "task": result.task,
        "method": result.method, "other": other, "stage": result.stage, "unit": result.unit,
        "mean": ours.mean, "std": ours.std, "num_runs": ours.num_runs,
        "other_mean": theirs.mean, "other_std": theirs.std, "other_num_runs": theirs.num_runs,
        **estimate_columns("difference", Estimate(test.difference, test.low, test.high)),
        "standing": test.standing, "test": test.test, "p_value": test.p_value,
        "adjusted_p_value": np.nan, "differences": tuple(differences),
        "run_scores": result.scores,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table.assign(adjusted_p_value=adjusted(table["p_value"])) if rows else table


def _sample(result: Any) -> Sample:
    """Sample of a result's runs, with their episodes where scores are success rates."""
    episodes = min(config["eval_episodes"] for config in result.configs)
    return summarize_runs(result.scores, episodes if result.unit == "%" else 0)


def _setting_differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    ours, theirs = configuration(config), configuration(other)
    return [
        f"{name} = {setting_words(json.loads(ours[name]))} "
        f"(there: {setting_words(json.loads(theirs[name]))})"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]


def _bar(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Places of both sides on a scale from 0 to 100; None for returns."""
    if row["unit"] != "%":
        return None
    mean = row["other_mean"]
    std = 0.0 if math.isnan(row["other_std"]) else row["other_std"]
    low, high = max(0.0, mean - std), min(100.0, mean + std)
    return {
        "low": round(low, 2),
        "width": round(max(high - low, 0.6), 2),
        "mean": round(mean, 2),
        "ours": round(row["mean"], 2),
        "runs": [round(score, 2) for score in row["run_scores"]],
    }
