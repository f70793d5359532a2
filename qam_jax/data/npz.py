"""Reads `.npz` files of transitions, without pickle, and says what is wrong with them.

The documented fields, for `N` rows, observation dimension `O` and action dimension `A`; rows are
in time order and episodes follow one another:

| field               | shape    | needed | content                                              |
|---------------------|----------|--------|------------------------------------------------------|
| `observations`      | `[N, O]` | yes    | state vectors, any unit                              |
| `actions`           | `[N, A]` | yes    | in [-1, 1]                                           |
| `terminals`         | `[N]`    | yes    | 1 at the last row of each episode, otherwise 0       |
| `rewards`           | `[N]`    | yes*   | reward of the row's action; *OGBench's own files     |
|                     |          |        | have `qpos` instead                                  |
| `masks`             | `[N]`    | no     | 0 where the task is completed, so that no value is   |
|                     |          |        | bootstrapped beyond this row; otherwise 1 (default)  |
| `next_observations` | `[N, O]` | no     | what the row's action led to                         |

Without `next_observations` the file has OGBench's layout (arXiv 2410.20092): the next observation
is that of the next row, and the last row of each episode only provides the final observation; its
action leads nowhere and is never trained on. With it every row is a transition.

All other fields, such as OGBench's `qpos`, `qvel` and `button_states`, are returned as stored.
"""

import io
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

REQUIRED_FIELDS = ("observations", "actions", "terminals")

_AXES = {
    "observations": ("N", "O"),
    "actions": ("N", "A"),
    "terminals": ("N",),
    "rewards": ("N",),
    "masks": ("N",),
    "next_observations": ("N", "O"),
}
FIELDS = tuple(_AXES)

_ACTION_TOLERANCE = 1e-4  # clipping to [-1, 1] in another precision may end slightly outside
_ORDER_TOLERANCE = 1e-5  # relative and absolute
_BLOCK_ROWS = 4096  # rows compared at once, so that temporaries stay small
_READ_BYTES = 1 << 20  # at a time
_PLAIN_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[^']+)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]*)\), \}\s*"
)
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class ArrayHeader(NamedTuple):
    """What a file says of one array, known without reading its values."""

    shape: tuple[int, ...]
    dtype: np.dtype


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
      require: fields that have to be there beyond `observations`, `actions` and `terminals`.

    Returns:
      The arrays by name. Documented fields are float32, others have the type of the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, not an `.npz`, or breaks the rules of `check_transitions`. The
        message starts with the path and names the first thing wrong.
    """
    path = Path(path).expanduser()
    headers = read_headers(path)
    always = (*REQUIRED_FIELDS, *require)
    check_headers(headers, always, source=str(path))
    wanted = [name for name in headers if fields is None or name in fields or name in always]
    _raise_first(_object_problems({name: headers[name] for name in wanted}), str(path))
    data = read_arrays(path, wanted)
    check_transitions(data, source=str(path))
    return data


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Reads arrays that an `.npz` file has, documented fields as float32; checks no values.

    Raises:
      ValueError: if the file is damaged.
    """
    data = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                with archive.open(f"{name}.npy") as file:
                    array = _read_array(file)
                data[name] = _as_float32(array) if name in FIELDS else array
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return data


def read_checksums(path: Path) -> dict[str, int]:
    """The checksum that an `.npz` file holds of each array: equal for equal arrays.

    Raises:
      ValueError: if the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()}
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def read_headers(path: str | os.PathLike, *, verify: bool = False) -> dict[str, ArrayHeader]:
    """Reads the shape and type of every array in an `.npz` file, but keeps no values.

    Args:
      path: the `.npz` file.
      verify: whether to read the values as well, piece by piece, and compare their checksums.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged or not an `.npz`.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.")
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if verify else None
            if damaged is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as file:
                        headers[member.removesuffix(".npy")], _ = _read_header(file)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return headers


def map_npy(path: Path) -> np.ndarray:
    """Maps an array that `np.save` wrote: read-only, in memory only as far as it is used."""
    with open(path, "rb") as file:
        (shape, dtype), is_fortran = _read_header(file)
        order = "F" if is_fortran else "C"
        return np.memmap(file, dtype, "r", file.tell(), shape, order)


def check_headers(
    headers: Mapping[str, ArrayHeader], needed: Collection[str], *, source: str
) -> None:
    """Raises ValueError, naming it, if a `needed` array is missing or cannot be read."""
    _raise_first(_missing_problems(headers, needed), source)
    _raise_first(_object_problems({name: headers[name] for name in needed}), source)


def check_transitions(data: Mapping[str, np.ndarray], *, source: str) -> None:
    """Checks the documented fields of a dataset (see the table at the top of this module).

    Args:
      data: arrays by name; other fields than the documented ones are not looked at.
      source: where the data came from, to begin the message with.

    Raises:
      ValueError: naming the first thing that is wrong, where it is, and how to mend it.
    """
    _raise_first(_find_problems(data), source)


def _raise_first(problems: Iterator[str], source: str) -> None:
    problem = next(problems, None)
    if problem is not None:
        raise ValueError(f"{source}: {problem}")


def _find_problems(data: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yields what is wrong. Only the first is valid: each check relies on those before it."""
    yield from _missing_problems(data, REQUIRED_FIELDS)
    data = {name: data[name] for name in FIELDS if name in data}
    yield from _object_problems(data)
    yield from _shape_problems(data)
    yield from _number_problems(data)
    yield from _action_problems(data["actions"])
    yield from _binary_problems("terminals", data["terminals"], "1 at the last row of each episode")
    yield from _episode_problems(data)
    if "masks" in data:
        yield from _binary_problems("masks", data["masks"], "0 where the task is completed")
    if "next_observations" in data:
        yield from _order_problems(data)


def _missing_problems(present: Collection[str], needed: Collection[str]) -> Iterator[str]:
    for name in needed:
        if name not in present:
            yield (
                f"the field {name!r} is missing; there are: {', '.join(sorted(present)) or 'none'}."
                " Add it, or rename the field that holds it."
            )


def _object_problems(arrays: Mapping[str, ArrayHeader | np.ndarray]) -> Iterator[str]:
    for name, array in arrays.items():
        if array.dtype.hasobject:
            yield (
                f"{name!r} holds Python objects. Reading them needs pickle, which can run any code "
                "and is refused: save numeric arrays (episodes of different lengths go one after "
                "another, in one array), or leave the field out."
            )


def _shape_problems(data: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, array in data.items():
        if array.ndim != len(_AXES[name]):
            image = name.endswith("observations") and array.ndim > 2
            yield f"{name!r} has shape {array.shape}, expected [{', '.join(_AXES[name])}]: " + (
                "images are not supported, give state vectors."
                if image
                else "reshape it, with one row per time step."
            )
    num_rows, width = data["observations"].shape
    for name, array in data.items():
        if len(array) != num_rows:
            yield (
                f"{name!r} has {len(array)} rows but 'observations' has {num_rows}: every field "
                "needs one row per time step."
            )
        if name == "next_observations" and array.shape[1] != width:
            yield (
                f"{name!r} has {array.shape[1]} columns but 'observations' has {width}: both hold "
                "the same state vectors, one step apart."
            )
        if array.size == 0:
            yield f"{name!r} is empty (shape {array.shape}): expected at least one row and column."


def _number_problems(data: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, array in data.items():
        if array.dtype.kind not in "fiub":
            yield f"{name!r} has type {array.dtype}, expected real numbers: save it as float32."
    for name, array in data.items():
        # The extremes are NaN if any value is, and take no memory to find.
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            bad = ~np.isfinite(array)
            yield (
                f"{name!r} has {array[bad][0]} at {_first_place(bad)}; {_count(bad)} not finite "
                "in float32. Remove or repair the episodes concerned."
            )


def _action_problems(actions: np.ndarray) -> Iterator[str]:
    limit = 1 + _ACTION_TOLERANCE
    low, high = actions.min(), actions.max()
    if low < -limit or high > limit:
        bad = (actions < -limit) | (actions > limit)
        yield (
            f"'actions' has {actions[bad][0]:g} at {_first_place(bad)}; {_count(bad)} outside "
            f"[-1, 1] (smallest {low:g}, largest {high:g}). Rescale the actions to [-1, 1]: "
            "2 * (actions - low) / (high - low) - 1, with the environment's own bounds."
        )


def _binary_problems(name: str, array: np.ndarray, meaning: str) -> Iterator[str]:
    bad = (array != 0) & (array != 1)
    if bad.any():
        yield (
            f"{name!r} has {array[bad][0]:g} at {_first_place(bad)}; {_count(bad)} neither 0 nor "
            f"1. Expected {meaning}, everywhere else {'0' if name == 'terminals' else '1'}."
        )


def _episode_problems(data: Mapping[str, np.ndarray]) -> Iterator[str]:
    terminals = data["terminals"]
    if not terminals.any():
        yield (
            "no episode ends, 'terminals' is 0 everywhere: set it to 1 at the last row of each "
            "episode, also of those that a time limit cut short, and so terminals[-1] = 1."
        )
    if not terminals[-1]:
        yield (
            f"the last row (row {len(terminals) - 1}) does not end an episode: set "
            "terminals[-1] = 1, or remove the rows of the unfinished episode."
        )
    if "next_observations" not in data and terminals.all():
        yield (
            "there is no transition: 'terminals' is 1 everywhere, and without 'next_observations' "
            "the last row of each episode only provides the final observation. Set 'terminals' to "
            "1 at the last row of each episode only, or add 'next_observations'."
        )


def _order_problems(data: Mapping[str, np.ndarray]) -> Iterator[str]:
    observations, following = data["observations"], data["next_observations"]
    terminals = data["terminals"]
    for start in range(0, len(observations) - 1, _BLOCK_ROWS):
        here = slice(start, min(start + _BLOCK_ROWS, len(observations) - 1))
        after = slice(start + 1, here.stop + 1)
        close = np.isclose(following[here], observations[after], _ORDER_TOLERANCE, _ORDER_TOLERANCE)
        broken = ~close.all(axis=1) & (terminals[here] == 0)
        if broken.any():
            row = start + int(broken.argmax())
            yield (
                f"'next_observations' at row {row} differs from 'observations' at row {row + 1}, "
                f"although terminals[{row}] is 0. Rows have to be in time order, not shuffled or "
                f"thinned out: sort them, or set terminals[{row}] = 1 if an episode ends there."
            )


def _first_place(bad: np.ndarray) -> str:
    place = np.unravel_index(bad.argmax(), bad.shape)
    return f"row {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "")


def _count(bad: np.ndarray) -> str:
    count = np.count_nonzero(bad)
    return f"{count} of {bad.size} values {'is' if count == 1 else 'are'}"


def _as_float32(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        return array  # for the check to name
    with np.errstate(over="ignore"):  # the check names the infinity
        return np.asarray(array, np.float32, order="C")


def _read_array(file: zipfile.ZipExtFile) -> np.ndarray:
    (shape, dtype), is_fortran = _read_header(file)
    array = np.empty(shape[::-1] if is_fortran else shape, dtype)
    missing = memoryview(array.reshape(-1).view(np.uint8))
    while missing:
        count = file.readinto(missing[:_READ_BYTES])
        if count == 0:
            raise EOFError("an array ends too early")
        missing = missing[count:]
    file.read(1)  # the end: there the checksum is compared
    return array.T if is_fortran else array


def _read_header(file: IO[bytes]) -> tuple[ArrayHeader, bool]:
    """Reads what an array's file begins with, and whether columns follow each other in it.

    NumPy's own reader is left for the unusual: it uses `ast`, and two threads that do so at once
    make each other fail (Python 3.11: "recursion depth mismatch").
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
            raise ValueError(f"no type of NumPy's: {plain['dtype']}") from error
        return ArrayHeader(shape, dtype), plain["fortran"] == b"True"
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(io.BytesIO(start + text))
    return ArrayHeader(shape, dtype), is_fortran


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: this is not an .npz file, or it is damaged or incomplete ({error}). Expected an "
        "archive written by np.savez or np.savez_compressed: download or write it again."
    )
