"""Checks of transitions, whose messages name the first fault and how to mend it.

The documented fields, for `N` rows, observation dimension `O` and action dimension `A`. Rows are
in time order, and one episode follows another:

| field               | shape    | needed | content                                              |
|---------------------|----------|--------|------------------------------------------------------|
| `observations`      | `[N, O]` | yes    | state vectors, any unit                              |
| `actions`           | `[N, A]` | yes    | in [-1, 1]                                           |
| `terminals`         | `[N]`    | yes    | 1 at the last row of each episode, otherwise 0       |
| `rewards`           | `[N]`    | yes*   | reward of the row's action; *OGBench's own files     |
|                     |          |        | have `qpos` instead                                  |
| `masks`             | `[N]`    | no     | 0 where the task is completed, so that no value is   |
|                     |          |        | bootstrapped beyond this row; otherwise 1 (default)  |
| `next_observations` | `[N, O]` | no     | observation after the row's action                   |

Without `next_observations` the file has OGBench's layout (arXiv 2410.20092): the next observation
stands in the next row, and the last row of each episode only provides the final observation. The
action of that row leads nowhere and is never trained on. With `next_observations` every row is a
transition.

All other fields, such as OGBench's `qpos`, `qvel` and `button_states`, are returned as stored.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np

REQUIRED_FIELDS = ("observations", "actions", "terminals")
RELABEL_FIELDS = ("qpos", "button_states")  # OGBench computes rewards from them

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


class ArrayHeader(NamedTuple):
    """Shape and type of an array in a file, known without reading its values."""

    shape: tuple[int, ...]
    dtype: np.dtype


def check_headers(
    headers: Mapping[str, ArrayHeader],
    needed: Collection[str],
    *,
    source: str,
    read: Collection[str] | None = None,
) -> None:
    """Checks everything that is known without the values of the arrays.

    Args:
      headers: all arrays of the file.
      needed: names of arrays that must be there.
      source: origin of the data, with which the message begins.
      read: names of the arrays that will be read, and so are checked; `needed` by default.

    Raises:
      ValueError: naming the first fault.
    """
    _raise_first(_missing_problems(headers, needed), source)
    arrays = {name: headers[name] for name in (needed if read is None else read)}
    _raise_first(_header_problems(arrays), source)


def check_transitions(data: Mapping[str, np.ndarray], *, source: str) -> None:
    """Checks the documented fields of a dataset (see the table at the top of this module).

    Args:
      data: arrays by name; other fields than the documented ones are ignored.
      source: origin of the data, with which the message begins.

    Raises:
      ValueError: naming the first fault, its place, and how to mend it.
    """
    _raise_first(_find_problems(data), source)


def check_same_fields(headers: Mapping[Path, Mapping[str, ArrayHeader]]) -> None:
    """Raises ValueError, naming both files, if two files' fields or dimensions differ."""
    first, *others = headers
    for path in others:
        for name in (*FIELDS, *RELABEL_FIELDS):
            widths = [
                headers[each][name].shape[1:] if name in headers[each] else None
                for each in (path, first)
            ]
            if widths[0] != widths[1]:
                raise ValueError(
                    f"{path} does not belong with {first}: {_describe(name, widths[0], path)}, but "
                    f"{_describe(name, widths[1], first)}. The files of a folder have to hold the "
                    "same fields with the same dimensions: move one of them to another folder."
                )


def check_dimensions(
    arrays: Mapping[str, ArrayHeader | np.ndarray], env: gymnasium.Env | None, source: Path | str
) -> None:
    """Raises ValueError if observations or actions do not fit the environment.

    Args:
      arrays: `observations` [N, O] and `actions` [N, A]; only their shapes are used.
      env: with vectors for observations and actions; None accepts all.
      source: origin of the data, with which the message begins.
    """
    if env is None:
        return
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        given, expected = tuple(arrays[name].shape[1:]), tuple(space.shape)
        if given != expected:
            raise ValueError(
                f"{source}: its {name} have {_dimensions(given)} dimensions, but those of "
                f"{env.spec.id if env.spec else env} have {_dimensions(expected)}: this is the "
                "dataset of another environment. Check --env_name and the data."
            )


def check_proportion(proportion: float) -> None:
    """Raises ValueError unless `proportion` lies in (0, 1]."""
    if not 0 < proportion <= 1:
        raise ValueError(
            f"the proportion of a dataset to use must be above 0 and at most 1, got {proportion}."
        )


def _raise_first(problems: Iterator[str], source: str) -> None:
    problem = next(problems, None)
    if problem is not None:
        raise ValueError(f"{source}: {problem}")


def _find_problems(data: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yields faults. Only the first is valid: each check relies on the earlier ones."""
    yield from _missing_problems(data, REQUIRED_FIELDS)
    data = {name: data[name] for name in FIELDS if name in data}
    yield from _header_problems(data)
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


def _number_problems(data: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, array in data.items():
        # The extremes are NaN if any value is NaN, and take no memory to find.
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


def _describe(name: str, width: Sequence[int] | None, path: Path) -> str:
    if width is None:
        return f"{path.name} has no {name!r}"
    return f"{path.name} has {name!r} of shape [{', '.join(('N', *map(str, width)))}]"


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "0"
