"""Missing runs of a study, and runs that have not come to their end."""

import itertools
from collections.abc import Iterable
from typing import Any

import pandas as pd

from qam_jax.reports.collect import latest
from qam_jax.reports.labels import full_env_name, method_name, ranges, seeds_words, task_label
from qam_jax.reports.published import published_results, sort_key

_COLUMNS = ["method", "env_name", "seed", "folder"]


def expected_runs(study: Any) -> pd.DataFrame:
    """All runs of a `qam_jax.sweeps.studies.Study`, a row for each.

    The columns are `method` (its label), `env_name`, `seed`, and `folder` as `sweep.py` names it.
    """
    rows = []
    for env_name, method, variant, seed in itertools.product(
        map(full_env_name, study.env_names), study.methods, study.variants, study.seeds
    ):
        label = method_name({"agent_name": method})
        label = f"{label} ({variant.name})" if variant.name else label
        folder = "-".join(filter(None, [method, variant.name, f"seed{seed}"]))
        rows.append((label, env_name, seed, folder))
    return pd.DataFrame(rows, columns=_COLUMNS)


def published_runs(study: str) -> pd.DataFrame:
    """All runs of a published study, as `expected_runs`; the names of their folders are empty."""
    table = published_results(study)
    table = table.loc[table.index.repeat(table["num_seeds"])]
    seeds = table.groupby(["method", "env_name"]).cumcount()
    return table.assign(seed=seeds, folder="")[_COLUMNS]


def missing_runs(
    runs: pd.DataFrame, expected: pd.DataFrame | None = None, at: int | None = None
) -> pd.DataFrame:
    """Expected runs that are absent, and runs that have not come to step `at`, or else their end.

    An expected run is known by the name of its folder, or by its method, task and seed. By default
    each combination of the methods, tasks and seeds that a domain has runs of is expected. There is
    a row for each run: `method`, `env_name`, `seed`, and `state`, how far the run is.
    """
    last = latest(runs)
    found = list(_absent_runs(last, _combinations(last) if expected is None else expected))
    for run in last.itertuples():
        goal = run.end if at is None else at
        if run.step < goal:
            state = f"at {run.step:,} of {goal:,} steps"
            found.append((run.method, run.env_name, run.seed, state))
    table = pd.DataFrame(found, columns=["method", "env_name", "seed", "state"])
    return table.sort_values(["method", "env_name", "seed"], key=sort_key)


def describe_missing(missing: pd.DataFrame) -> list[str]:
    """Lines on missing runs, one for all seeds and tasks of a domain that are in one state."""
    tasks = missing.groupby(["method", "env_name", "state"], sort=False)["seed"].agg(seeds_words)
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for (method, env_name, state), seeds in tasks.items():
        domain, task = task_label(env_name)
        groups.setdefault((method, domain, seeds, state), []).append(task)
    return [
        f"{method} on {domain}{_task_words(domain, labels)}, {seeds}: {state}"
        for (method, domain, seeds, state), labels in groups.items()
    ]


def _task_words(domain: str, labels: list[str]) -> str:
    """Tasks of a domain in short: ` task 2`, ` tasks 1–3`; empty where the domain is the task."""
    if len(labels) == 1:
        return f" {labels[0]}" if labels != [domain] else ""
    numbers = [label.removeprefix("task ") for label in labels]
    known = all(map(str.isdigit, numbers))
    return f" tasks {ranges(map(int, numbers)) if known else ', '.join(numbers)}"


def _absent_runs(last: pd.DataFrame, expected: pd.DataFrame) -> Iterable[tuple[str, str, int, str]]:
    """Expected runs that are not there, with the labels of other seeds in folders named alike."""
    labels, known = {}, set()
    for run in last.itertuples():
        name = run.folder.name
        labels[run.env_name, name.removesuffix(f"-seed{run.seed}")] = run.method
        known |= {(run.env_name, name), (run.env_name, run.method, run.seed)}
    for run in expected.itertuples():
        base = run.folder.removesuffix(f"-seed{run.seed}")
        method = labels.get((run.env_name, base), run.method)
        if not known & {(run.env_name, run.folder), (run.env_name, method, run.seed)}:
            yield method, run.env_name, run.seed, "no run"


def _combinations(last: pd.DataFrame) -> pd.DataFrame:
    """Each combination of the methods, tasks and seeds of a domain."""
    rows: list[tuple] = []
    for _, group in last.groupby("domain"):
        rows += itertools.product(*(group[name].unique() for name in _COLUMNS[:3]), [""])
    return pd.DataFrame(rows, columns=_COLUMNS)
