"""Reads `.npz` files of transitions, without pickle; see `qam_jax.data.checks` for the fields."""

import contextlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from qam_jax.data.checks import (
    FIELDS,
    REQUIRED_FIELDS,
    ArrayHeader,
    check_headers,
    check_transitions,
)

_READ_BYTES = 1 << 20  # at a time
_PLAIN_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[^']+)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]*)\), \}\s*"
)
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


def load_npz(
    path: str | os.PathLike,
    *,
    fields: Collection[str] | None = None,
    require: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Reads and checks a file of transitions.

    Args:
      path: the `.npz` file.
      fields: which fields to read, where the file has them; all by default. The required ones
        are always read.
      require: fields that must be there beyond `observations`, `actions` and `terminals`.

    Returns:
      The arrays by name. Documented fields are float32, others have the type of the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, not an `.npz`, or breaks the rules of `check_transitions`. The
        message starts with the path and names the first fault.
    """
    path = Path(path).expanduser()
    headers = read_headers(path)
    always = (*REQUIRED_FIELDS, *require)
    wanted = [name for name in headers if fields is None or name in fields or name in always]
    check_headers(headers, always, source=str(path), read=wanted)
    data = read_arrays(path, wanted)
    check_transitions(data, source=str(path))
    return data


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` file, documented fields as float32; checks no values.

    Raises:
      ValueError: if the file is damaged.
    """
    data = {}
    with _open(path) as archive:
        for name in names:
            with archive.open(f"{name}.npy") as file:
                array = _read_array(file)  # type: ignore[arg-type]  # it is a ZipExtFile
            data[name] = as_float32(array) if name in FIELDS else array
    return data


def read_checksums(path: Path) -> dict[str, int]:
    """Checksum that an `.npz` file holds of each array: equal for equal arrays.

    Raises:
      ValueError: if the file is damaged.
    """
    with _open(path) as archive:
        return {info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()}


def read_headers(path: str | os.PathLike, *, verify: bool = False) -> dict[str, ArrayHeader]:
    """Reads the shape and type of every array in an `.npz` file, but keeps no values.

    Args:
      path: the `.npz` file.
      verify: whether to read the values as well, piece by piece, and compare their checksums.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged or not an `.npz`.
    """
    headers = {}
    with _open(Path(path).expanduser()) as archive:
        damaged = archive.testzip() if verify else None
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    headers[member.removesuffix(".npy")], _ = _read_header(file)
    return headers


def map_npy(path: Path) -> np.ndarray:
    """Maps an array that `np.save` wrote: read-only, in memory only as far as it is used."""
    with open(path, "rb") as file:
        (shape, dtype), is_fortran = _read_header(file)
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")


def find_files(folder: Path) -> list[Path]:
    """The `.npz` files of a folder in the order of their names, without validation files.

    Raises:
      FileNotFoundError: if there is no such folder, or no such file in it.
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


@contextlib.contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.") from error
    except _UNREADABLE as error:
        raise ValueError(
            f"{path}: this is not an .npz file, or it is damaged or incomplete ({error}). Expected "
            "an archive written by np.savez or np.savez_compressed: download or write it again."
        ) from error


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array as float32 in C order; arrays that do not hold real numbers stay as they are."""
    if array.dtype.kind not in "fiub":
        return array  # for the check to name
    with np.errstate(over="ignore"):  # the check names the infinity
        return np.asarray(array, np.float32, order="C")


def _read_array(file: zipfile.ZipExtFile) -> np.ndarray:
    (shape, dtype), is_fortran = _read_header(file)
    array = np.empty(shape[::-1] if is_fortran else shape, dtype)
    missing = array.reshape(-1).view(np.uint8).data
    while missing:
        count = file.readinto(missing[:_READ_BYTES])
        if count == 0:
            raise EOFError("an array ends too early")
        missing = missing[count:]
    file.read(1)  # the end: there the checksum is compared
    return array.T if is_fortran else array


def _read_header(file: IO[bytes] | zipfile.ZipExtFile) -> tuple[ArrayHeader, bool]:
    """Reads the head of an array's file, and whether the array lies in Fortran order.

    Own code, because NumPy's reader uses `ast`, which fails when two threads use it at once (up to
    Python 3.12: "AST constructor recursion depth mismatch"). NumPy's reads the unusual heads.
    """
    version = np.lib.format.read_magic(file)
    start = file.read(2 if version == (1, 0) else 4)
    text = file.read(int.from_bytes(start, "little"))
    plain = _PLAIN_HEADER.fullmatch(text)
    if plain:
        shape = tuple(int(length) for length in plain["shape"].split(b",") if length.strip())
        try:
            dtype = np.dtype(plain["dtype"].decode())
        except TypeError as error:
            raise ValueError(f"no type of NumPy's: {plain['dtype']!r}") from error
        return ArrayHeader(shape, dtype), plain["fortran"] == b"True"
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(io.BytesIO(start + text))
    return ArrayHeader(shape, dtype), is_fortran
