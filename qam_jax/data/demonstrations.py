"""What the readers of robot data share: the choice of columns, successes, and what follows a row.

Recordings of robots differ in how they say that the task is completed, or do not say it. A rule
names the rows that are successes: `masks` is 0 there and 1 elsewhere. The rule is one of

- `reward`: the rows with a reward of 1, where all rewards lie in [0, 1];
- `last`: the last row of each episode;
- `none`: no row;
- a column's name, such as `dones` or `next.success`: the rows where this column is 1.

Rewards are the dataset's own. Where it has none, they are 0 at a success and -1 elsewhere.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qam_jax.data.checks import check_transitions
from qam_jax.data.npz import as_float32

RULES = ("reward", "last", "none")

_TOLERANCE = 1e-6  # a reward of 1 may have been a quotient


class Choice(NamedTuple):
    """What to use of a robot dataset; empty: the default of its format."""

    obs_keys: Sequence[str] = ()  # parts of an observation, in this order
    demos: str = ""  # which episodes
    success: str = ""  # one of the rules above
    any_actions: bool = False  # whether actions need not lie in [-1, 1]


@contextlib.contextmanager
def needs_extra(extra: str, source: str) -> Iterator[None]:
    """Lets an ImportError of the block say which extra of this package has what is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{source}: reading it needs packages that are not installed ({error}). Install them: "
            f'pip install -e ".[{extra}]"'
        ) from error


def choose_keys(wanted: Sequence[str], vectors: Collection[str], source: str) -> list[str]:
    """Returns the wanted parts of an observation; ValueError unless there are, and as vectors."""
    unknown = [key for key in wanted if key not in vectors]
    if unknown or not wanted:
        raise ValueError(
            f"{source}: {unknown[0] if unknown else 'the observation'!r} is not there, or is no "
            "vector (images are not supported). Choose by --obs_keys among: "
            f"{', '.join(vectors) or 'none'}."
        )
    return list(wanted)


def check_numbers(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """Returns the array; ValueError if it does not hold real numbers."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{source}: {name!r} has type {array.dtype}, expected real numbers")
    return array


def join_parts(parts: Mapping[str, np.ndarray], num_rows: int, source: str) -> np.ndarray:
    """Puts parts [N] or [N, ...] into vectors [N, O]; ValueError if `num_rows` is not their `N`."""
    for name, part in parts.items():
        if len(part) != num_rows:
            raise ValueError(
                f"{source}: {name!r} has {len(part)} rows, but 'actions' has {num_rows}: expected "
                "one row per step. Write the episode again, or leave it out."
            )
    return np.concatenate([part.reshape(num_rows, -1) for part in parts.values()], axis=1)


def join_rows(pieces: Mapping[str, Mapping[str, np.ndarray]], source: str) -> dict[str, np.ndarray]:
    """Puts pieces, which their places name, one after another; ValueError if widths differ."""
    first, expected = next(iter(pieces.items()))
    for place, columns in pieces.items():
        for name, column in columns.items():
            if column.shape[1:] != expected[name].shape[1:]:
                raise ValueError(
                    f"{source}: {name!r} has rows of shape {column.shape[1:]} in {place}, but "
                    f"{expected[name].shape[1:]} in {first}: they do not belong together. Choose "
                    "by --demos, or leave one of them out."
                )
    return {name: np.concatenate([each[name] for each in pieces.values()]) for name in expected}


def to_fields(
    columns: Mapping[str, np.ndarray],
    rule: str,
    marks: np.ndarray | None,
    source: str,
    any_actions: bool = False,
) -> dict[str, np.ndarray]:
    """Adds `masks`, and `rewards` and `next_observations` where they are missing.

    Without `next_observations`, they are those of the next row. Nothing follows the last row of an
    episode. If it is a success, its own observation stands in, which a mask of 0 makes irrelevant.
    Any other last row is left out: it only provides the final observation.

    The columns are fields of `qam_jax.data.checks`. The rule says which rows are successes, see the
    top of this module; `marks` [N] is the column that it names, if it names one.

    Returns these fields, float32; every row is a transition, and there may be no row. Raises
    ValueError, about `source`, if the columns break a rule of `qam_jax.data.checks` (`any_actions`:
    but for the range of actions), or do not fit the `rule`.
    """
    data = {name: as_float32(array) for name, array in columns.items()}
    check_transitions(data, source=source, any_actions=any_actions)
    success = _successes(data, rule, marks, source)
    data["masks"] = as_float32(~success)
    data.setdefault("rewards", as_float32(success) - 1)
    if "next_observations" in data:
        return data
    ends = data["terminals"] == 1
    following = np.roll(data["observations"], -1, axis=0)
    following[ends] = data["observations"][ends]
    left_out = ends & ~success
    data |= {"next_observations": following, "terminals": as_float32(ends | np.roll(left_out, -1))}
    return {name: array[~left_out] for name, array in data.items()}


def describe(
    source: str, data: Mapping[str, np.ndarray], keys: Sequence[str], there: Collection[str]
) -> str:
    """A line about checked data, for the log; ValueError if there is no transition."""
    ends = np.flatnonzero(data["terminals"])
    if not ends.size:
        raise ValueError(
            f"{source}: there is no transition: each episode has one row, and it is not a success. "
            "Choose other episodes."
        )
    starts = np.append(0, ends[:-1] + 1)
    successes = np.count_nonzero(np.minimum.reduceat(data["masks"], starts) == 0)
    others = ", ".join(key for key in there if key not in keys)
    return (
        f"{source}: {ends.size} episodes, {successes} of them with a success; observations: "
        f"{', '.join(keys)}" + (f" (left out: {others})" if others else "")
    )


def _successes(
    data: Mapping[str, np.ndarray], rule: str, marks: np.ndarray | None, source: str
) -> np.ndarray:
    """Whether each row is a success [N]."""
    terminals = data["terminals"] == 1
    if marks is not None:
        if marks.shape != terminals.shape or not np.isin(marks, (0, 1)).all():
            raise ValueError(
                f"{source}: --success={rule} names a column of shape {marks.shape} with values "
                f"from {marks.min():g} to {marks.max():g}; expected 0 or 1 in each of "
                f"{terminals.size} rows. Name another, or one of: {', '.join(RULES)}."
            )
        return marks == 1
    if rule != "reward":
        return terminals & (rule == "last")
    rewards = data.get("rewards", np.full(1, np.nan))
    if not (rewards.min() >= 0 and rewards.max() <= 1 + _TOLERANCE):
        raise ValueError(
            f"{source}: a reward of 1 is taken for a success (--success=reward), which needs "
            f"rewards in [0, 1]; they are from {rewards.min():g} to {rewards.max():g}. Say what a "
            "success is: --success=<column that is 1 there>, --success=last or --success=none."
        )
    return rewards >= 1 - _TOLERANCE
