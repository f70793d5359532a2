"""Reads the folders of LeRobot (huggingface.co/docs/lerobot, "LeRobotDataset v3.0"), without torch.

`meta/info.json` lists the features, and `meta/tasks.parquet` the tasks. The files in `data/chunk-*`
have one row per frame, with `action`, `episode_index`, `frame_index`, `task_index`, and all
features but the videos. What an action led to stands in its own row: `next.reward`, `next.success`
and `next.done`. The observation after an episode's last frame is not recorded.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd

from qam_jax.data import demonstrations
from qam_jax.files import user_path

_COLUMNS = ("action", "episode_index", "frame_index", "task_index")
_DEFAULT_KEYS = ("observation.state", "observation.environment_state")
_VERSIONS = ("v2.0", "v2.1", "v3.0")  # alike in what is read here


def load_lerobot(
    name: str, choice: demonstrations.Choice, _: gymnasium.Env | None = None
) -> tuple[dict[str, np.ndarray], Path, str]:
    """Reads and checks a dataset, whose folder is `name`.

    `choice` names features of the observation (by default those of `_DEFAULT_KEYS` that exist), the
    text of a task (by default all tasks) and a rule (by default `next.success`).

    Returns the fields, float32 and with `next_observations`; the folder; a line about the data.
    Raises FileNotFoundError, ImportError without PyArrow, ValueError that names the first fault.
    """
    source, folder = f"lerobot:{name}", user_path(name)
    with demonstrations.needs_extra("lerobot", source):
        import pyarrow.parquet as parquet
    features, vectors, num_frames = _read_info(folder, source)
    default = [key for key in _DEFAULT_KEYS if key in features]
    keys = demonstrations.choose_keys(choice.obs_keys or default, vectors, source)
    rule = _rule(vectors, choice.success, source)
    optional = [each for each in ("next.reward", rule) if each in features]
    names = list(dict.fromkeys([*keys, *_COLUMNS, *optional]))
    pieces = {}
    for path in sorted(folder.glob("data/*/*.parquet")):
        with _named_if_damaged(path, source):
            table = parquet.ParquetFile(path).read(columns=names)
            place = str(path.relative_to(folder))
            pieces[place] = {each: _to_numpy(table[each], each, place) for each in names}
    if not pieces:
        raise FileNotFoundError(f"{source}: there is no data/chunk-*/*.parquet. Download it again.")
    columns = demonstrations.join_rows(pieces, source)
    _check_frames(columns, num_frames, source)
    if choice.demos:
        rows = columns["task_index"] == _task_index(folder, choice.demos, source)
        columns = {each: column[rows] for each, column in columns.items()}
    marks = None if rule in demonstrations.RULES else columns[rule]
    fields = _transitions(columns, keys, source)
    data = demonstrations.to_fields(fields, rule, marks, source, choice.any_actions)
    there = [key for key in features if key.startswith("observation.")]
    return data, folder, demonstrations.describe(source, data, keys, there)


@contextlib.contextmanager
def _named_if_damaged(path: Path, source: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: {path} is damaged or incomplete ({type(error).__name__}: {error}). "
            "Download or write it again."
        ) from error


def _read_info(folder: Path, source: str) -> tuple[list[str], list[str], int]:
    """Names of all features, and of those that are vectors; number of frames."""
    path = folder / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{source}: there is no {path}. Name the folder of a LeRobot dataset, which holds meta "
            "and data."
        )
    with _named_if_damaged(path, source):
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
        vectors = [
            name
            for name, feature in features.items()
            if len(feature["shape"]) == 1 and feature["dtype"] not in ("image", "video", "string")
        ]
        num_frames = int(info["total_frames"])
    if num_frames < 1:
        raise ValueError(
            f"{source}: {path} counts {num_frames} frames: record some episodes first."
        )
    if version not in _VERSIONS:
        raise ValueError(
            f"{source}: it has version {version} of LeRobot's format; {', '.join(_VERSIONS)} can "
            "be read. Convert it by LeRobot: python -m lerobot.scripts.convert_dataset_v21_to_v30 "
            "(the converters of older versions are in older releases)."
        )
    return list(features), vectors, num_frames


def _rule(vectors: list[str], rule: str, source: str) -> str:
    rule = rule or ("next.success" if "next.success" in vectors else "")
    if rule not in (*demonstrations.RULES, *vectors):
        raise ValueError(
            f"{source}: there is no {rule or 'next.success'!r} to say where the task is completed. "
            "Choose by --success: last (the last step of each episode), reward (a reward of 1), "
            f"none, or one of the columns: {', '.join(vectors)}."
        )
    return rule


def _to_numpy(column: Any, name: str, source: str) -> np.ndarray:
    """A column as an array [N] or [N, width]."""
    values = column.to_numpy()
    if values.dtype == object:
        shapes = {np.shape(value) for value in values}
        if len(shapes) > 1:
            raise ValueError(f"{name!r} has rows of different shapes: {sorted(shapes)}")
        values = np.stack(values)
    if values.shape[1:] == (1,):
        values = values[:, 0]
    return demonstrations.check_numbers(values, name, source)


def _check_frames(columns: Mapping[str, np.ndarray], num_frames: int, source: str) -> None:
    """Raises ValueError unless all frames are there, and each episode's in the order of time."""
    episodes, frames = columns["episode_index"], columns["frame_index"]
    if len(frames) != num_frames:
        raise ValueError(
            f"{source}: meta/info.json counts {num_frames} frames, but the files in data hold "
            f"{len(frames)}: a file is missing, or there twice. Download it again."
        )
    steps = np.diff(episodes, prepend=-1)
    starts = np.flatnonzero(steps)
    expected = np.arange(num_frames) - np.repeat(starts, np.diff(starts, append=num_frames))
    wrong = (frames != expected) | (steps < 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{source}: row {row} holds frame {frames[row]} of episode {episodes[row]}, where "
            f"frame {expected[row]} is due: the frames of an episode have to follow one another, "
            "and so have the episodes. Sort the rows."
        )


def _task_index(folder: Path, task: str, source: str) -> int:
    path, old = folder / "meta" / "tasks.parquet", folder / "meta" / "tasks.jsonl"
    if not path.exists() and not old.exists():
        raise FileNotFoundError(f"{source}: there is no {path}, which --demos needs. Leave it out.")
    with _named_if_damaged(path, source):
        tasks = pd.read_parquet(path) if path.exists() else pd.read_json(old, lines=True)
        tasks = tasks.set_index("task") if "task" in tasks else tasks
        numbers = tasks["task_index"].to_dict()
    if task not in numbers:
        raise ValueError(
            f"{source}: there is no task {task!r} (--demos). There are: "
            f"{', '.join(map(repr, numbers))}."
        )
    return numbers[task]


def _transitions(
    columns: Mapping[str, np.ndarray], keys: list[str], source: str
) -> dict[str, np.ndarray]:
    episodes, frames = columns["episode_index"], columns["frame_index"]
    if not len(frames):
        raise ValueError(f"{source}: no frame is of this task. Choose another by --demos.")
    # A task may be a part of an episode only.
    ends = np.append((np.diff(episodes) != 0) | (np.diff(frames) != 1), True)
    data = {
        "observations": demonstrations.join_parts({k: columns[k] for k in keys}, len(ends), source),
        "actions": demonstrations.join_parts({"action": columns["action"]}, len(ends), source),
        "terminals": ends,
    }
    if "next.reward" in columns:
        data["rewards"] = columns["next.reward"]
    return data
