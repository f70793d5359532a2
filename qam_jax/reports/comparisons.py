"""Comparisons of results, task by task: with figures of papers, or with another group of runs.

A comparison with the paper's figures, or with other runs, is a table with a row for each result
that both sides have. Its columns:

- `env_name`, `domain`, `task`, `method`, `other` (the other side's method), `stage` and `unit`;
- `mean`, `std` and `num_runs` of these runs, and `other_mean` and so on of the other side;
- `difference` of the means, with its interval;
- `standing`, `test` and `p_value`, see `statistics.TestResult`, and `adjusted_p_value`;
- `differences`: settings of these runs that are not the other side's, in words, and their `letter`;
- `run_scores`: the scores of these runs.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from qam_jax.reports import published, statistics
from qam_jax.reports.collect import configuration
from qam_jax.reports.labels import setting_words, task_label
from qam_jax.reports.paper_settings import paper_differences, protocol_differences
from qam_jax.reports.published import ordered_methods
from qam_jax.reports.results import task_results
from qam_jax.reports.statistics import FISHER, PREDICTION, STUDENT, WELCH, Sample

_PAPER_EPISODES = 50
_TASKS = 5  # of a domain
_TESTS = {WELCH: "Welch", STUDENT: "Student", PREDICTION: "prediction", FISHER: "Fisher"}
STANDINGS = {"within": "●", "above": "▲", "below": "▼", "untested": "○"}  # with their marks


class GroupComparison(NamedTuple):
    """Comparison of two groups of runs.

    `improvements` has a row for each `stage`, `method` and `other` with success rates of both on
    some task: the probability that a run of the first group is better than a run of the second.
    """

    name: str  # of the first group
    other: str  # name of the second group
    table: pd.DataFrame  # the comparison, see above
    improvements: pd.DataFrame
    notes: list[str]  # what could not be compared


def compare_with_published(results: pd.DataFrame) -> pd.DataFrame:
    """Compares each result (of `task_results`) that the paper has too with the paper's result."""
    rows = []
    for result in results[results["unit"] == "%"].itertuples():
        paper = published.published_result(result.env_name, result.method)
        mean, std = (getattr(paper, f"{result.stage}_{name}", np.nan) for name in ("mean", "std"))
        if not np.isnan(mean):
            theirs = Sample(mean, std, paper.num_seeds, _PAPER_EPISODES)
            differences = _texts([result], partial(paper_differences, stage=result.stage))
            rows.append(_row(result, theirs, paper.method, differences))
    return _table(rows)


def compare_groups(
    runs: pd.DataFrame, others: pd.DataFrame, name: str, other: str, at: int | None = None
) -> GroupComparison:
    """Compares two groups of runs (tables of `collect`), method by method and task by task.

    Methods with the same label are compared. If no label is shared and the second group has a
    single method, all methods of the first group are compared with it. Results are compared at step
    `at`, or else at the ends of the stages.
    """
    methods, theirs = ordered_methods(runs["method"]), ordered_methods(others["method"])
    pairs, notes = {method: method for method in methods if method in theirs}, []
    if not pairs and len(theirs) == 1:
        pairs = dict.fromkeys(methods, theirs[0])
    else:
        alone = [f"{method} (only in {name})" for method in methods if method not in pairs]
        alone += [f"{method} (only in {other})" for method in theirs if method not in pairs]
        notes += [f"Not compared: {', '.join(alone)}."] if alone else []
    by = ["env_name", "partner", "stage", "unit"]
    ours, there = task_results(runs, at), task_results(others, at)
    ours["partner"] = [pairs.get(method, "") for method in ours["method"]]
    there = there.assign(partner=there["method"]).drop_duplicates(by, keep="last")
    both = ours.merge(there, on=by, suffixes=("", "_theirs"))
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
    for key, tasks in rated:
        sides = ([np.array(task) for task in tasks[side]] for side in ("scores", "scores_theirs"))
        chance = statistics.estimate("probability", statistics.probability_of_improvement, *sides)
        chances.append(dict(zip(("stage", "method", "other"), key, strict=True)) | chance)
    return GroupComparison(name, other, _table(rows), pd.DataFrame(chances), notes)


def comparison_view(table: pd.DataFrame) -> dict[str, Any]:
    """Contents of a comparison for its reader; empty if there is none.

    They are rows by domain, each with its `short_test`; `letters`, see `letters_of`; `counts` of
    rows by standing, and by method and domain (`summary`); and numbers for a sentence on them.
    """
    if table.empty:
        return {}
    table = table.sort_values(["env_name", "method", "stage"], key=published.sort_key)
    table = table.assign(short_test=table["test"].map(_TESTS).fillna("none"))
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
        "letters": letters_of(table),
        "same_settings": (table["letter"] == "").sum(),
    }


def beside_other_papers(results: pd.DataFrame) -> pd.DataFrame:
    """Offline results (of `task_results`) beside the figures of other papers.

    The table has a row for each method of these runs on each task that a source has figures of.
    Where a source has figures of a domain, the row is over the domain's five tasks. Its columns:

    - `source` and `protocol` of the figures, the protocol in words;
    - `env_name`, the task or the domain, with its `label`;
    - `figures`: mean, standard deviation and number of seeds of each published method, in words;
    - `method`, `mean` and `num_runs` of these runs;
    - `differences`: why this result cannot be held against the figures, with their `letter`.
    """
    offline = results[(results["stage"] == "offline") & (results["unit"] == "%")]
    rows, by_place = [], published.other_figures().groupby(["source", "env_name"], sort=False)
    for (source, env_name), figures in by_place:
        protocol, (domain, task) = figures.to_dict("records")[0], task_label(env_name)
        length = protocol["horizon_length"]
        chunks = f"chunks of {length} actions" if length > 1 else "single actions"
        place = {
            "source": source,
            "protocol": f"{source}: {protocol['data']} transitions, {protocol['reward']} rewards, "
            f"{chunks}, {protocol['offline_steps']:,} updates",
            "env_name": env_name,
            "label": " ".join(dict.fromkeys([domain, task])),
            "figures": tuple(
                f"{figure.method} {figure.mean:g}"
                f"{'' if pd.isna(figure.std) else f' ± {figure.std:g}'} ({figure.num_seeds})"
                for figure in figures.itertuples()
            ),
        }
        here = offline[(offline["env_name"] == env_name) | (offline["domain"] == env_name)]
        for method, tasks in here.groupby("method", sort=False):
            texts = _texts(tasks.itertuples(), partial(protocol_differences, protocol=protocol))
            if domain == task and len(tasks) < _TASKS:
                texts += (f"{len(tasks)} of the domain's {_TASKS} tasks",)
            ours = {"mean": tasks["mean"].mean(), "num_runs": tasks["num_seeds"].min()}
            rows.append({**place, "method": method, **ours, "differences": texts})
    return _table(sorted(rows, key=lambda row: row["protocol"]))


def other_papers_view(table: pd.DataFrame) -> dict[str, Any]:
    """Rows beside other papers by protocol, letters, and the sources; empty without any row."""
    if table.empty:
        return {}
    return {
        "protocols": {
            protocol: {name: group.to_dict("records") for name, group in rows.groupby("label")}
            for protocol, rows in table.groupby("protocol", sort=False)
        },
        "letters": letters_of(table),
        "sources": {name: published.sources()[name] for name in table["source"].unique()},
    }


def source_notes(runs: pd.DataFrame) -> list[str]:
    """Notes on methods and value learnings of these runs whose source has no figures by task."""
    sources = published.sources()
    used = {published.base_method(method) for method in runs["method"]}
    used |= {config["agent"].get("value_learning", "").upper() for config in runs["config"]}
    names = sorted(used & sources.keys() - {"QAM", *published.other_figures()["source"]})
    return [f"{name} (arXiv {sources[name]['arxiv']}): {sources[name]['note']}" for name in names]


def letters_of(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Settings that differ in a table, in words, by their letter."""
    pairs = {*zip(table["letter"], table["differences"], strict=True)} - {("", ())}
    return dict(sorted(pairs, key=lambda pair: (len(pair[0]), pair)))


def _row(result: Any, theirs: Sample, other: str, differences: tuple[str, ...]) -> dict[str, Any]:
    """Row of a comparison, without its adjusted p-value and its letter."""
    ours = _sample(result.scores, result.configs, result.unit)
    return {
        "env_name": result.env_name, "domain": result.domain, "task": result.task,
        "method": result.method, "other": other, "stage": result.stage, "unit": result.unit,
        **ours._asdict(),
        **{f"other_{name}": value for name, value in theirs._asdict().items()},
        **statistics.compare_samples(ours, theirs)._asdict(), "adjusted_p_value": np.nan,
        "differences": differences, "run_scores": result.scores,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of a table, with a `letter` for each set of `differences`, and adjusted p-values."""
    table = pd.DataFrame(rows)
    if "p_value" in table:
        table["adjusted_p_value"] = statistics.adjusted(table["p_value"])
    different = dict.fromkeys(row["differences"] for row in rows if row["differences"])
    letters = {texts: ascii_uppercase[i % 26] * (i // 26 + 1) for i, texts in enumerate(different)}
    return table.assign(letter=[letters.get(row["differences"], "") for row in rows])


def _sample(scores: tuple, configs: tuple, unit: str) -> Sample:
    """Sample of a result's runs, with their episodes where scores are success rates."""
    episodes = min(config["eval_episodes"] for config in configs)
    return statistics.summarize_runs(scores, episodes if unit == "%" else 0)


def _texts(results: Iterable[Any], differences: Callable[..., dict[str, str]]) -> tuple[str, ...]:
    """Texts of `differences(config, metadata)` of all runs behind some results, each once."""
    texts = [
        text
        for result in results
        for run in zip(result.configs, result.metadata, strict=True)
        for text in differences(*run).values()
    ]
    return tuple(dict.fromkeys(texts))


def _setting_differences(config: dict[str, Any], other: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs = configuration(config), configuration(other)
    return tuple(
        f"{name} = {setting_words(json.loads(ours[name]))} "
        f"(there: {setting_words(json.loads(theirs[name]))})"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    )
