"""Results of methods against the values of one setting in which their runs differ."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qam_jax.reports.collect import identities, latest, tell_apart
from qam_jax.reports.labels import method_name, setting_words
from qam_jax.reports.results import mean_results, sort_key, stage_scores

_BY = ["setting", "value", "env_name", "domain", "task", "method", "stage", "unit"]


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
    table = mean_results(stage_scores(runs, at), _BY)
    notes += ["no run has come to the end of a stage yet."] if table.empty else []
    table = table.sort_values(["env_name", "stage", "method", "value"], key=sort_key)
    return table, [f"{prefix} {note}" for note in notes]


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
    labels, notes = {}, []
    for _, group in last.assign(method=names).groupby(["env_name", "method"], sort=False):
        identity = identities(group["config"], without=setting.removeprefix("config."))
        group = group.assign(identity=identity)
        several = group.groupby("identity")["value"].transform("nunique") > 1
        if several.any():
            group, lines = tell_apart(group[several])
            labels |= dict(zip(group["folder"], group["method"], strict=True))
            notes += lines
    return labels, notes
