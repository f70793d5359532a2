"""Collects runs from their folders into one table, and finds the runs that are missing.

The table of runs has a row for each run and evaluation, ordered by step. A run without any
evaluation has one row, with step 0 and score nan. The columns:

- `folder`, `seed`, `config` (config.json) and `metadata` (metadata.json) of the run;
- `env_name`, the full name of the task, and its `domain` and `task`, see `labels.task_label`;
- `method`, the published label of the method, with its variant;
- `border`, the step at which the offline stage ends (0 without one), and `end`, the last step;
- `step` and `score` of the evaluation; the score is a success rate in percent, or a mean return
  where `unit` is `return` instead of `%`.
"""

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qam_jax.files import read_json
from qam_jax.reports import labels as words
from qam_jax.reports.folders import find_runs, read_evaluations
from qam_jax.reports.paper_settings import paper_differences, sensitivity_variant
from qam_jax.reports.published import published_results, sort_key
from qam_jax.runs.settings import names_with_role

_COLUMNS = "folder env_name domain task method seed unit border end".split()
_COLUMNS += ["config", "metadata", "step", "score"]
_EXPECTED = ["method", "env_name", "seed", "folder"]


def collect(
    folders: Sequence[str | os.PathLike], apart: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Reads all runs in and below these folders.

    Runs of several configurations under one method's name get a suffix each; the settings `apart`
    tell configurations apart too. Of a seed that was run twice, the run that has come furthest
    counts.

    Returns the table of runs, ordered by task, method and seed, and notes for the reader: a line
    for each such case, and for each folder that cannot be read.
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
        for step in (_without_duplicates, tell_apart):
            group, lines = step(group)
            notes += lines
        parts.append(group[_COLUMNS])
    runs = pd.concat(parts).sort_values(["env_name", "method", "seed"], kind="stable")
    runs = runs.explode(["step", "score"], ignore_index=True)
    numbers = {"step": int, "score": float, "seed": int, "border": int, "end": int}
    return runs.fillna({"step": 0}).astype(numbers), notes


def latest(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each run: the row of its last evaluation."""
    return runs.drop_duplicates("folder", keep="last")


def expected_runs(study: Any) -> pd.DataFrame:
    """All runs of a `qam_jax.sweeps.studies.Study`, a row for each.

    The columns are `method` (its label), `env_name`, `seed`, and `folder` as `sweep.py` names it.
    """
    rows = []
    for env_name, method, variant, seed in itertools.product(
        study.env_names, study.methods, study.variants, study.seeds
    ):
        label = words.method_name({"agent_name": method})
        label = f"{label} ({variant.name})" if variant.name else label
        folder = "-".join(filter(None, [method, variant.name, f"seed{seed}"]))
        rows.append((label, words.full_env_name(env_name), seed, folder))
    return pd.DataFrame(rows, columns=_EXPECTED)


def published_runs(study: str) -> pd.DataFrame:
    """All runs of a published study, as `expected_runs`; the names of their folders are empty."""
    table = published_results(study)
    table = table.loc[table.index.repeat(table["num_seeds"])]
    seeds = table.groupby(["method", "env_name"]).cumcount()
    return table.assign(seed=seeds, folder="")[_EXPECTED]


def missing_runs(
    runs: pd.DataFrame, expected: pd.DataFrame | None = None, at: int | None = None
) -> pd.DataFrame:
    """Expected runs that are absent, and runs that have not come to step `at`, or else their end.

    An expected run is known by the name of its folder, or by its method, task and seed. A folder
    that is named like others but for the seed has their label. By default, each combination of the
    methods, tasks and seeds that a domain has runs of is expected. There is a row for each run:
    `method`, `env_name`, `seed`, and `state`, how far the run is.
    """
    last, found, labels, known = latest(runs), [], {}, set()
    if expected is None:
        rows: list[tuple] = []
        for _, group in last.groupby("domain"):
            rows += itertools.product(*(group[name].unique() for name in _EXPECTED[:3]), [""])
        expected = pd.DataFrame(rows, columns=_EXPECTED)
    for run in last.itertuples():
        goal, name = run.end if at is None else at, run.folder.name
        labels[run.env_name, name.removesuffix(f"-seed{run.seed}")] = run.method
        known |= {(run.env_name, name), (run.env_name, run.method, run.seed)}
        if run.step < goal:
            state = f"at {run.step:,} of {goal:,} steps"
            found.append((run.method, run.env_name, run.seed, state))
    for run in expected.itertuples():
        base = run.folder.removesuffix(f"-seed{run.seed}")
        method = labels.get((run.env_name, base), run.method)
        if not known & {(run.env_name, run.folder), (run.env_name, method, run.seed)}:
            found.append((method, run.env_name, run.seed, "no run"))
    table = pd.DataFrame(found, columns=["method", "env_name", "seed", "state"])
    return table.sort_values(["method", "env_name", "seed"], key=sort_key)


def describe_missing(missing: pd.DataFrame) -> list[str]:
    """Lines on missing runs, one for all seeds and tasks of a domain that are in one state."""
    tasks = missing.groupby(["method", "env_name", "state"], sort=False)["seed"].agg(
        words.seeds_words
    )
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for (method, env_name, state), seeds in tasks.items():
        domain, task = words.task_label(env_name)
        groups.setdefault((method, domain, seeds, state), []).append(task)
    return [
        f"{method} on {domain}{_task_words(domain, labels)}, {seeds}: {state}"
        for (method, domain, seeds, state), labels in groups.items()
    ]


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
        method = sensitivity_variant(config) or words.method_name(config["agent"])
        seed, env_name = int(config["seed"]), words.full_env_name(config["env_name"])
        border = int(config["bc_steps"] + config["offline_steps"])
        end = int(border + config["online_steps"])
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"its config.json does not describe a run: {what}.") from None
    metadata = read_json(folder / "metadata.json") if "metadata.json" in names else {}
    if not env_name:
        raise ValueError("it was trained without an environment, so there are no evaluations.")
    steps, scores, unit = read_evaluations(folder)
    if steps and steps[-1] > end:
        raise ValueError(f"its eval.csv goes to step {steps[-1]}, beyond the run's end, {end}.")
    values = (folder, env_name, *words.task_label(env_name), method, seed, unit, border, end)
    return dict(zip(_COLUMNS, (*values, config, metadata, steps, scores), strict=True))


def configuration(config: dict[str, Any], apart: Sequence[str] = ()) -> dict[str, str]:
    """Settings that change a run's result, and settings `apart`, as JSON texts by name."""
    left_out = names_with_role("run", "online", "free") - set(apart)
    flat = {name: value for name, value in config.items() if name not in left_out}
    flat |= flat.pop("agent")
    flat.pop("agent_name", None)
    flat["env_name"] = words.full_env_name(flat["env_name"])
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

    The configuration of most runs keeps the method's label: if there are several, the one that the
    others differ least from, then the one with the fewest differences from the paper. The label of
    another configuration has the two settings in which the configurations differ most. Several
    configurations are named in a note.
    """
    kinds = dict(list(runs.groupby("identity", sort=False)))
    if len(kinds) == 1:
        return runs, []
    settings = {identity: json.loads(identity) for identity in kinds}

    def preference(identity: str) -> tuple:
        items = set(settings[identity].items())
        changes = sum(len(items - set(other.items())) for other in settings.values())
        first = kinds[identity].iloc[0]
        differences = paper_differences(first["config"], first["metadata"])
        return -len(kinds[identity]), changes, len(differences), identity

    reference = settings[min(kinds, key=preference)]
    num_values = pd.DataFrame(settings.values()).nunique()
    names = sorted(reference, key=lambda name: (-num_values[name], name))
    method, env_name = runs[["method", "env_name"]].iloc[0]
    labels: dict[Any, str] = {}
    shown = []
    for identity, own in settings.items():
        changes = [
            f"{name}={words.setting_words(json.loads(own[name]))}"
            for name in names
            if own[name] != reference[name]
        ]
        suffix = ", ".join([*changes[:2], *["…"] * (len(changes) > 2)])
        label = f"{method} ({suffix})" if suffix else method
        if label in labels.values():
            label += f" #{sum(other.startswith(label) for other in labels.values()) + 1}"
        labels[identity] = label
        parts = [words.seeds_words(kinds[identity]["seed"]), *changes]
        shown.append(f"{label} ({'; '.join(parts)})")
    note = (
        f"{method} on {env_name}: runs of {len(kinds)} configurations, shown apart as "
        f"{', '.join(shown)}."
    )
    return runs.assign(method=runs["identity"].map(labels)), [note]


def _task_words(domain: str, labels: list[str]) -> str:
    """Tasks of a domain in short: ` task 2`, ` tasks 1–3`; empty where the domain is the task."""
    if len(labels) == 1:
        return f" {labels[0]}" if labels != [domain] else ""
    numbers = [label.removeprefix("task ") for label in labels]
    known = all(map(str.isdigit, numbers))
    return f" tasks {words.ranges(map(int, numbers)) if known else ', '.join(numbers)}"


def _without_duplicates(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps the run that has come furthest of each configuration and seed."""
    notes = []
    last = runs["step"].map(lambda steps: max(steps, default=0))
    groups = last.groupby([runs["identity"], runs["seed"]], sort=False)
    for (_, seed), same in groups:
        if len(same) > 1:
            best = runs.loc[same.idxmax()]
            others = ", ".join(map(str, runs["folder"][same.index.drop(best.name)]))
            notes.append(
                f"{best['method']} on {best['env_name']}: seed {seed} was run {len(same)} times; "
                f"of these {best['folder']} counts, not {others}."
            )
    return runs.loc[groups.idxmax()], notes
