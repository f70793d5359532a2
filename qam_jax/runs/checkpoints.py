"""Checkpoints of a run by orbax: asynchronous, atomic, and checked when they are read."""

import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

from qam_jax import memory
from qam_jax.agents import AgentState
from qam_jax.files import DamagedError, flush_to_disk, read_json, user_path, write_json
from qam_jax.runs import processes
from qam_jax.runs.metrics import read_csv, score

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_CHECKSUMS = "checksums.json"  # of all other files of a checkpoint
_PART = ".part"  # ends the folder of a checkpoint that is being written
_SPARE_BYTES = 10**6  # for orbax's own files


class _Merit(NamedTuple):
    """Why a checkpoint is kept."""

    score: float  # -inf if unknown
    milestone: bool


class Checkpoints:
    """Checkpoints in a run's folder: the newest `keep`, the best, and the end of each stage.

    A checkpoint holds the agent's state, the metrics since their last row, and `progress`: as JSON,
    whatever else it takes to continue. It takes its name, the step, once it is on the disk with a
    checksum of each file. It is written before its evaluation: its score is the row of `eval.csv`
    that `progress["evaluation"]` names, if it names one. Orbax's own manager does not serve: a
    damaged file would stop it.

    Several processes that train together all call the same methods; each writes a part of the
    arrays, process 0 everything else.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2, *, read_only: bool = False):
        self.folder = user_path(folder).absolute() / "checkpoints"
        self._keep = keep
        options = _taking_part(self.folder.parent, read_only)
        composite = ocp.CompositeOptions(multiprocessing_options=options)
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=composite),
            multiprocessing_options=options,
        )
        self._thread = ThreadPoolExecutor(1)
        self._writing: tuple[int, Future[None]] | None = None
        self._merits = self._read_merits() if read_only else processes.from_first(self._open)

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return sorted(self._merits)

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score, the newest of equals; None without scores."""
        scores = [(self._merits[step].score, step) for step in self._merits if self.has_score(step)]
        return max(scores)[1] if scores else None

    def find(self, step: int | str) -> int:
        """Finds the step of a checkpoint by its number, or by `newest` or `best`.

        Raises FileNotFoundError, naming the steps that there are, if there is no such checkpoint.
        """
        steps = self.steps
        named = {"newest": steps[-1] if steps else None, "best": self.best_step}
        found = named[step] if step in named else int(step) if str(step).isdigit() else step
        if found not in steps:
            raise FileNotFoundError(
                f"no checkpoint {step!r} in {self.folder}: give 'newest', 'best', or one of the "
                f"steps {steps or '(none)'}."
            )
        return found

    def save(
        self,
        step: int,
        state: AgentState,
        sums: chex.ArrayTree,
        progress: dict[str, Any],
        milestone: bool = False,
    ) -> None:
        """Starts to write a checkpoint: state and metrics on the devices, and `progress` as JSON.

        A milestone is kept for good. One of the same step gives way only to a milestone.

        Raises OSError if this checkpoint or the one before cannot be written. Older ones remain.
        """
        if step in self._merits and self._merits[step].milestone >= milestone:
            return
        self.wait()
        items = jax.device_get((state, sums))
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._failed(step, OSError(f"{needed:,} bytes needed, {free:,} free"))
        arguments = ocp.args.Composite(
            agent=ocp.args.StandardSave(state if processes.several() else items[0]),
            tally=ocp.args.StandardSave(items[1]),
            progress=ocp.args.JsonSave({**progress, "milestone": milestone}),
        )
        try:
            self._orbax.save(self.folder / f"{step}{_PART}", args=arguments, force=True)
        except Exception as error:
            raise self._failed(step, error) from error
        self._merits[step] = _Merit(-math.inf, milestone)
        self._writing = step, self._thread.submit(self._finish, step)

    def has_score(self, step: int) -> bool:
        """Whether the score of a checkpoint is known."""
        return self._merits[step].score > -math.inf

    def set_score(self, step: int, value: float) -> None:
        """Ranks a checkpoint, if there is one of this step, by the row of its evaluation."""
        self.wait()
        if step in self._merits:
            self._merits[step] = self._merits[step]._replace(score=value)
            self._remove_outdated()

    def wait(self) -> None:
        """Waits until everything is on disk; raises OSError if it cannot be written."""
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        try:
            writing.result()
        except Exception as error:
            del self._merits[step]
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Waits, and releases the folder."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def read_progress(self, step: int) -> dict[str, Any]:
        """Reads the `progress` of a checkpoint. Raises DamagedError if it cannot be read."""
        return self._read(step)["progress"]

    def restore(
        self, step: int, state: AgentState, sums: chex.ArrayTree
    ) -> tuple[AgentState, chex.ArrayTree]:
        """Reads a checkpoint into the structure of a state and of sums.

        Raises DamagedError if it cannot be read, or its files are not those that were written.
        """
        restored = self._read(step, agent=_restore_like(state), tally=_restore_like(sums))
        return restored["agent"], restored["tally"]

    def restore_agent(self, step: int, state: AgentState) -> AgentState:
        """Reads the agent's state alone, as `restore` does."""
        return self._read(step, agent=_restore_like(state))["agent"]

    def restore_newest(self, restore_fn: Callable[[int], _T]) -> _T | None:
        """Restores the newest checkpoint that can be read, and puts damaged ones aside.

        Returns the result of `restore_fn`, which reads the checkpoint of a step and raises
        DamagedError if it is damaged; None if there is no checkpoint. Raises ValueError if all are
        damaged.
        """
        faults: dict[int, str] = {}
        for step in reversed(self.steps):
            result, fault = None, ""
            try:
                result = restore_fn(step)
            except DamagedError as error:
                fault = str(error)
            faults[step] = next(filter(None, processes.gather(fault)), "")
            if not faults[step]:
                for damaged in [each for each in faults if each != step]:
                    self._put_aside(damaged, faults[damaged])
                return result
        if faults:
            step, fault = next(iter(faults.items()))
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read; that of step {step}: "
                f"{fault}. Were they saved by another version of this code? Restore them "
                "from a copy, or start a new run with another --run_id."
            )
        return None

    def _open(self) -> dict[int, _Merit]:
        """Makes the folder, and removes what was not written to its end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in (f"*{_PART}*", "*.orbax-checkpoint-tmp*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
        return self._read_merits()

    def _read_merits(self) -> dict[int, _Merit]:
        paths = [path for path in self.folder.glob("*") if path.name.isdigit()]
        rows = read_csv(self.folder.parent / "eval.csv")
        scores = {int(row["step"]): score(row) for row in rows}
        return {int(path.name): _read_merit(path, scores) for path in paths}

    def _finish(self, step: int) -> None:
        """Gives a checkpoint its name once it is on the disk, then removes those it replaces."""
        self._orbax.wait_until_finished()
        if processes.is_first():
            part, folder = self.folder / f"{step}{_PART}", self.folder / str(step)
            write_json(part / _CHECKSUMS, _checksums(part))
            for path in (*part.rglob("*"), part):
                flush_to_disk(path)
            shutil.rmtree(folder, ignore_errors=True)  # of the same step, no milestone
            part.rename(folder)
            flush_to_disk(self.folder)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        milestones = [each for each, merit in self._merits.items() if merit.milestone]
        kept = {*self.steps[-self._keep :], self.best_step, *milestones}
        for old in set(self.steps) - kept:
            del self._merits[old]
            if processes.is_first():
                shutil.rmtree(self.folder / str(old))

    def _read(self, step: int, **items: Any) -> Any:
        """Reads `progress` and other items, after a check of the checkpoint's files."""
        self.wait()
        folder = self.folder / str(step)
        try:
            sealed = (folder / _CHECKSUMS).exists()
            if sealed and read_json(folder / _CHECKSUMS) != _checksums(folder):
                raise DamagedError("its files are not those that were written")
            arguments = ocp.args.Composite(progress=ocp.args.JsonRestore(), **items)
            restored = self._orbax.restore(folder, args=arguments)
            if not sealed:
                _verify_unsealed(restored)
        except Exception as error:  # whatever a damaged file leads to
            if memory.is_exhausted(error):
                raise
            raise DamagedError(_first_line(error)) from error
        return restored

    def _put_aside(self, step: int, error: str) -> None:
        aside = self.folder / f"damaged-{step}"

        def move() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self.folder / str(step), aside)

        processes.from_first(move)
        del self._merits[step]
        _logger.warning(
            "The checkpoint of step %d is damaged (%s); it is now %s, and the one before it is "
            "used.", step, error, aside,
        )  # fmt: skip

    def _failed(self, step: int, error: Exception) -> OSError:
        return OSError(
            f"the checkpoint of step {step} could not be written to {self.folder} "
            f"({_first_line(error)}). Is the disk full? Make room: the same command continues from "
            f"the checkpoint before it; there are {self.steps or 'none'}."
        )


def _taking_part(folder: Path, read_only: bool) -> ocp.options.MultiprocessingOptions:
    """Names the processes that a manager of checkpoints works in; a reader works in one."""
    if not read_only:
        return ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name)
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"reader{index}"
    )


def _restore_like(tree: chex.ArrayTree) -> ocp.args.StandardRestore:
    """Reads a tree of this structure onto the device; with several processes into memory."""
    return ocp.args.StandardRestore(jax.device_get(tree) if processes.several() else tree)


def _read_merit(folder: Path, scores: dict[int, float]) -> _Merit:
    """Reads why a checkpoint is kept; one that cannot tell is kept for good.

    Scores are given by the step of the evaluation; checkpoints of earlier versions hold their own.
    """
    earlier = folder / "metrics" / "metrics"  # of runs before checkpoints had checksums
    try:
        saved = read_json(earlier if earlier.exists() else folder / "progress" / "metadata")
        own = saved["score"] if "score" in saved else scores.get(saved["evaluation"], -math.inf)
        return _Merit(float(own), bool(saved["milestone"]))
    except (OSError, ValueError, LookupError, TypeError):
        return _Merit(-math.inf, milestone=True)


def _checksums(folder: Path) -> dict[str, int]:
    """Returns the CRC-32 of each file of a checkpoint."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


def _verify_unsealed(restored: Any) -> None:
    """Checks a checkpoint of an earlier version, which has one checksum: of the agent's values."""
    saved, value = restored["progress"].get("checksum"), 0
    for leaf in jax.tree.leaves(jax.device_get(restored.get("agent"))):
        value = zlib.crc32(np.asarray(leaf).tobytes(), value)
    if saved is None or ("agent" in restored and value != saved):
        raise DamagedError("its values are not those that were written")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
