"""Reads and writes `.npz` files of transitions; `qam_jax.data.checks` describes the fields."""

import contextlib
import io
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from qam_jax import memory
from qam_jax.data import checks
from qam_jax.data.checks import ArrayHeader
from qam_jax.files import atomic_write, user_path

_READ_BYTES = 1 << 20  # at a time
_REMEDY = (
    "Split the data into a folder of smaller files, of which --ogbench_dataset_dir holds one at a "
    "time, or use another machine."
)
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


def load_npz(
    path: str | os.PathLike,
    *,
    fields: Collection[str] | None = None,
    require: Collection[str] = (),
    headers: Mapping[str, ArrayHeader] | None = None,
    any_actions: bool = False,
) -> dict[str, np.ndarray]:
    """Reads and checks a file of transitions.

    Args:
      fields: which fields to read beside the required ones, where the file has them; all by
        default.
      require: fields that must be there beyond `observations`, `actions` and `terminals`.
      headers: the result of `read_headers`, if it is known.
      any_actions: whether actions need not lie in [-1, 1].

    Returns the arrays by name. Documented fields are float32, others have the type of the file.
    Raises FileNotFoundError if there is no such file, ValueError, which names the first fault, if
    it is damaged, not an `.npz`, or breaks a rule.
    """
    path = user_path(path)
    headers = headers or read_headers(path)
    always = (*checks.REQUIRED_FIELDS, *require)
    wanted = [name for name in headers if fields is None or name in fields or name in always]
    checks.check_headers(headers, always, source=path, read=wanted)
    data = read_arrays(path, {name: headers[name] for name in wanted})
    checks.check_transitions(data, source=path, any_actions=any_actions)
    return data


def write_npz(path: str | os.PathLike, data: Mapping[str, np.ndarray]) -> None:
    """Checks transitions by name and writes them, compressed, as a whole or not at all.

    Raises OSError if the file cannot be written, ValueError, naming the first fault, if the data
    break a rule.
    """
    checks.check_transitions(data, source=Path(path))
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **data)  # type: ignore[arg-type]  # none is allow_pickle


def read_arrays(path: Path, headers: Mapping[str, ArrayHeader]) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` file, documented fields as float32; checks no values.

    Own code, because NumPy's parser of headers uses `ast`, which fails when two threads use it at
    once (up to Python 3.12: "AST constructor recursion depth mismatch"). Raises MemoryError if they
    do not fit into memory, ValueError if the file is damaged or has changed since its headers were
    read.
    """
    data = {}
    sizes = [
        math.prod(header.shape) * (4 if name in checks.FIELDS else header.dtype.itemsize)
        for name, header in headers.items()
    ]
    memory.check_fits(f"the arrays of {path}", sum(sizes), _REMEDY, on_device=False)
    with _open(path) as archive:
        checksums = {member.filename: member.CRC for member in archive.infolist()}
        changed = any(checksums.get(f"{n}.npy") != header.checksum for n, header in headers.items())
        for name, header in headers.items() if not changed else ():
            values = io.BytesIO()
            with archive.open(f"{name}.npy") as file:
                shutil.copyfileobj(file, values, _READ_BYTES)
            flat = np.frombuffer(values.getbuffer(), header.dtype, offset=header.start)
            array = flat.reshape(header.shape, order="F" if header.is_fortran else "C")
            data[name] = as_float32(array) if name in checks.FIELDS else array
    if changed:
        raise ValueError(
            f"{path} has changed since this run began. Put the earlier file back; the same command "
            "then continues the run. Or start a new run with the new file."
        )
    return data


def read_headers(path: Path, *, verify: bool = False) -> dict[str, ArrayHeader]:
    """Reads what is known of every array in an `.npz` file without its values.

    With `verify` the values are read too, piece by piece, and their checksums compared. Raises
    FileNotFoundError if there is no such file, ValueError if it is damaged or not an `.npz`.
    """
    headers = {}
    with _open(path) as archive:
        damaged = archive.testzip() if verify else None
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    version = 1 if np.lib.format.read_magic(file) == (1, 0) else 2
                    read = getattr(np.lib.format, f"read_array_header_{version}_0")
                    shape, is_fortran, dtype = read(file)
                    header = ArrayHeader(shape, dtype, is_fortran, file.tell(), member.CRC)
                headers[member.filename.removesuffix(".npy")] = header
    return headers


def find_files(folder: Path) -> list[Path]:
    """The `.npz` files of a folder in the order of their names, without validation files.

    Raises FileNotFoundError if there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Check the path.")
    paths = sorted(folder.glob("*.npz"))
    paths = [path for path in paths if path.name[0] != "." and not path.name.endswith("-val.npz")]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: there is no .npz file in this folder (those that end in -val.npz are left "
            "out). Name the folder that holds the training files."
        )
    return paths


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array as float32 in C order; arrays that do not hold real numbers stay as they are."""
    if array.dtype.kind not in "fiub":
        return array  # for the check to name
    with np.errstate(over="ignore"):  # the check names the infinity
        return np.asarray(array, np.float32, order="C")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise OSError("it is no regular file")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.") from error
    except _UNREADABLE as error:
        raise ValueError(
            f"{path}: this is not an .npz file, or it is damaged or incomplete ({error}). Expected "
            "an archive written by np.savez or np.savez_compressed: download or write it again."
        ) from error
