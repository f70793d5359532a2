"""Results of methods: on each task, over tasks, and over the course of training.

All tables are data frames. A statistic `x` with an interval has columns `x`, `x_low`, `x_high`.
"""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from qam_jax.reports import statistics
from qam_jax.reports.collect import identities, latest, tell_apart
from qam_jax.reports.labels import method_name, ranges, seeds_words, setting_words
from qam_jax.reports.published import ordered_methods, sort_key
from qam_jax.reports.statistics import estimate

OVERALL = "overall"
_CURVE_REPLICATES = 1000
_THRESHOLDS = np.linspace(0, 100, 101)
_LISTS = {"seeds": "seed", "scores": "score", "configs": "config", "metadata": "metadata"}
_TASK = ["env_name", "domain", "task", "method", "stage", "step", "unit"]
_BY_VALUE = ["setting", "value", "env_name", "domain", "task", "method", "stage", "unit"]


def stage_scores(runs: pd.DataFrame, at: int | None = None) -> pd.DataFrame:
    """Evaluations at the ends of a `stage`, `offline` or `online`, or at a step (`step <at>`)."""
    step, border, end = runs["step"], runs["border"], runs["end"]
    if at is not None:
        found = runs[step == at].assign(stage=f"step {at:,}")
    else:
        offline = runs[(step == border) & (border > 0)].assign(stage="offline")
        online = runs[(step == end) & (end > border)].assign(stage="online")
        found = pd.concat([offline, online])
    return found.dropna(subset="score")


def task_results(runs: pd.DataFrame, at: int | None = None) -> pd.DataFrame:
    """Results of each method on each task by `stage_scores`; the columns are of `mean_results`."""
    results = mean_results(stage_scores(runs, at), _TASK)
    return results.sort_values(["env_name", "method"], key=sort_key)


def mean_results(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean of the scores of each group of runs, with its interval over seeds.

    A row has the columns `by`, `mean` with its interval, `num_seeds`, and as tuples in the order of
    seeds `seeds`, `scores`, `configs` and `metadata` of the runs.
    """
    rows = []
    for key, group in runs.groupby(list(by), sort=False):
        group = group.sort_values(["seed", "score"])
        scores = [group["score"].to_numpy()]
        mean = estimate("mean", statistics.mean_score, scores)
        lists = {name: tuple(group[column]) for name, column in _LISTS.items()}
        rows.append(dict(zip(by, key, strict=True)) | mean | {"num_seeds": len(group)} | lists)
    names = [*by, "mean", "mean_low", "mean_high", "num_seeds", *_LISTS]
    return pd.DataFrame(rows, columns=names)


def aggregates(results: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Results over the tasks of each domain, and over all tasks with a success rate (`OVERALL`).

    A row for each domain, stage and method has the mean and the interquartile mean over tasks, and
    the probability of improvement over `reference` on shared tasks. It counts the tasks with
    results of this method and of any method, and the fewest and the most seeds on a task.
    """
    rated = results[results["unit"] == "%"]
    if rated["domain"].nunique() > 1:
        results = pd.concat([results, rated.assign(domain=OVERALL)])
    results = results.sort_values("stage", kind="stable")
    rows = []
    for (stage, domain, unit), group in results.groupby(["stage", "domain", "unit"], sort=False):
        methods = _scores_by_method(group)
        for method, tasks in methods.items():
            scores = list(tasks.values())
            sizes = [len(task) for task in scores]
            others = methods.get(reference or "", {}) if method != reference else {}
            rows.append({
                "domain": domain, "method": method, "stage": stage, "unit": unit,
                **estimate("mean", statistics.mean_score, scores),
                **estimate("iqm", statistics.interquartile_mean, scores), "reference": reference,
                **_improvement("probability_of_improvement", tasks, others),
                "num_tasks": len(tasks), "of_tasks": group["env_name"].nunique(),
                "min_seeds": min(sizes), "max_seeds": max(sizes),
            })  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["domain", "method", "stage", "unit"])


def improvements(results: pd.DataFrame) -> pd.DataFrame:
    """Probability that a run of one method is better than a run of another, on shared tasks.

    Only success rates count. There is a row for each `stage`, `method` and `other` that share a
    task, with `probability` and its interval.
    """
    rows = []
    for stage, here in results[results["unit"] == "%"].groupby("stage", sort=False):
        pairs = itertools.combinations(_scores_by_method(here).items(), 2)
        for (method, tasks), (other, theirs) in pairs:
            found = _improvement("probability", tasks, theirs)
            value, low, high = found.values()
            swapped = dict(zip(found, (1 - value, 1 - high, 1 - low), strict=True))
            rows.append({"stage": stage, "method": method, "other": other} | found)
            rows.append({"stage": stage, "method": other, "other": method} | swapped)
    names = "stage method other probability probability_low probability_high".split()
    table = pd.DataFrame(rows, columns=names)
    return table.dropna(subset="probability", ignore_index=True)


def learning_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each method over tasks, at the steps at which all of its runs were evaluated.

    A run that ends before half of its method's runs on the task is left out, so that the curve
    neither ends early nor jumps; see `curve_notes`. There is a row for each `method` and `step`,
    with `score` and its interval over seeds.
    """
    curves = {}
    runs = runs[~_lagging(runs)]
    for method in ordered_methods(runs["method"]):
        table = _shared_evaluations(runs[runs["method"] == method])
        if table.size:
            tasks = [task.to_numpy() for _, task in table.groupby("env_name")]
            curves[method] = table.columns, tasks
    return _curves(curves, lambda tasks: np.mean([task.mean(axis=-2) for task in tasks], axis=0))


def curve_notes(runs: pd.DataFrame) -> list[str]:
    """Notes on runs that are left out of the learning curves, by method and task."""
    notes = []
    runs = runs[runs["step"] > 0]
    runs = runs.assign(late=_lagging(runs)).sort_values("method", key=sort_key, kind="stable")
    for (method, env_name), group in runs.groupby(["method", "env_name"], sort=False):
        behind, kept, where = group[group["late"]], group[~group["late"]], f"{method} on {env_name}"
        if len(behind):
            notes.append(
                f"{where}: {seeds_words(behind['seed'])} not yet evaluated at step "
                f"{latest(kept)['step'].min():,}, as the others are; left out of the learning "
                "curves."
            )
        if not _shared_evaluations(kept).size:
            notes.append(
                f"{where}: its runs were not evaluated at the same steps; there is no learning "
                "curve."
            )
    return notes


def performance_profiles(results: pd.DataFrame) -> pd.DataFrame:
    """Fraction of each method's runs above each success rate, over the tasks of one stage.

    The columns are those of `learning_curves`: `score` is the fraction, `step` the rate in percent.
    """
    methods = _scores_by_method(results[results["unit"] == "%"])
    curves = {method: (_THRESHOLDS, list(tasks.values())) for method, tasks in methods.items()}
    return _curves(curves, partial(statistics.performance_profile, thresholds=_THRESHOLDS))


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

    A method has a line where its runs have several values of the setting, named as its flag. Runs
    that differ in other settings too have a line for each configuration of the other settings.

    Returns the table of `mean_results` by setting, value, task, method, stage and unit, and notes
    on what it leaves out and why.
    """
    prefix, none = f"--sensitivity={setting}:", pd.DataFrame()
    settings = runs["config"].map(
        lambda config: config | {f"config.{name}": v for name, v in config["agent"].items()}
    )
    values = settings.map(lambda each: each.get(setting))
    if values.isna().all():
        known = {name.removeprefix("config."): name for name in itertools.chain(*settings)}
        near = difflib.get_close_matches(setting.removeprefix("config."), known, n=1)
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        return none, [f"{prefix} no run has such a setting.{hint}"]
    for folder, value in zip(runs["folder"], values, strict=True):
        if isinstance(value, bool | str | list | dict):
            return none, [f"{prefix} it is no number, but {setting_words(value)}, in {folder}."]
    runs = runs.assign(setting=setting, value=values.astype(float)).dropna(subset="value")
    notes: list[str] = []
    labels: dict[Any, str] = {}
    names = [method_name({"agent_name": run["agent"]["agent_name"]}) for run in runs["config"]]
    for _, group in latest(runs.assign(method=names)).groupby(["env_name", "method"], sort=False):
        identity = identities(group["config"], without=setting.removeprefix("config."))
        group = group.assign(identity=identity)
        several = group.groupby("identity")["value"].transform("nunique") > 1
        if several.any():
            group, lines = tell_apart(group[several])
            labels |= dict(zip(group["folder"], group["method"], strict=True))
            notes += lines
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
    ordered = results.sort_values("method", key=sort_key, kind="stable")
    return {
        method: {row.env_name: np.array(row.scores) for row in group.itertuples()}
        for method, group in ordered.groupby("method", sort=False)
    }


def _improvement(
    name: str, tasks: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Probability of improvement on the shared tasks; nan if there is no shared task."""
    pairs = [(scores, others[task]) for task, scores in tasks.items() if task in others]
    if not pairs:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    return estimate(name, statistics.probability_of_improvement, *zip(*pairs, strict=True))


def _curves(methods: Mapping[str, tuple], statistic: Any) -> pd.DataFrame:
    """Curves of a statistic, from the steps and the scores on each task of each method."""
    parts = []
    for method, (steps, tasks) in methods.items():
        score, low, high = statistics.bootstrap(statistic, tasks, replicates=_CURVE_REPLICATES)
        columns = {"step": steps, "score": score, "score_low": low, "score_high": high}
        parts.append(pd.DataFrame({"method": method, **columns}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["method", "step", "score"])


def _shared_evaluations(runs: pd.DataFrame) -> pd.DataFrame:
    """Scores of one method by task and seed, at the steps at which all runs were evaluated."""
    runs = runs[runs["step"] > 0]
    return runs.pivot(index=["env_name", "seed"], columns="step", values="score").dropna(axis=1)


def _lagging(runs: pd.DataFrame) -> pd.Series:
    """Whether a row's run has come less far than half of its method's runs on the task."""
    last = latest(runs[runs["step"] > 0])
    usual = last.groupby(["method", "env_name"])["step"].transform(
        "quantile", 0.5, interpolation="higher"
    )
    return runs["folder"].isin(last.loc[last["step"] < usual, "folder"])
