"""Runs, read from their folders; what cannot be read is said in one line and left out."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qam_jax.files import read_json
from qam_jax.reports.labels import Task, full_env_name, method_name, parse_task
from qam_jax.reports.paper_settings import departures, sensitivity_variant, setting_words
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.settings import names_with_role

# What a run's folder holds from its first moments on, and what is never one.
_MARKS = frozenset({"config.json", "metadata.json", "train.csv", "eval.csv", "lock"})
_INNER = frozenset({"checkpoints", "videos"})


class Run(NamedTuple):
    """One run, as far as it has come.

    Attributes:
      folder: its folder.
      env_name: the task's full name.
      method: the method's published name, with its variant, if it is one.
      config: config.json.
      metadata: metadata.json; empty if there is none.
      steps: [E] int, of its evaluations.
      scores: [E], success rate in percent, or mean return where `unit` says so.
      unit: `%` or `return`.
    """

    folder: Path
    env_name: str
    method: str
    config: dict[str, Any]
    metadata: dict[str, Any]
    steps: np.ndarray
    scores: np.ndarray
    unit: str

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config["seed"]

    @property
    def task(self) -> Task:
        """The task that it was trained on."""
        return parse_task(self.env_name)

    @property
    def border(self) -> int:
        """The step at which its offline stage ends; 0 without one."""
        return self.config["bc_steps"] + self.config["offline_steps"]

    @property
    def end(self) -> int:
        """The step at which it ends."""
        return self.border + self.config["online_steps"]

    @property
    def last(self) -> int:
        """The step of its last evaluation; 0 before the first."""
        return int(self.steps[-1]) if len(self.steps) else 0

    def score_at(self, step: int) -> float:
        """The score of the evaluation at a step; nan if there is none."""
        found = np.flatnonzero(self.steps == step)
        return float(self.scores[found[0]]) if found.size else math.nan


class Collection(NamedTuple):
    """What was found in some folders.

    Attributes:
      runs: in order of task, method and seed; at most one of each.
      notes: what a reader has to know, a line each.
    """

    runs: list[Run]
    notes: list[str]


def collect(folders: Sequence[str | os.PathLike], apart: Sequence[str] = ()) -> Collection:
    """Reads all runs in and below these folders.

    Runs of several configurations under one method's name are told apart by a suffix, and a seed
    that was run twice counts once. Each such case, and each folder that could not be read, is a
    line of `notes`.

    Args:
      folders: of runs, or above them.
      apart: settings that tell runs apart, although they would not by themselves.
    """
    runs, notes = [], []
    for folder in folders:
        folder = Path(folder).expanduser()
        found = list(find_run_folders(folder))
        if not found:
            notes.append(f"{folder}: {why_empty(folder)}.")
        for path in found:
            try:
                runs.append(read_run(path))
            except ValueError as error:
                notes.append(f"{path}: left out, {error}")
    runs, lines = _sorted_out(runs, apart)
    return Collection(sorted(runs, key=_order), [*notes, *lines])


def find_run_folders(folder: Path) -> Iterable[Path]:
    """The folders of runs in and below a folder, in order; empty ones at its ends included."""
    for path, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if name not in _INNER and name[0] != ".")
        if _MARKS & set(files) or (not inner and not files and Path(path) != folder):
            inner.clear()
            yield Path(path)


def why_empty(folder: Path) -> str:
    """Why there are no runs in a folder, in words."""
    if not folder.exists():
        return "there is no such folder"
    return "no runs yet" if folder.is_dir() else "a file, not a folder of runs"


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
      ValueError: if there is no run in it, or it is damaged; says what.
    """
    names = {entry.name for entry in os.scandir(folder)}
    if not names:
        raise ValueError("the folder is empty.")
    if "config.json" not in names:
        raise ValueError("it has no config.json: the run has not begun, or was broken off early.")
    config = read_json(folder / "config.json")
    try:
        method = sensitivity_variant(config) or method_name(config["agent"])
        env_name, _ = config["env_name"], config["seed"]
        border = config["bc_steps"] + config["offline_steps"] + config["online_steps"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its config.json is not that of a run: {error} is missing.") from None
    metadata = read_json(folder / "metadata.json") if "metadata.json" in names else {}
    if not env_name:
        raise ValueError("it was trained without an environment, so there are no evaluations.")
    steps, scores, unit = _read_evaluations(folder / "eval.csv")
    if len(steps) and steps[-1] > border:
        raise ValueError(f"its eval.csv goes to step {steps[-1]}, beyond the run's end, {border}.")
    return Run(folder, full_env_name(env_name), method, config, metadata, steps, scores, unit)


def configuration(config: dict[str, Any], apart: Sequence[str] = ()) -> dict[str, str]:
    """What makes two runs of a method on a task the same but for the seed, by setting.

    Args:
      config: of a run.
      apart: settings that count, although they would not by themselves.
    """
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


def _order(run: Run) -> tuple:
    return run.env_name, run.method, run.seed


def _read_evaluations(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    try:
        rows = read_csv(path)
        by_step = {int(row["step"]): row for row in rows}
        success = np.array([row["success"] for row in by_step.values()])
        returns = np.array([row["return"] for row in by_step.values()])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"its {path.name} is damaged ({error}).") from None
    steps = np.array(list(by_step), int)
    order = np.argsort(steps)
    if np.isnan(success).all() and len(success):
        return steps[order], returns[order], "return"
    return steps[order], 100 * success[order], "%"


def _sorted_out(runs: Iterable[Run], apart: Sequence[str]) -> tuple[list[Run], list[str]]:
    """One run for each seed and configuration, and a label for each configuration."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():
        groups.setdefault((run.env_name, run.method), []).append(run)
    found, notes = [], []
    for members in groups.values():
        kinds: dict[tuple, list[Run]] = {}
        for run, identity in zip(members, identities(members, apart), strict=True):
            kinds.setdefault(identity, []).append(run)
        for identity, same in kinds.items():
            kinds[identity], lines = _without_duplicates(same)
            notes += lines
        named, lines = tell_apart(kinds)
        found += named
        notes += lines
    return found, notes


def identities(runs: Sequence[Run], apart: Sequence[str] = ()) -> list[tuple]:
    """Each run's configuration, of the settings that all know: earlier code may have had fewer."""
    settings = [configuration(run.config, apart) for run in runs]
    common = sorted(set.intersection(*map(set, settings)))
    return [tuple((name, each[name]) for name in common) for each in settings]


def _without_duplicates(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keeps the run that has come furthest where a seed was run twice with one configuration."""
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    kept, notes = [], []
    for seed, same in by_seed.items():
        best = max(same, key=lambda run: run.last)
        kept.append(best)
        if len(same) > 1:
            others = ", ".join(str(run.folder) for run in same if run is not best)
            notes.append(
                f"{best.method} on {best.env_name}: seed {seed} was run {len(same)} times; of "
                f"these {best.folder} counts, not {others}."
            )
    return kept, notes


def tell_apart(kinds: dict[tuple, list[Run]]) -> tuple[list[Run], list[str]]:
    """Gives runs of several configurations under one name a name of their own each."""
    if len(kinds) == 1:
        return next(iter(kinds.values())), []
    first = next(iter(kinds.values()))[0]
    labels = _variants(first.method, [dict(identity) for identity in kinds], _reference(kinds))
    named, shown = [], []
    for (label, changes), same in zip(labels, kinds.values(), strict=True):
        named += [run._replace(method=label) for run in same]
        seeds = f"seed{'s' * (len(same) > 1)} {ranges(run.seed for run in same)}"
        shown.append(f"{label} ({'; '.join([seeds, *changes])})")
    note = (
        f"{first.method} on {first.env_name}: runs of {len(kinds)} configurations, shown apart as "
        f"{', '.join(shown)}."
    )
    return named, [note]


def _reference(kinds: dict[tuple, list[Run]]) -> dict[str, str]:
    """The configuration of most runs.

    Of equals the one that the others differ least from, as where each has one setting changed; and
    of equals again the one that departs least from the paper's.
    """

    def preference(identity: tuple) -> tuple:
        runs = kinds[identity]
        changes = sum(len(set(identity) - set(other)) for other in kinds)
        departing = len(departures(runs[0].config, runs[0].metadata))
        return -len(runs), changes, departing, identity

    return dict(min(kinds, key=preference))


def _variants(
    method: str, kinds: list[dict[str, str]], reference: dict[str, str]
) -> list[tuple[str, list[str]]]:
    """For each configuration a label of its own, and all that it changes of the reference.

    A label holds the two settings in which the configurations differ most.
    """

    def rank(name: str) -> tuple[int, str]:
        return -len({kind.get(name) for kind in kinds}), name

    found, taken = [], set()
    for kind in kinds:
        names = [n for n in kind.keys() | reference.keys() if kind.get(n) != reference.get(n)]
        names = sorted(names, key=rank)
        changes = [f"{name}={setting_words(json.loads(kind.get(name, 'null')))}" for name in names]
        shown = ", ".join([*changes[:2], *(["…"] if len(changes) > 2 else [])])
        label = f"{method} ({shown})" if shown else method
        if label in taken:
            label = f"{label} #{sum(other.startswith(label) for other in taken) + 1}"
        taken.add(label)
        found.append((label, changes))
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short: `0–3, 5`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in parts)
