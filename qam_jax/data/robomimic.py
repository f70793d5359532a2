"""Reads the HDF5 files of robomimic and MimicGen (robomimic.github.io, "Dataset Structure").

`data/demo_<k>` holds `actions` [N, A], `rewards` [N], `dones` [N], and under `obs` and `next_obs`
one array per key of the observation. `mask/<name>` lists the demonstrations of a part of the data.

Every demonstration is one episode, whatever its `dones`. These mark the successes, or the last
step, or both (`done_mode` 0, 1 and 2 of robomimic's `dataset_states_to_obs.py`), and the file does
not say which. A reward of 1 marks a success in all three modes: this is the default rule.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from qam_jax.data import demonstrations
from qam_jax.files import user_path

_UNREADABLE = (AttributeError, KeyError, OSError, RuntimeError, TypeError)


def load_robomimic(
    name: str, choice: demonstrations.Choice, _: gymnasium.Env | None = None
) -> tuple[dict[str, np.ndarray], Path, str]:
    """Reads and checks a file, whose path is `name`.

    `choice` names keys of the observation (by default all vectors, sorted), a mask (by default all
    demonstrations, in the order of their numbers) and a rule (by default `reward`).

    Returns the fields, float32 and with `next_observations`; the path; a line about the data.
    Raises FileNotFoundError, ImportError without h5py, ValueError that names the first fault.
    """
    source, path = f"robomimic:{name}", user_path(name)
    with demonstrations.needs_extra("robomimic", source):
        import h5py
    if not path.is_file():
        raise FileNotFoundError(f"{source}: there is no such file. Check the path.")
    try:
        with h5py.File(path, "r") as file:
            data, description = _read(file, choice, source)
    except _UNREADABLE as error:
        raise ValueError(
            f"{source}: this is not an HDF5 file, or it is damaged or incomplete ({error}). "
            "Download or write it again."
        ) from error
    return data, path, description


def _read(
    file: Any, choice: demonstrations.Choice, source: str
) -> tuple[dict[str, np.ndarray], str]:
    data = _child(file, "data", source)
    names = list(data)
    if choice.demos:
        mask = _child(_child(file, "mask", source), choice.demos, source)
        names = [name.decode(errors="replace") for name in np.asarray(mask, np.bytes_).ravel()]
    if not names:
        raise ValueError(f"{source}: there is no demonstration. Choose others by --demos.")
    names.sort(key=lambda name: (len(name), name))  # demo_2 before demo_10
    there = _child(_child(data, names[0], source), "obs", source)
    vectors = sorted(key for key in there if _is_vector(there[key]))
    keys = demonstrations.choose_keys(choice.obs_keys or vectors, vectors, source)
    demos = {name: _read_demo(_child(data, name, source), keys, choice, source) for name in names}
    joined = demonstrations.join_rows(demos, source)
    return joined, demonstrations.describe(source, joined, keys, there)


def _read_demo(
    demo: Any, keys: list[str], choice: demonstrations.Choice, source: str
) -> dict[str, np.ndarray]:
    """Fields of one demonstration."""
    source, rule = f"{source}, {demo.name}", choice.success or "reward"
    actions = _array(demo, "actions", source)
    num_rows = len(actions)
    columns = {"actions": actions, "terminals": np.eye(1, num_rows, num_rows - 1)[0]}
    for field, group in (("observations", "obs"), ("next_observations", "next_obs")):
        if group == "obs" or group in demo:  # robomimic can leave out `next_obs`, to save space
            parts = {f"{group}/{key}": _array(demo, f"{group}/{key}", source) for key in keys}
            columns[field] = demonstrations.join_parts(parts, num_rows, source)
    if rule == "reward" or "rewards" in demo:
        columns["rewards"] = _array(demo, "rewards", source)
    marks = None if rule in demonstrations.RULES else _array(demo, rule, source)
    return demonstrations.to_fields(columns, rule, marks, source, choice.any_actions)


def _is_vector(item: Any) -> bool:
    return hasattr(item, "dtype") and item.dtype.kind in "fiub" and item.ndim in (1, 2)


def _child(group: Any, name: str, source: str) -> Any:
    there = list(getattr(group, "keys", list)())
    if not there or name not in group:
        raise ValueError(
            f"{source}: {group.name.rstrip('/')}/{name} is missing; there are: "
            f"{', '.join(there) or 'none'}. Expected what robomimic's dataset_states_to_obs.py "
            "writes."
        )
    return group[name]


def _array(demo: Any, name: str, source: str) -> np.ndarray:
    item = _child(demo, name, source)
    shape = getattr(item, "shape", ())
    if not shape or 0 in shape:
        raise ValueError(f"{source}: {name!r} is empty or no array: expected one row per step.")
    return demonstrations.check_numbers(item[()], name, source)
