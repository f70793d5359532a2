"""Which files, and which of their rows, a dataset is made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np

from qam_jax.data.npz import FIELDS, ArrayHeader

RELABEL_FIELDS = ("qpos", "button_states")  # what OGBench computes rewards from

_COMPARED_FIELDS = (*FIELDS, *RELABEL_FIELDS)


class Extent(NamedTuple):
    """How much of a file is used.

    Attributes:
      rows: leading rows of the file.
      transitions: the transitions that they hold.
      laid_out_rows: the rows that these take as a `TransitionDataset`.
    """

    rows: int
    transitions: int
    laid_out_rows: int


def find_files(folder: Path) -> list[Path]:
    """The `.npz` files of a folder in the order of their names, without validation files.

    Raises:
      FileNotFoundError: if the folder is not there, or has no such file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Check the path.")
    paths = [path for path in folder.glob("*.npz") if not path.name.endswith("-val.npz")]
    paths = sorted(path for path in paths if not path.name.startswith("."))
    if not paths:
        raise FileNotFoundError(
            f"{folder}: there is no .npz file in this folder (those that end in -val.npz are left "
            "out). Name the folder that holds the training files."
        )
    return paths


def check_same_fields(headers: Mapping[Path, Mapping[str, ArrayHeader]]) -> None:
    """Raises ValueError, naming both files, if two files' fields or dimensions differ."""
    first, *others = headers
    expected = _widths(headers[first])
    for path in others:
        given = _widths(headers[path])
        for name in _COMPARED_FIELDS:
            if given.get(name) != expected.get(name):
                raise ValueError(
                    f"{path} does not belong with {first}: {_describe(name, given, path)}, but "
                    f"{_describe(name, expected, first)}. The files of a folder have to hold the "
                    "same fields with the same dimensions: move one of them to another folder."
                )


def check_dimensions(
    shapes: Mapping[str, Sequence[int]], env: gymnasium.Env | None, source: Path | str
) -> None:
    """Raises ValueError if observations or actions do not fit the environment.

    Args:
      shapes: of `observations`, [N, O], and `actions`, [N, A].
      env: with vectors for observations and actions; None accepts all.
      source: where the data are from, to begin the message with.
    """
    if env is None:
        return
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        given, expected = tuple(shapes[name][1:]), tuple(space.shape)
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


def find_extent(
    terminals: np.ndarray, has_next: bool, proportion: float, source: Path | str
) -> Extent:
    """The leading rows that hold the first `int(T * proportion)` of `T` transitions.

    Args:
      terminals: [N] 1 at the last row of each episode; the last value is 1.
      has_next: whether there are `next_observations`, so that every row is a transition.
      proportion: in (0, 1].
      source: where the data are from, to begin a message with.

    Raises:
      ValueError: if the proportion is out of range, or leaves no transition.
    """
    check_proportion(proportion)
    ends = np.ravel(terminals) != 0
    total = len(ends) if has_next else int(np.count_nonzero(~ends))
    transitions = int(total * proportion)
    if transitions == 0:
        raise ValueError(
            f"{source}: no transition is left of {total} with a proportion of {proportion}. Use "
            "more of the dataset."
        )
    if has_next:
        episodes = int(np.count_nonzero(ends[: transitions - 1])) + 1
        return Extent(transitions, transitions, transitions + episodes)
    if transitions == total:
        return Extent(len(ends), total, len(ends))
    rows = int(np.flatnonzero(~ends)[transitions - 1]) + 2  # one more for its next observation
    return Extent(rows, transitions, rows)


def take_leading(
    data: Mapping[str, np.ndarray], proportion: float, source: Path | str
) -> dict[str, np.ndarray]:
    """Keeps the first `int(T * proportion)` of `T` transitions; the last row ends an episode.

    This is what `--dataset_proportion` does in the published code of QAM (arXiv 2601.14234).

    Raises:
      ValueError: if the proportion is out of range, or leaves no transition.
    """
    extent = find_extent(data["terminals"], "next_observations" in data, proportion, source)
    data = {name: array[: extent.rows] for name, array in data.items()}
    data["terminals"] = np.array(data["terminals"])
    data["terminals"][-1] = 1
    return data


def _widths(headers: Mapping[str, ArrayHeader]) -> dict[str, tuple[int, ...]]:
    return {name: header.shape[1:] for name, header in headers.items()}


def _describe(name: str, widths: Mapping[str, tuple[int, ...]], path: Path) -> str:
    if name not in widths:
        return f"{path.name} has no {name!r}"
    return f"{path.name} has {name!r} of shape [{', '.join(('N', *map(str, widths[name])))}]"


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "0"
