"""Collects runs from their folders into one table.

The table has a row for each run and evaluation, ordered by step; a run without any evaluation has
one row, with step 0 and score nan. Its columns:

- `folder`, `seed`, `config` (config.json) and `metadata` (metadata.json) of the run;
- `env_name`, the full name of the task, and its `domain` and `task`, see `labels.task_label`;
- `method`, the published label of the method, with its variant;
- `border`, the step at which the offline stage ends (0 without one), and `end`, the last step;
- `step` and `score` of the evaluation; the score is a success rate in percent, or a mean return
  where `unit` is `return` instead of `%`.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qam_jax.files import read_json
from qam_jax.reports.folders import find_runs, read_evaluations
from qam_jax.reports.labels import (
    full_env_name,
    method_name,
    seeds_words,
    setting_words,
    task_label,
)
from qam_jax.reports.paper_settings import paper_differences, sensitivity_variant
from qam_jax.runs.settings import names_with_role

_COLUMNS = (
    "folder env_name domain task method seed unit border end config metadata step score"
).split()


def collect(
    folders: Sequence[str | os.PathLike], apart: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Reads all runs in and below these folders.

    Runs of several configurations under one method's name get a suffix each; the settings `apart`
    tell configurations apart too. Of a seed that was run twice, the run that has come furthest
    counts.

    Returns:
      The table of runs, ordered by task, method and seed. Notes for the reader: a line for each
      such case, and for each folder that cannot be read.
    """
    paths, notes = find_runs(folders)
    records = []
    for path in paths:
        try:
            records.append(read_run(path))
        except ValueError as error:
            notes.append(f"{path}: left out, {error}")
    runs = pd.DataFrame(records, columns=_COLUMNS)
    parts = [runs.iloc[:0]]
    for _, group in runs.groupby(["env_name", "method"], sort=False):
        group = group.assign(identity=identities(group["config"], apart))
        group, duplicates = _without_duplicates(group)
        group, variants = tell_apart(group)
        parts.append(group[_COLUMNS])
        notes += duplicates + variants
    runs = pd.concat(parts).sort_values(["env_name", "method", "seed"], kind="stable")
    runs = runs.explode(["step", "score"], ignore_index=True)
    numbers = {"step": int, "score": float, "seed": int, "border": int, "end": int}
    return runs.fillna({"step": 0}).astype(numbers), notes


def latest(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each run: the row of its last evaluation."""
    return runs.drop_duplicates("folder", keep="last")


def read_run(folder: Path) -> dict[str, Any]:
    """Reads a run's folder: the columns of the table, with lists as `step` and `score`.

    Raises ValueError, saying how, if there is no run in the folder or the run is damaged.
    """
    names = {entry.name for entry in os.scandir(folder)}
    if not names:
        raise ValueError("the folder is empty.")
    if "config.json" not in names:
        raise ValueError("it has no config.json: the run has not begun, or was broken off early.")
    config = read_json(folder / "config.json")
    try:
        method = sensitivity_variant(config) or method_name(config["agent"])
        seed, env_name = int(config["seed"]), full_env_name(config["env_name"])
        border = int(config["bc_steps"] + config["offline_steps"])
        end = int(border + config["online_steps"])
    except KeyError as error:
        raise ValueError(f"its config.json does not describe a run: {error} is missing.") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its config.json does not describe a run: {error}.") from None
    metadata = read_json(folder / "metadata.json") if "metadata.json" in names else {}
    if not env_name:
        raise ValueError("it was trained without an environment, so there are no evaluations.")
    steps, scores, unit = read_evaluations(folder)
    if steps and steps[-1] > end:
        raise ValueError(f"its eval.csv goes to step {steps[-1]}, beyond the run's end, {end}.")
    values = (folder, env_name, *task_label(env_name), method, seed, unit, border, end)
    return dict(zip(_COLUMNS, (*values, config, metadata, steps, scores), strict=True))


def configuration(config: dict[str, Any], apart: Sequence[str] = ()) -> dict[str, str]:
    """Settings that change a run's result, and settings `apart`, as JSON texts by name."""
    left_out = names_with_role("run", "online", "free") - set(apart)
    flat = {name: value for name, value in config.items() if name not in left_out}
    flat |= flat.pop("agent")
    flat.pop("agent_name", None)
    flat["env_name"] = full_env_name(flat["env_name"])
    if config.get("ogbench_dataset_dir"):
        flat["shards"] = True
    else:
        flat.pop("dataset_replace_interval", None)
    return {name: json.dumps(value) for name, value in flat.items()}


def identities(
    configs: Iterable[dict[str, Any]], apart: Sequence[str] = (), without: str = ""
) -> list[str]:
    """Configuration of each run as one text, equal for runs of one configuration.

    A setting counts if all runs have it: earlier versions had fewer. `without` never counts.
    """
    settings = [configuration(config, apart) for config in configs]
    common = sorted(set.intersection(*map(set, settings)) - {without})
    return [json.dumps({name: each[name] for name in common}) for each in settings]


def tell_apart(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Gives each configuration (`identity`) of a method on a task a label as its `method`.

    The configuration of most runs keeps the method's label. The label of another configuration has
    the two settings in which the configurations differ most. Several are named in a note.
    """
    kinds = dict(list(runs.groupby("identity", sort=False)))
    if len(kinds) == 1:
        return runs, []
    settings = {identity: json.loads(identity) for identity in kinds}
    reference = settings[_most_common(kinds, settings)]
    num_values = pd.DataFrame(settings.values()).nunique()
    method, env_name = runs[["method", "env_name"]].iloc[0]
    labels: dict[Any, str] = {}
    shown = []
    for identity, group in kinds.items():
        names = [name for name in reference if settings[identity][name] != reference[name]]
        names.sort(key=lambda name: (-num_values[name], name))
        changes = [
            f"{name}={setting_words(json.loads(settings[identity][name]))}" for name in names
        ]
        suffix = ", ".join([*changes[:2], *(["…"] if len(changes) > 2 else [])])
        label = f"{method} ({suffix})" if suffix else method
        if label in labels.values():
            label += f" #{sum(other.startswith(label) for other in labels.values()) + 1}"
        labels[identity] = label
        shown.append(f"{label} ({'; '.join([seeds_words(group['seed']), *changes])})")
    note = (
        f"{method} on {env_name}: runs of {len(kinds)} configurations, shown apart as "
        f"{', '.join(shown)}."
    )
    return runs.assign(method=runs["identity"].map(labels)), [note]


def _most_common(kinds: dict[Any, pd.DataFrame], settings: dict[Any, dict[str, str]]) -> str:
    """Configuration of most runs; if there are several, the one that the others differ least from,
    then the one with the fewest differences from the paper."""

    def preference(identity: str) -> tuple:
        items = set(settings[identity].items())
        changes = sum(len(items - set(other.items())) for other in settings.values())
        first = kinds[identity].iloc[0]
        differences = paper_differences(first["config"], first["metadata"])
        return -len(kinds[identity]), changes, len(differences), identity

    return min(kinds, key=preference)


def _without_duplicates(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps the run that has come furthest of each configuration and seed."""
    last = runs["step"].map(lambda steps: max(steps, default=0))
    notes = []
    kept = last.groupby([runs["identity"], runs["seed"]], sort=False).idxmax()
    for (identity, seed), furthest in kept.items():
        same = runs[(runs["identity"] == identity) & (runs["seed"] == seed)]
        if len(same) > 1:
            best = same.loc[furthest]
            others = ", ".join(map(str, same["folder"].drop(furthest)))
            notes.append(
                f"{best['method']} on {best['env_name']}: seed {seed} was run {len(same)} times; "
                f"of these {best['folder']} counts, not {others}."
            )
    return runs.loc[kept], notes
