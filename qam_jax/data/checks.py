"""Checks of transitions, whose messages name the first fault and how to mend it.

`FIELDS` are the documented fields, for `N` rows, observation dimension `O` and action dimension
`A`. Rows are in time order, and one episode follows another. Without `next_observations` the file
has OGBench's layout (arXiv 2410.20092): the next observation stands in the next row, and the last
row of each episode only provides the final observation. The action of that row leads nowhere and is
never trained on. With `next_observations` every row is a transition.

All other fields, such as OGBench's `qpos`, `qvel` and `button_states`, are returned as stored.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np

REQUIRED_FIELDS = ("observations", "actions", "terminals")
RELABEL_FIELDS = ("qpos", "button_states")  # OGBench computes rewards from them

_AXES = {
    "observations": ("N", "O"),  # state vectors, any unit
    "actions": ("N", "A"),  # in [-1, 1]
    "terminals": ("N",),  # 1 at the last row of each episode, otherwise 0
    "rewards": ("N",),  # of the row's action; OGBench's own files have `qpos` instead
    "masks": ("N",),  # 0 where the task is completed: no value beyond; otherwise 1 (default)
    "next_observations": ("N", "O"),  # after the row's action; may be missing
}
FIELDS = tuple(_AXES)

_ACTION_TOLERANCE = 1e-4  # clipping to [-1, 1] in another precision may end slightly outside
_ORDER_TOLERANCE = 1e-5  # relative and absolute
_BLOCK_ROWS = 4096  # rows compared at once, so that temporaries stay small


class ArrayHeader(NamedTuple):
    """What is known of an array in a file without reading its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool  # the order of the values
    start: int  # byte at which the values begin
    checksum: int


def check_headers(
    headers: Mapping[str, ArrayHeader | np.ndarray],
    needed: Collection[str],
    *,
    source: Path | str,
    read: Collection[str] | None = None,
) -> None:
    """Raises ValueError for the first fault that is known without the values of the arrays.

    All `needed` arrays must be there. Checked are the arrays that will be `read`, by default these.
    """
    for name in needed:
        if name not in headers:
            raise ValueError(
                f"{source}: the field {name!r} is missing; there are: "
                f"{', '.join(sorted(headers)) or 'none'}. Add it, or rename the field that holds "
                "it."
            )
    for problem in _header_problems({n: headers[n] for n in (needed if read is None else read)}):
        raise ValueError(f"{source}: {problem}")  # the first: each check relies on earlier ones


def check_transitions(
    data: Mapping[str, np.ndarray], *, source: Path | str, any_actions: bool = False
) -> None:
    """Raises ValueError for the first fault of the `FIELDS`, with its place and how to mend it.

    With `any_actions`, actions need not lie in [-1, 1].
    """
    fields = {name: data[name] for name in FIELDS if name in data}
    check_headers(data, REQUIRED_FIELDS, source=source, read=fields)
    for problem in _value_problems(fields, any_actions):
        raise ValueError(f"{source}: {problem}")


def check_same_fields(headers: Mapping[Path, Mapping[str, ArrayHeader]]) -> None:
    """Raises ValueError, naming both files, if two files' fields or dimensions differ."""
    first = next(iter(headers))

    def describe(path: Path, name: str) -> str:
        if name not in headers[path]:
            return f"no {name!r}"
        return f"{name!r} of shape [{', '.join(('N', *map(str, headers[path][name].shape[1:])))}]"

    for path in headers:
        for name in (*FIELDS, *RELABEL_FIELDS):
            given, expected = describe(path, name), describe(first, name)
            if given != expected:
                raise ValueError(
                    f"{path} does not belong with {first}: {path.name} has {given}, but "
                    f"{first.name} has {expected}. The files of a folder have to hold the same "
                    "fields with the same dimensions: move one of them to another folder."
                )


def check_dimensions(
    arrays: Mapping[str, ArrayHeader | np.ndarray], env: gymnasium.Env | None, source: Path | str
) -> None:
    """Raises ValueError if `observations` [N, O] or `actions` [N, A] do not fit the environment."""
    if env is None:
        return
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        given, expected = (" x ".join(map(str, s)) for s in (arrays[name].shape[1:], space.shape))
        if given != expected:
            raise ValueError(
                f"{source}: its {name} have {given or 0} dimensions, but those of "
                f"{env.spec.id if env.spec else env} have {expected or 0}: this is the dataset of "
                "another environment. Check --env_name and the data."
            )


def _header_problems(arrays: Mapping[str, ArrayHeader | np.ndarray]) -> Iterator[str]:
    for name, array in arrays.items():
        if array.dtype.hasobject:
            yield (
                f"{name!r} holds Python objects. Reading them needs pickle, which can run any code "
                "and is refused: save numeric arrays (episodes of different lengths go one after "
                "another, in one array), or leave the field out."
            )
    arrays = {name: arrays[name] for name in FIELDS if name in arrays}
    for name, array in arrays.items():
        if len(array.shape) != len(_AXES[name]):
            image = name.endswith("observations") and len(array.shape) > 2
            yield f"{name!r} has shape {array.shape}, expected [{', '.join(_AXES[name])}]: " + (
                "images are not supported, give state vectors."
                if image
                else "reshape it, with one row per time step."
            )
    num_rows, width = arrays["observations"].shape
    for name, array in arrays.items():
        if array.shape[0] != num_rows:
            yield (
                f"{name!r} has {array.shape[0]} rows but 'observations' has {num_rows}: every "
                "field needs one row per time step."
            )
        if name == "next_observations" and array.shape[1] != width:
            yield (
                f"{name!r} has {array.shape[1]} columns but 'observations' has {width}: both hold "
                "the same state vectors, one step apart."
            )
        if 0 in array.shape:
            yield f"{name!r} is empty (shape {array.shape}): expected at least one row and column."
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            yield f"{name!r} has type {array.dtype}, expected real numbers: save it as float32."


def _value_problems(data: Mapping[str, np.ndarray], any_actions: bool) -> Iterator[str]:
    for name, array in data.items():
        # The extremes are NaN if any value is NaN, and take no memory to find.
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            yield _locate(name, array, ~np.isfinite(array)) + (
                "not finite in float32. Remove or repair the episodes concerned."
            )
    actions, limit = data["actions"], 1 + _ACTION_TOLERANCE
    low, high = actions.min(), actions.max()
    if not any_actions and (low < -limit or high > limit):
        yield _locate("actions", actions, (actions < -limit) | (actions > limit)) + (
            f"outside [-1, 1] (smallest {low:g}, largest {high:g}). Rescale the actions to "
            "[-1, 1]: 2 * (actions - low) / (high - low) - 1, with the environment's own bounds; "
            "or, without an environment, give --normalize_actions."
        )
    meanings = {
        "terminals": "1 at the last row of each episode, everywhere else 0",
        "masks": "0 where the task is completed, everywhere else 1",
    }
    for name, meaning in meanings.items():
        values = data.get(name, np.zeros(0))
        bad = (values != 0) & (values != 1)
        if bad.any():
            yield f"{_locate(name, values, bad)}neither 0 nor 1. Expected {meaning}."
    yield from _episode_problems(data)
    if "next_observations" in data:
        yield from _order_problems(data)


def _locate(name: str, array: np.ndarray, bad: np.ndarray) -> str:
    row, *column = np.unravel_index(bad.argmax(), bad.shape)
    place = f"row {row}" + (f", column {column[0]}" if column else "")
    count = np.count_nonzero(bad)
    are = "is" if count == 1 else "are"
    return f"{name!r} has {array[bad][0]:g} at {place}; {count} of {bad.size} values {are} "


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
    following, after = data["next_observations"][:-1], data["observations"][1:]
    goes_on = data["terminals"][:-1] == 0
    for start in range(0, len(after), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        close = np.isclose(following[rows], after[rows], _ORDER_TOLERANCE, _ORDER_TOLERANCE)
        broken = ~close.all(axis=1) & goes_on[rows]
        if broken.any():
            row = start + int(broken.argmax())
            yield (
                f"'next_observations' at row {row} differs from 'observations' at row {row + 1}, "
                f"although terminals[{row}] is 0. Rows have to be in time order, not shuffled or "
                f"thinned out: sort them, or set terminals[{row}] = 1 if an episode ends there."
            )
