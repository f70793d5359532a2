"""Keeps the columns of `.npz` files as raw float32 files that can be mapped, each made once.

`<cache>/<stem>/<content>.float32` holds the documented fields of `<folder>/<stem>.npz` one after
the other (see `qam_jax.data.checks`). `<content>-<task>.float32` holds rewards and masks that are
computed for an OGBench task. `<content>` is a hash of the checksums in the `.npz` file.
"""

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_jax.data.checks import FIELDS, RELABEL_FIELDS, ArrayHeader
from qam_jax.data.npz import load_npz, read_arrays
from qam_jax.files import atomic_write, ensure_writable_dir, hold_lock, user_path

CACHE_VARIABLE = "QAM_JAX_CACHE"

_logger = logging.getLogger(__name__)


def find_cache(folder: Path) -> Path:
    """Folder for the columns of a folder's files: `.columns` in it, if it can be written to.

    Otherwise, or if the variable `QAM_JAX_CACHE` names a folder, the columns are kept in that
    folder or in the user's cache folder. Raises OSError if that cannot be written to either.
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


def list_content(headers: Mapping[str, ArrayHeader]) -> list[list[Any]]:
    """Name, shape and checksum of each array by which files are told apart."""
    names = [name for name in (*FIELDS, *RELABEL_FIELDS) if name in headers]
    return [[name, headers[name].shape, headers[name].checksum] for name in names]


def map_columns(
    path: Path, headers: Mapping[str, ArrayHeader], cache: Path, task: gymnasium.Env | None
) -> dict[str, np.ndarray]:
    """Maps the columns of a file, and makes them first if they are not there.

    Args:
      path: the `.npz` file. It is needed only where columns have to be made.
      headers: of all its arrays.
      cache: the folder that `find_cache` returns.
      task: the environment that gives the rewards, unwrapped; None takes those of the file.

    Returns the documented fields that the file has, and with a task `rewards` and `masks`:
    read-only, float32, in memory only as far as they are used.

    Raises OSError if columns cannot be stored. Where the file is needed, raises FileNotFoundError
    if it is gone, and ValueError if it has other content than `headers` say, is damaged, or breaks
    a rule of `qam_jax.data.checks`.
    """
    content = hashlib.sha256(json.dumps(list_content(headers)).encode()).hexdigest()[:16]
    shapes = {name: headers[name].shape for name in FIELDS if name in headers}
    target = cache / path.stem / f"{content}.float32"
    columns = _map(target, shapes, path, lambda: load_npz(path, fields=FIELDS, headers=headers))
    if task is not None:
        name = f"{task.spec.id.replace('/', '_')}-{importlib.metadata.version('ogbench')}"
        target = target.with_name(f"{content}-{name}.float32")
        shapes = dict.fromkeys(("rewards", "masks"), headers["terminals"].shape)
        columns |= _map(target, shapes, path, lambda: _label(path, headers, task))
    return columns


def _label(
    path: Path, headers: Mapping[str, ArrayHeader], task: gymnasium.Env
) -> dict[str, np.ndarray]:
    data = read_arrays(path, {name: headers[name] for name in RELABEL_FIELDS if name in headers})
    relabel_dataset(task.spec.id, task, data)
    return data


def _map(
    target: Path,
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Maps columns of these shapes, and stores them first by `make` if they are not there."""
    folder, content = target.parent, target.stem.partition("-")[0]
    lock = folder.with_name(f".{folder.name}.lock")
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    try:
        with hold_lock(lock, f"converting {path}") as alone:
            if not target.exists() or target.stat().st_size != 4 * ends[-1]:  # or damaged
                if not path.exists():
                    raise FileNotFoundError(
                        f"{path}: this file of the dataset is gone, and it is needed now. Put it "
                        "back; the same command then continues the run."
                    )
                columns = make()
                if alone and not list(folder.glob(f"{content}*")):  # but those of old content
                    shutil.rmtree(folder, ignore_errors=True)
                with atomic_write(target) as temporary, open(temporary, "wb") as file:
                    for name in shapes:
                        file.write(np.ascontiguousarray(columns[name], np.float32).data)
            mapped = np.memmap(target, np.float32, "r")  # stays, also if the file is removed
    except OSError as error:
        if error.errno is None:  # not from the system, and so with a message of its own
            raise
        raise OSError(
            error.errno,
            f"cannot store the columns of {path} in {folder}: {error.strerror}. Free some "
            f"space, or set {CACHE_VARIABLE} to another folder; the same command then "
            "continues.",
        ) from error
    pairs = zip(shapes.items(), np.split(mapped, ends[:-1]), strict=True)
    return {name: part.reshape(shape) for (name, shape), part in pairs}
