"""Turns `.npz` files of transitions into memory-mapped columns, each file once.

The columns of `<folder>/<stem>.npz` lie in `<cache>/<stem>/`: one `.npy` file for each documented
field that the file has (see `qam_jax.data.npz`), checked, as float32. Rewards that are computed for
an OGBench task lie in a folder of the task's own below. Each of these folders appears only once it
is complete, and its `source.json` says which version of the `.npz` it was made from.
"""

import copy
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_jax.data.npz import FIELDS, load_npz, map_npy, read_arrays, read_headers
from qam_jax.data.parts import RELABEL_FIELDS
from qam_jax.files import ensure_writable_dir, hold_lock, write_json

CACHE_VARIABLE = "QAM_JAX_CACHE"

_VERSION = 1  # of the layout of the cache
_GOALS = (  # what OGBench computes rewards from, beside the data
    "_reward_task_id",
    "cur_goal_xy",
    "_goal_tol",
    "_num_cubes",
    "_num_buttons",
    "_target_button_states",
    "_target_drawer_pos",
    "_target_window_pos",
)
_logger = logging.getLogger(__name__)

Stamp = Mapping[str, Any]
"""What tells one version of a file from another."""


class Task(NamedTuple):
    """An OGBench single task, which gives rewards to data that have none.

    Attributes:
      env_id: the environment's.
      goal: what OGBench reads from an environment that was reset; it changes no more, so that
        another thread can use it.
    """

    env_id: str
    goal: types.SimpleNamespace


def freeze_task(env: gymnasium.Env) -> Task | None:
    """Resets the environment and keeps its goal; None if it is no OGBench single task."""
    if getattr(env.unwrapped, "_reward_task_id", None) is None:
        return None
    env.reset()  # sets the goal
    simulator = env.unwrapped
    goal = {name: getattr(simulator, name) for name in _GOALS if hasattr(simulator, name)}
    goal = types.SimpleNamespace(**copy.deepcopy(goal), reset=lambda: None)
    if hasattr(simulator, "_data"):
        goal._data = types.SimpleNamespace(mocap_pos=np.array(simulator._data.mocap_pos))
    goal.unwrapped = goal
    return Task(env.spec.id, goal)


def find_cache(folder: Path) -> Path:
    """Where the columns of a folder's files are kept: beside them, where it can be written to.

    Otherwise, or if the variable `QAM_JAX_CACHE` names a folder, they are kept in that folder or
    in the user's cache folder.

    Raises:
      OSError: if that cannot be written to either.
    """
    root = os.environ.get(CACHE_VARIABLE)
    if not root:
        try:
            return ensure_writable_dir(folder / ".columns")
        except OSError:
            root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "qam_jax"
            _logger.info("%s cannot be written to: its columns are kept in %s.", folder, root)
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return ensure_writable_dir(Path(root).expanduser() / "columns" / f"{folder.name}-{place}")


def read_stamp(path: Path) -> Stamp:
    """The version of a file that is there.

    Raises:
      FileNotFoundError: if it is not.
    """
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "version": _VERSION}


def open_columns(path: Path, cache: Path, stamp: Stamp, task: Task | None) -> dict[str, np.ndarray]:
    """Maps the columns of a file, which are made first if they are not there.

    Args:
      path: the `.npz` file. It is needed only where columns have to be made.
      cache: what `find_cache` returns.
      stamp: the version of the file.
      task: computes the rewards; None takes those of the file.

    Returns:
      The documented fields that the file has, and with a task `rewards` and `masks`: read-only,
      float32, in memory only as far as they are used.

    Raises:
      FileNotFoundError: if the file is needed and gone.
      ValueError: if it is damaged or breaks a rule of `qam_jax.data.npz`.
      OSError: if columns cannot be stored.
    """
    folder = cache / path.stem
    _provide(folder, path, stamp, lambda target: _write_columns(path, target))
    columns = _map(folder)
    if task is not None:
        labels = folder / task.env_id.replace("/", "_")
        stamp = {**stamp, "ogbench": importlib.metadata.version("ogbench")}
        _provide(labels, path, stamp, lambda target: _write_labels(path, task, target))
        columns |= _map(labels)
    return columns


def _provide(folder: Path, path: Path, stamp: Stamp, write: Callable[[Path], None]) -> None:
    """Has `write` fill a folder, unless the folder is there and of this version."""
    if _is_current(folder, stamp):
        return
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: this file of the dataset is gone, and it is needed now. Put it back; the "
            "same command then continues the run."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder.with_name(f".{folder.name}.lock"), f"converting {path}") as held:
            if _is_current(folder, stamp):
                return
            if held:  # then what is there was left by a process that died
                for leftover in folder.parent.glob(f".{folder.name}.part-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            _fill(folder, stamp, write)
    except OSError as error:
        if error.errno is None:  # not from the system, and so with a message of its own
            raise
        raise OSError(
            error.errno,
            f"cannot store the columns of {path} in {folder}: {error.strerror}. Free some space, "
            f"or set {CACHE_VARIABLE} to another folder; the same command then continues.",
        ) from error


def _fill(folder: Path, stamp: Stamp, write: Callable[[Path], None]) -> None:
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        write(part)
        write_json(part / "source.json", stamp)
        for each in part.iterdir():
            with open(each, "rb+") as file:
                os.fsync(file.fileno())
        part.chmod(folder.parent.stat().st_mode & 0o777)  # mkdtemp's only the owner can read
        if _is_current(folder, stamp):  # by another process, where there are no locks
            return
        if folder.exists():
            (folder / "source.json").unlink(missing_ok=True)  # no longer complete
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError:
        if not _is_current(folder, stamp):
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_current(folder: Path, stamp: Stamp) -> bool:
    try:
        return json.loads((folder / "source.json").read_text()) == stamp
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def _map(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: map_npy(path) for path in folder.glob("*.npy")}


def _write_columns(path: Path, target: Path) -> None:
    for name, column in load_npz(path, fields=FIELDS).items():
        np.save(target / name, column)


def _write_labels(path: Path, task: Task, target: Path) -> None:
    data = read_arrays(path, [name for name in RELABEL_FIELDS if name in read_headers(path)])
    relabel_dataset(task.env_id, task.goal, data)
    for name in ("rewards", "masks"):
        np.save(target / name, data[name])
