"""Results of methods: on each task, over tasks, and over the course of training.

All tables are data frames. A statistic `x` with an interval has columns `x`, `x_low`, `x_high`.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qam_jax.reports.collect import identities, latest, tell_apart
from qam_jax.reports.labels import (
    method_name,
    method_order,
    ordered_methods,
    ranges,
    setting_words,
)
from qam_jax.reports.statistics import (
    Estimate,
    bootstrap,
    estimate,
    interquartile_mean,
    mean_score,
    performance_profile,
    probability_of_improvement,
)

OVERALL = "overall"
_CURVE_REPLICATES = 1000
_THRESHOLDS = np.linspace(0, 100, 101)
_LISTS = {"seeds": "seed", "scores": "score", "configs": "config", "metadata": "metadata"}
_TASK = ["env_name", "domain", "task", "method", "stage", "step", "unit"]
_BY_VALUE = ["setting", "value", "env_name", "domain", "task", "method", "stage", "unit"]


def estimate_columns(name: str, value: Estimate | None) -> dict[str, float]:
    """Columns of an estimate; nan where there is no estimate."""
    low, high = f"{name}_low", f"{name}_high"
    return dict(zip((name, low, high), value or (np.nan,) * 3, strict=True))


def estimate_of(row: Mapping[str, Any], name: str) -> Estimate:
    """Estimate in a row's columns, see `estimate_columns`."""
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])


def stage_scores(runs: pd.DataFrame, at: int | None = None) -> pd.DataFrame:
    """Evaluations at the ends of stages, with the stage: `offline`, `online` or `step <N>`.

    Args:
      runs: the table of `collect`.
      at: the step to take results at, in place of the ends of the offline and online stages.
    """
    step, border, end = runs["step"], runs["border"], runs["end"]
    if at is not None:
        found = runs[step == at].assign(stage=f"step {at:,}")
    else:
        offline = runs[(step == border) & (border > 0)].assign(stage="offline")
        online = runs[(step == end) & (end > border)].assign(stage="online")
        found = pd.concat([offline, online])
    return found.dropna(subset="score")


def task_results(runs: pd.DataFrame, at: int | None = None) -> pd.DataFrame:
    """Results of each method on each task at the end of each stage that its runs have reached.

    Args:
      runs: the table of `collect`.
      at: see `stage_scores`.

    Returns:
      For each result the columns of `mean_results`, by task, method, stage, step and unit.
    """
    return mean_results(stage_scores(runs, at), _TASK).sort_values(
        ["env_name", "method"], key=sort_key
    )


def mean_results(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean of the scores of each group of runs, with its interval over seeds.

    Returns:
      A row for each group: the columns `by`, `mean` with its interval, `num_seeds`, and as tuples
      in the order of seeds `seeds`, `scores`, `configs` and `metadata` of the runs.
    """
    rows = []
    for key, group in scores.groupby(list(by), sort=False):
        group = group.sort_values(["seed", "score"])
        mean = estimate_columns("mean", estimate(mean_score, [group["score"].to_numpy()]))
        lists = {name: tuple(group[column]) for name, column in _LISTS.items()}
        rows.append(dict(zip(by, key, strict=True)) | mean | {"num_seeds": len(group)} | lists)
    names = [*by, *estimate_columns("mean", None), "num_seeds", *_LISTS]
    return pd.DataFrame(rows, columns=names)


def sort_key(column: pd.Series) -> pd.Series:
    """Key for `sort_values`: methods in the order of tables, all else as it is."""
    return column.map(method_order) if column.name == "method" else column


def aggregates(results: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Results over the tasks of each domain, and over all tasks with a success rate.

    Args:
      results: the table of `task_results`.
      reference: the method over which the probability of improvement is taken; None for none.

    Returns:
      For each domain (or `OVERALL`, where several domains have success rates), stage and method:
      the mean and the interquartile mean over tasks, the probability of improvement over the
      reference on shared tasks, the number of tasks with results of this method and of any method,
      and the smallest and the largest number of seeds on a task.
    """
    groups = []
    several = results.loc[results["unit"] == "%", "domain"].nunique() > 1
    for stage, here in results.groupby("stage", sort=False):
        groups += list(here.groupby(["domain", "stage", "unit"], sort=False))
        rated = here[here["unit"] == "%"]
        if several and len(rated):
            groups.append(((OVERALL, stage, "%"), rated))
    rows = []
    for (domain, stage, unit), group in groups:
        methods = _scores_by_method(group)
        for method, tasks in methods.items():
            scores = list(tasks.values())
            sizes = [len(task) for task in scores]
            others = methods.get(reference, {}) if reference and method != reference else {}
            rows.append(
                {"domain": domain, "method": method, "stage": stage, "unit": unit}
                | estimate_columns("mean", estimate(mean_score, scores))
                | estimate_columns("iqm", estimate(interquartile_mean, scores))
                | {"reference": reference}
                | estimate_columns("probability_of_improvement", _improvement(tasks, others))
                | {"num_tasks": len(tasks), "of_tasks": group["env_name"].nunique()}
                | {"min_seeds": min(sizes), "max_seeds": max(sizes)}
            )
    return pd.DataFrame(rows, columns=None if rows else ["domain", "method", "stage", "unit"])


def default_reference(results: pd.DataFrame) -> str | None:
    """Method that others are compared with: QAM, or the first in the order of tables."""
    return next(iter(ordered_methods(results["method"])), None)


def improvements(results: pd.DataFrame) -> pd.DataFrame:
    """Probability that a run of one method is better than a run of another, on shared tasks.

    Only success rates count. Pairs of methods that share no task are left out.

    Returns:
      A row for each `stage`, `method` and `other`, with `probability` and its interval.
    """
    rows = []
    rated = results[results["unit"] == "%"]
    for stage, here in rated.groupby("stage", sort=False):
        pairs = itertools.combinations(_scores_by_method(here).items(), 2)
        for (method, tasks), (other, theirs) in pairs:
            found = _improvement(tasks, theirs)
            if found is not None:
                value, low, high = found
                swapped = Estimate(1 - value, 1 - high, 1 - low)
                for ours, others, chance in ((method, other, found), (other, method, swapped)):
                    row = {"stage": stage, "method": ours, "other": others}
                    rows.append(row | estimate_columns("probability", chance))
    return pd.DataFrame(rows, columns=None if rows else ["stage", "method", "other"])


def learning_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each method over tasks, at the steps at which all of its runs were evaluated.

    A run that ends before half of its method's runs on the task is left out, so that the curve
    neither ends early nor jumps; see `curve_notes`.

    Returns:
      A row for each `method` and `step`, with `score` and its interval over seeds.
    """
    runs = runs[~_lagging(runs)]
    parts = []
    for method in ordered_methods(runs["method"]):
        table = _shared_evaluations(runs[runs["method"] == method])
        tasks = [task.to_numpy() for _, task in table.groupby("env_name")]
        if table.size:
            parts.append(_curve(method, table.columns, _mean_curve, tasks))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["method", "step", "score"])


def curve_notes(runs: pd.DataFrame) -> list[str]:
    """Notes on runs that are left out of the learning curves, by method and task."""
    notes = []
    runs = runs[runs["step"] > 0]
    late = _lagging(runs)
    for method in ordered_methods(runs["method"]):
        for env_name, group in runs[runs["method"] == method].groupby("env_name", sort=False):
            behind, kept = group[late[group.index]], group[~late[group.index]]
            usual = latest(kept)["step"].min()
            if len(behind):
                seeds = behind["seed"].unique()
                notes.append(
                    f"{method} on {env_name}: seed{'s' * (len(seeds) > 1)} {ranges(seeds)} not yet "
                    f"evaluated at step {usual:,}, as the others are; left out of the learning "
                    "curves."
                )
            if not _shared_evaluations(kept).size:
                notes.append(
                    f"{method} on {env_name}: its runs were not evaluated at the same steps; "
                    "there is no learning curve."
                )
    return notes


def performance_profiles(results: pd.DataFrame) -> pd.DataFrame:
    """Fraction of each method's runs above each success rate, over the tasks of one stage.

    Returns:
      A row for each `method` and `step` (the success rate in percent), with `score` (the fraction)
      and its interval.
    """
    parts = [
        _curve(
            method,
            _THRESHOLDS,
            lambda scores: performance_profile(scores, _THRESHOLDS),
            list(tasks.values()),
        )
        for method, tasks in _scores_by_method(results[results["unit"] == "%"]).items()
    ]
    return pd.concat(parts) if parts else pd.DataFrame(columns=["method", "step", "score"])


def online_borders(runs: pd.DataFrame) -> list[int]:
    """Steps at which runs with evaluations go from offline training to fine-tuning."""
    border = runs["border"]
    return sorted(border[(runs["step"] > 0) & (runs["end"] > border) & (border > 0)].unique())


def seed_notes(runs: pd.DataFrame) -> list[str]:
    """Notes on domains in which the methods have runs of different seeds."""
    notes = []
    for domain, group in runs.groupby("domain"):
        seeds = group.groupby("method")["seed"].agg(ranges)
        if seeds.nunique() > 1:
            each = "; ".join(f"{method} {seeds[method]}" for method in ordered_methods(seeds.index))
            notes.append(f"{domain}: the methods have different seeds ({each}).")
    return notes


def sensitivity(
    runs: pd.DataFrame, setting: str, at: int | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Results of each method on each task by the value of a setting.

    A method has a line where its runs have several values of the setting. Runs that differ in other
    settings too have a line for each configuration of the other settings.

    Args:
      runs: the table of `collect`.
      setting: name of the setting, with `config.` before a setting of the algorithm.
      at: the step to take results at, in place of the ends of the stages.

    Returns:
      The table of `mean_results` by setting, value, task, method, stage and unit, and notes on what
      it leaves out and why.
    """
    prefix = f"--sensitivity={setting}:"
    none = pd.DataFrame()
    values = [_value(config, setting) for config in runs["config"]]
    having = [value is not None for value in values]
    if not any(having):
        return none, [f"{prefix} no run has such a setting.{_hint(runs['config'], setting)}"]
    for folder, value in zip(runs["folder"], values, strict=True):
        if isinstance(value, bool | str | list):
            return none, [f"{prefix} it is no number, but {setting_words(value)}, in {folder}."]
    runs = runs.assign(setting=setting, value=np.array(values, float))[having]
    labels, notes = _labels(latest(runs), setting)
    if not labels:
        shown = ", ".join(f"{value:g}" for value in sorted(runs["value"].unique()))
        return none, [f"{prefix} no method has runs of several values on one task (found {shown})."]
    runs = runs.assign(method=runs["folder"].map(labels)).dropna(subset="method")
    table = mean_results(stage_scores(runs, at), _BY_VALUE)
    notes += ["no run has come to the end of a stage yet."] if table.empty else []
    table = table.sort_values(["env_name", "stage", "method", "value"], key=sort_key)
    return table, [f"{prefix} {note}" for note in notes]


def _scores_by_method(results: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """Scores of each method on each task, in the order of tables."""
    return {
        method: {
            row.env_name: np.array(row.scores)
            for row in results[results["method"] == method].itertuples()
        }
        for method in ordered_methods(results["method"])
    }


def _improvement(
    tasks: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> Estimate | None:
    """Probability of improvement on the shared tasks; None if there is no shared task."""
    shared = [name for name in tasks if name in others]
    if not shared:
        return None
    ours, theirs = [tasks[name] for name in shared], [others[name] for name in shared]
    return estimate(probability_of_improvement, ours, theirs)


def _curve(
    method: str, steps: Sequence[float] | np.ndarray, statistic: Any, tasks: Any
) -> pd.DataFrame:
    """Curve of a statistic, as a table with its interval."""
    bounds = bootstrap(statistic, tasks, replicates=_CURVE_REPLICATES)
    columns = dict(zip(("score", "score_low", "score_high"), bounds, strict=True))
    return pd.DataFrame({"method": method, "step": steps, **columns})


def _mean_curve(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over tasks [..., n, S] of the mean over runs, [..., S]."""
    return np.mean([task.mean(axis=-2) for task in tasks], axis=0)


def _shared_evaluations(runs: pd.DataFrame) -> pd.DataFrame:
    """Scores of one method by task and seed, at the steps at which all runs were evaluated."""
    runs = runs[runs["step"] > 0]
    return runs.pivot(index=["env_name", "seed"], columns="step", values="score").dropna(axis=1)


def _lagging(runs: pd.DataFrame) -> pd.Series:
    """Whether a row's run has come less far than half of its method's runs on the task."""
    last = latest(runs[runs["step"] > 0])
    usual = last.groupby(["method", "env_name"])["step"].transform(
        lambda steps: steps.quantile(0.5, interpolation="higher")
    )
    return runs["folder"].isin(last.loc[last["step"] < usual, "folder"])


def _value(config: dict[str, Any], setting: str) -> Any:
    """Value of a setting in a run's config.json; None if the run has no such setting."""
    name = setting.removeprefix("config.")
    return (config if name == setting else config["agent"]).get(name)


def _hint(configs: Iterable[dict[str, Any]], setting: str) -> str:
    full = {name: name for config in configs for name in config if name != "agent"}
    full |= {name: f"config.{name}" for config in configs for name in config["agent"]}
    name = setting.removeprefix("config.")
    near = [name] if name in full else difflib.get_close_matches(name, sorted(full), n=3)
    return f" Did you mean {' or '.join(full[each] for each in near)}?" if near else ""


def _labels(last: pd.DataFrame, setting: str) -> tuple[dict[Path, str], list[str]]:
    """Label of the line of each run, by folder, where the setting has several values; and notes.

    Args:
      last: one row for each run.
      setting: name of the setting.
    """
    names = [method_name({"agent_name": run["agent"]["agent_name"]}) for run in last["config"]]
    labels: dict[Path, str] = {}
    notes: list[str] = []
    for _, group in last.assign(method=names).groupby(["env_name", "method"], sort=False):
        identity = identities(group["config"], without=setting.removeprefix("config."))
        group = group.assign(identity=identity)
        several = group.groupby("identity")["value"].transform("nunique") > 1
        if several.any():
            group, lines = tell_apart(group[several])
            labels |= dict(zip(group["folder"], group["method"], strict=True))
            notes += lines
    return labels, notes
