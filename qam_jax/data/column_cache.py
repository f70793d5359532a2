"""Converts `.npz` files of transitions into memory-mapped columns, each file once.

The columns of `<folder>/<stem>.npz` lie in `<cache>/<stem>/`: one float32 `.npy` file for each
documented field that the file has (see `qam_jax.data.checks`). Rewards that are computed for an
OGBench task lie in a subfolder of the task. `source.json` is written last into each folder, and
names the version of the `.npz` file that the columns were made from.
"""

import hashlib
import importlib.metadata
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_jax.data.checks import FIELDS, RELABEL_FIELDS, ArrayHeader
from qam_jax.data.npz import load_npz, read_arrays
from qam_jax.files import atomic_write, ensure_writable_dir, hold_lock, user_path, write_json

CACHE_VARIABLE = "QAM_JAX_CACHE"

_VERSION = 1  # of the layout of the cache
_logger = logging.getLogger(__name__)

FileVersion = Mapping[str, Any]
"""Size and time by which one version of a file is told from another."""


def find_cache(folder: Path) -> Path:
    """Folder for the columns of a folder's files: `.columns` in it, if it can be written to.

    Otherwise, or if the variable `QAM_JAX_CACHE` names a folder, the columns are kept in that
    folder or in the user's cache folder.

    Raises:
      OSError: if that cannot be written to either.
    """
    root: str | Path | None = os.environ.get(CACHE_VARIABLE)
    if not root:
        try:
            return ensure_writable_dir(folder / ".columns")
        except OSError:
            root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "qam_jax"
            _logger.info("%s cannot be written to: its columns are kept in %s.", folder, root)
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return ensure_writable_dir(user_path(root) / "columns" / f"{folder.name}-{place}")


def read_version(path: Path) -> FileVersion:
    """Version of a file that is there. Raises FileNotFoundError if it is not."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "version": _VERSION}


def open_columns(
    path: Path,
    headers: Mapping[str, ArrayHeader],
    cache: Path,
    version: FileVersion,
    task: gymnasium.Env | None,
) -> dict[str, np.ndarray]:
    """Maps the columns of a file, and makes them first if they are not there.

    Args:
      path: the `.npz` file. It is needed only where columns have to be made.
      headers: of all its arrays.
      cache: the folder that `find_cache` returns.
      version: the version of the file.
      task: the environment that gives the rewards, unwrapped; None takes those of the file.

    Returns:
      The documented fields that the file has, and with a task `rewards` and `masks`: read-only,
      float32, in memory only as far as they are used.

    Raises:
      FileNotFoundError: if the file is needed and gone.
      ValueError: if the file is damaged or breaks a rule of `qam_jax.data.checks`.
      OSError: if columns cannot be stored.
    """
    folder = cache / path.stem
    _ensure(folder, path, version, lambda: load_npz(path, fields=FIELDS, headers=headers))
    columns = {name: folder / f"{name}.npy" for name in FIELDS if name in headers}
    if task is not None:
        version = {**version, "ogbench": importlib.metadata.version("ogbench")}
        folder = folder / task.spec.id.replace("/", "_")
        _ensure(folder, path, version, lambda: _label(path, headers, task))
        columns |= {name: folder / f"{name}.npy" for name in ("rewards", "masks")}
    default = headers["terminals"]  # of the same shape as rewards and masks
    return {name: _map(file, headers.get(name, default).shape) for name, file in columns.items()}


def _label(
    path: Path, headers: Mapping[str, ArrayHeader], task: gymnasium.Env
) -> dict[str, np.ndarray]:
    data = read_arrays(path, {name: headers[name] for name in RELABEL_FIELDS if name in headers})
    relabel_dataset(task.spec.id, task, data)
    return {name: data[name] for name in ("rewards", "masks")}


def _ensure(
    folder: Path, path: Path, version: FileVersion, make: Callable[[], dict[str, np.ndarray]]
) -> None:
    """Stores what `make` returns, unless the folder holds the columns of this version."""
    if _is_current(folder, version):
        return
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: this file of the dataset is gone, and it is needed now. Put it back; the "
            "same command then continues the run."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder.with_name(f".{folder.name}.lock"), f"converting {path}") as held:
            if not _is_current(folder, version):
                _store(folder, version, make(), alone=held)
    except OSError as error:
        if error.errno is None:  # not from the system, and so with a message of its own
            raise
        raise OSError(
            error.errno,
            f"cannot store the columns of {path} in {folder}: {error.strerror}. Free some "
            f"space, or set {CACHE_VARIABLE} to another folder; the same command then "
            "continues.",
        ) from error


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Maps the float32 values at the end of an `.npy` file, whose header is not parsed."""
    start = path.stat().st_size - 4 * math.prod(shape)
    return np.memmap(path, np.float32, "r", start, shape)


def _store(
    folder: Path, version: FileVersion, columns: dict[str, np.ndarray], *, alone: bool
) -> None:
    """Replaces the columns in a folder.

    Every file is replaced atomically: another process may do the same where there are no locks.
    """
    (folder / "source.json").unlink(missing_ok=True)  # no longer complete
    if alone:
        for each in folder.glob("*.npy"):  # also what a process that died has left
            each.unlink()
    for name, column in columns.items():
        with atomic_write(folder / f"{name}.npy") as temporary:
            np.save(temporary, column)
    write_json(folder / "source.json", version)


def _is_current(folder: Path, version: FileVersion) -> bool:
    try:
        return json.loads((folder / "source.json").read_text()) == version
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
