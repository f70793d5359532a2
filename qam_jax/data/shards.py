"""Datasets of many files, such as OGBench's with 100 million transitions: one trains at a time.

Memory holds the file that trains and the next one, which a thread reads meanwhile.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import gymnasium
import jax
import numpy as np

from qam_jax.data import checks, npz
from qam_jax.data.checks import ArrayHeader
from qam_jax.data.column_cache import find_cache, list_content, map_columns
from qam_jax.data.dataset import DataSource, check_dataset_fits, layout, take_leading
from qam_jax.files import user_path
from qam_jax.types import TransitionDataset

_ALIGNMENT = 64  # bytes; JAX takes over such arrays on a CPU without a copy


class Shards(DataSource):
    """A folder of `.npz` files, each of which trains for a number of updates in turn.

    Files are taken in the order of their names, without `*-val.npz`. Update `s` trains on file
    `(s // replace_interval) % n`. Each file is converted into memory-mapped columns when it is
    first used (see `qam_jax.data.column_cache`), which takes as much disk space as its arrays.
    To be used from one thread.

    Args:
      folder: folder of the files; fields as in `qam_jax.data.checks`, or OGBench's.
      env: environment that the data have to fit; None if there is none. Where the files have
        `qpos` but no `rewards`, its task gives the rewards. It is then reset for the last time.
      replace_interval: updates that one file trains for; 0 means the first file for all.
      proportion: how much to use of each file, in (0, 1]: the leading transitions.
      sparse: whether every reward that is not 0 becomes -1.

    `num_swaps` counts how often a file has replaced another, `stall_seconds` how long that took.

    Raises:
      FileNotFoundError: if there is no such folder, or no file in it.
      ValueError: names the argument that is out of range, or the file that is damaged, does not fit
        the environment or differs from another file.
      OSError: if the columns cannot be stored anywhere.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        env: gymnasium.Env | None,
        *,
        replace_interval: int,
        proportion: float = 1.0,
        sparse: bool = False,
    ):
        if replace_interval < 0:
            raise ValueError(
                "the interval after which the dataset is replaced must be 0 (never) or a number of "
                f"updates, got {replace_interval}."
            )
        self.path = user_path(folder)
        paths = npz.find_files(self.path)
        if replace_interval == 0:
            paths = paths[:1]
        headers = {path: npz.read_headers(path) for path in paths}  # as the run begins
        for path in paths:
            checks.check_headers(headers[path], checks.REQUIRED_FIELDS, source=path)
        checks.check_same_fields(headers)
        checks.check_dimensions(headers[paths[0]], env, paths[0])
        self._task = _find_task(env, headers[paths[0]], paths[0])
        self._shards = list(headers.items())
        self._interval = replace_interval if len(paths) > 1 else 0
        self._proportion, self._sparse = proportion, sparse
        counts = [_count(path, headers[path], proportion) for path in paths]
        self._most = [max(column) for column in zip(*counts, strict=True)]
        part = f", the leading {proportion:.6g} of each" if proportion < 1 else ""
        self.description = f"{paths[0].name} in {self.path}{part}"
        if self._interval:
            self.description = (
                f"{len(paths)} files in {self.path}{part} ({sum(starts for starts, _ in counts)} "
                f"transitions), each in turn for {self._interval} updates"
            )
        self._cache = find_cache(self.path)
        self._current = -1  # the index of the file that trains
        self._dataset: TransitionDataset | None = None
        self._reader = concurrent.futures.ThreadPoolExecutor(1)
        self._next: concurrent.futures.Future[TransitionDataset] | None = None
        self.num_swaps, self.stall_seconds = 0, 0.0

    def at(self, step: int) -> TransitionDataset:
        """Data for update `step`. Raises as `qam_jax.data.column_cache.map_columns`."""
        index = step // self._interval % len(self._shards) if self._interval else 0
        if self._dataset is not None and index == self._current:
            return self._dataset
        started, is_swap = time.perf_counter(), self._dataset is not None
        laid_out = self._take(index)
        if not is_swap and jax.default_backend() != "cpu":  # which uses the arrays where they are
            check_dataset_fits(laid_out)
        self._dataset = jax.block_until_ready(jax.device_put(laid_out))
        self._current = index
        if is_swap:
            self.num_swaps += 1
            self.stall_seconds += time.perf_counter() - started
        if self._interval:
            self._next = self._reader.submit(self._read, (index + 1) % len(self._shards))
        return self._dataset

    def next_change(self, step: int) -> int | None:
        return (step // self._interval + 1) * self._interval if self._interval else None

    def fingerprint(self) -> str:
        """Hash of the names, the checksums and the settings; it does not depend on the folder."""
        content = [[path.name, *list_content(headers)] for path, headers in self._shards]
        task = self._task.spec.id if self._task else None
        settings = [self._interval, self._proportion, self._sparse, task]
        return hashlib.sha256(json.dumps([content, settings]).encode()).hexdigest()[:16]

    def metrics(self) -> dict[str, float]:
        return {"shard_swaps": self.num_swaps, "shard_stall_seconds": self.stall_seconds}

    def close(self) -> None:
        """Waits for the thread that reads the next file, and lets go of the data."""
        self._reader.shutdown()
        self._next = self._dataset = None

    def _take(self, index: int) -> TransitionDataset:
        """Arrays of a shard, from the thread if it has read this one."""
        read, self._next = self._next, None
        if read is not None:
            concurrent.futures.wait([read])
            if index == (self._current + 1) % len(self._shards):
                with contextlib.suppress(Exception):  # its cause may be gone by now
                    return read.result()
        return self._read(index)

    def _read(self, index: int) -> TransitionDataset:
        """Lays out a shard in memory, padded. The thread calls it too: it uses no JAX."""
        path, headers = self._shards[index]
        columns = map_columns(path, headers, self._cache, self._task)
        columns = take_leading(columns, self._proportion, path)
        return _pad(layout(columns, sparse=self._sparse), *self._most)


def _find_task(
    env: gymnasium.Env | None, headers: Mapping[str, ArrayHeader], path: Path
) -> gymnasium.Env | None:
    """Task that gives the rewards, as OGBench's code needs it; None where the file has some."""
    if "rewards" in headers:
        return None
    is_task = getattr(getattr(env, "unwrapped", None), "_reward_task_id", None) is not None
    if env is None or not is_task or "qpos" not in headers:
        raise ValueError(
            f"{path}: there are no 'rewards', and computing them takes 'qpos' and one of OGBench's "
            f"single-task environments. There are: {', '.join(sorted(headers))}. Add rewards, or "
            "check --env_name."
        )
    env.reset()  # sets the goal, for good: another thread uses it
    env.unwrapped.reset = lambda **_: None
    return env.unwrapped


def _count(path: Path, headers: Mapping[str, ArrayHeader], proportion: float) -> tuple[int, int]:
    """How many transitions of a file are used, and the rows that they take as a dataset."""
    columns = npz.read_arrays(path, {"terminals": headers["terminals"]})
    has_next = "next_observations" in headers
    if has_next:
        columns["next_observations"] = columns["terminals"]  # only its presence counts here
    ends = take_leading(columns, proportion, path)["terminals"] != 0
    num_ends = int(np.count_nonzero(ends))
    num_transitions = len(ends) - (0 if has_next else num_ends)
    return num_transitions, num_transitions + num_ends


def _pad(dataset: TransitionDataset, num_starts: int, num_rows: int) -> TransitionDataset:
    """Copies all arrays into new ones of the given length."""
    columns = dict(vars(dataset))
    count, starts = columns.pop("num_starts"), _padded(columns.pop("start_rows"), num_starts)
    starts[int(count) :] = starts[0]  # a row that holds a transition
    padded = {name: _padded(column, num_rows) for name, column in columns.items()}
    return TransitionDataset(**padded, start_rows=starts, num_starts=count)


def _padded(column: np.ndarray, length: int) -> np.ndarray:
    shape = (length, *column.shape[1:])
    size = math.prod(shape) * column.itemsize
    buffer = np.zeros(size + _ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % _ALIGNMENT
    padded = buffer[offset : offset + size].view(column.dtype).reshape(shape)
    padded[: len(column)] = column
    return padded
