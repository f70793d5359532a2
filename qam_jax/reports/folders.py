"""Folders of runs: where they are, and the evaluations in them."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from qam_jax.files import user_path
from qam_jax.runs.metrics import read_csv

# Files that a run's folder holds from its first moments on, and folders that never hold a run.
_MARKS = frozenset({"config.json", "metadata.json", "train.csv", "eval.csv", "lock"})
_INNER = frozenset({"checkpoints", "videos"})


def find_runs(folders: Sequence[str | os.PathLike]) -> tuple[list[Path], list[str]]:
    """Folders of runs in and below these folders, each once, and a note on each without runs."""
    found: dict[Path, Path] = {}
    notes = []
    for folder in map(user_path, folders):
        paths = list(find_run_folders(folder))
        for path in paths:
            found.setdefault(path.resolve(), path)
        if not folder.exists():
            notes.append(f"{folder}: there is no such folder.")
        elif not folder.is_dir():
            notes.append(f"{folder}: a file, not a folder of runs.")
        elif not paths:
            notes.append(f"{folder}: no runs yet.")
    return list(found.values()), notes


def find_run_folders(folder: Path) -> Iterable[Path]:
    """Folders of runs in and below a folder, in order, with the empty folders at its ends."""
    for path, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if name not in _INNER and name[0] != ".")
        if _MARKS & set(files) or (not inner and not files and Path(path) != folder):
            inner.clear()
            yield Path(path)


def read_evaluations(folder: Path) -> tuple[list[int], list[float], str]:
    """Steps and scores of a run's evaluations, and their unit: `%` (success rate) or `return`.

    Raises ValueError, saying how, if eval.csv is damaged.
    """
    path = folder / "eval.csv"
    try:
        by_step = {int(row["step"]): (row["success"], row["return"]) for row in read_csv(path)}
    except (ValueError, KeyError) as error:
        raise ValueError(f"its {path.name} is damaged ({error}).") from None
    steps = sorted(by_step)
    if steps and all(math.isnan(success) for success, _ in by_step.values()):
        return steps, [by_step[step][1] for step in steps], "return"
    return steps, [100 * by_step[step][0] for step in steps], "%"
