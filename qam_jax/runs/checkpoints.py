"""Checkpoints of a run by orbax: asynchronous, atomic, and checked when they are read."""

import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from qam_jax.agents import Agent, AgentState, make_agent, network_change
from qam_jax.agents.bc import behavior_config
from qam_jax.files import DamagedError
from qam_jax.runs import hosts
from qam_jax.runs.folder import read_config, read_metadata
from qam_jax.types import Array

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_SPARE_BYTES = 10**6  # for orbax's own files
_UNKNOWN = -math.inf  # a score


class Checkpoints:
    """Checkpoints in a run's folder: the newest `keep`, the best, and the end of each stage.

    A checkpoint holds the agent's state, the metrics since their last row, and `progress`: as JSON,
    whatever else it takes to continue. Several processes that train together all call the same
    methods; each writes a part of the arrays, process 0 everything else.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2, *, read_only: bool = False):
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(get_metric_fn=_score, n=1),
                _Milestones(),
            ]
        )
        self._manager = ocp.CheckpointManager(
            Path(folder).expanduser().absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,
                preservation_policy=None if read_only else policy,
                create=not read_only,
                multiprocessing_options=_taking_part(Path(folder), read_only),
            ),
        )

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self._manager.directory)

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score, the newest of equals; None without scores."""
        scores = [(_score(self._manager.metrics(step)), step) for step in self.steps]
        best, step = max(scores, default=(_UNKNOWN, None))
        return None if best == _UNKNOWN else step

    def find(self, step: int | str) -> int:
        """Finds the step of a checkpoint by its number, or by `newest` or `best`.

        Raises:
          FileNotFoundError: if there is no such checkpoint; names the steps that there are.
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
        score: float | None = None,
        milestone: bool = False,
    ) -> None:
        """Starts to write a checkpoint.

        A run that was stopped during an evaluation has a checkpoint of that step already. It gives
        way only to a milestone, or to a checkpoint with a score.

        Args:
          step: step of the run.
          state: the agent's state, on the devices of all processes.
          sums: metrics since their last row.
          progress: anything else, for JSON.
          score: the higher, the better; None if unknown.
          milestone: whether the checkpoint is kept for good.

        Raises:
          OSError: if this checkpoint or the one before cannot be written. Older ones remain.
        """
        if step in self.steps:
            if score is None and not milestone:
                return
            self.wait()
            self._manager.delete(step)
        items = jax.device_get((state, sums))
        self._check_space(step, items)
        arguments = ocp.args.Composite(
            agent=ocp.args.StandardSave(state if hosts.several() else items[0]),
            tally=ocp.args.StandardSave(items[1]),
            progress=ocp.args.JsonSave({**progress, "checksum": _checksum(items[0])}),
        )
        metrics = {"score": _UNKNOWN if score is None else score, "milestone": milestone}
        try:
            self._manager.save(step, args=arguments, metrics=metrics)
        except Exception as error:
            raise self._failed(step, error) from error

    def read_progress(self, step: int) -> dict[str, Any]:
        """Reads the `progress` of a checkpoint. Raises DamagedError if it cannot be read."""
        return self._read(step, progress=ocp.args.JsonRestore())["progress"]

    def restore(
        self, step: int, state: AgentState, sums: chex.ArrayTree
    ) -> tuple[AgentState, chex.ArrayTree]:
        """Reads a checkpoint into the structure of a state and of sums.

        Raises:
          DamagedError: if it cannot be read, or the values differ from the saved ones.
        """
        restored = self._read(
            step,
            agent=_restore_like(state),
            tally=_restore_like(sums),
            progress=ocp.args.JsonRestore(),
        )
        _verify(restored)
        return restored["agent"], restored["tally"]

    def restore_agent(self, step: int, state: AgentState) -> AgentState:
        """Reads the agent's state alone, as `restore` does."""
        restored = self._read(step, agent=_restore_like(state), progress=ocp.args.JsonRestore())
        _verify(restored)
        return restored["agent"]

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # whatever a damaged file leads to
            raise DamagedError(_first_line(error)) from error

    def restore_newest(self, restore_fn: Callable[[int], _T]) -> _T | None:
        """Restores the newest checkpoint that can be read, and puts damaged ones aside.

        Args:
          restore_fn: reads the checkpoint of a step; raises DamagedError if it is damaged.

        Returns:
          The result of `restore_fn`; None if there is no checkpoint.

        Raises:
          ValueError: if all checkpoints are damaged.
        """
        steps, damaged = self.steps, []
        for step in reversed(steps):
            result, trouble = None, ""
            try:
                result = restore_fn(step)
            except DamagedError as error:
                trouble = str(error)
            trouble = next(filter(None, hosts.gather(trouble)), "")
            if trouble:
                damaged.append((step, trouble))
                continue
            for bad, fault in damaged:
                self._put_aside(bad, fault)
            return result
        if damaged:
            step, fault = damaged[0]
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read; that of step {step}: "
                f"{fault}. Were they saved by another version of this code? Restore them "
                "from a copy, or start a new run with another --run_id."
            )
        return None

    def wait(self) -> None:
        """Waits until everything is on disk; raises OSError if it cannot be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(None, error) from error

    def close(self) -> None:
        """Waits, and releases the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _put_aside(self, step: int, error: str) -> None:
        aside = self.folder / f"damaged-{step}"

        def move() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self.folder / str(step), aside)

        hosts.from_first(move)
        self._manager.reload()
        _logger.warning(
            "The checkpoint of step %d is damaged (%s); it is now %s, and the one before it is "
            "used.", step, error, aside,
        )  # fmt: skip

    def _check_space(self, step: int, items: chex.ArrayTree) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._failed(step, OSError(f"{needed:,} bytes needed, {free:,} free"))

    def _failed(self, step: int | None, error: Exception) -> OSError:
        which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        return OSError(
            f"{which} could not be written to {self.folder} ({_first_line(error)}). Is the disk "
            "full? Make room: the same command continues from the checkpoint before it; there are "
            f"{self.steps or 'none'}."
        )


def init_state(agent: Agent, key: Array, observation_dim: int, action_dim: int) -> AgentState:
    """Returns the agent's state before its first update."""
    return jax.jit(agent.init)(key, jnp.zeros(observation_dim), jnp.zeros(action_dim))


class SavedRun(NamedTuple):
    """A saved run: config.json, the agent of the checkpoint's stage, its state, and the step."""

    config: ConfigDict
    agent: Agent
    state: AgentState
    step: int


def load_run(folder: str | os.PathLike, step: int | str = "newest") -> SavedRun:
    """Reads a run from its folder, `exp/<group>/<env_name>/<run id>`.

    Args:
      folder: the run's folder.
      step: the checkpoint's step, `newest` or `best`.

    Raises:
      FileNotFoundError: if it is not a run's folder, or there is no such checkpoint.
      ValueError: if the algorithm had other networks in the version that wrote it.
    """
    config, metadata = ConfigDict(read_config(folder)), read_metadata(folder)
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        found = checkpoints.find(step)
        progress = checkpoints.read_progress(found)
        cloning = progress["stage"] == "cloning"
        agent_config = behavior_config(config.agent) if cloning else config.agent
        check_networks(folder, agent_config)
        agent = make_agent(agent_config)
        state = init_state(
            agent, jax.random.PRNGKey(0), metadata["observation_dim"], metadata["action_dim"]
        )
        return SavedRun(config, agent, checkpoints.restore_agent(found, state), found)
    except DamagedError as error:
        others = ", ".join(str(other) for other in checkpoints.steps if other != found)
        advice = f"give another by its step: {others}" if others else "there is no other"
        raise DamagedError(
            f"the checkpoint of step {found} in {checkpoints.folder} is damaged ({error}); "
            f"{advice}."
        ) from error
    finally:
        checkpoints.close()


def check_networks(folder: str | os.PathLike, config: ConfigDict) -> None:
    """Raises ValueError if an algorithm had other networks in the version that began a run.

    Args:
      folder: the run's folder.
      config: of the algorithm whose state the checkpoint holds.
    """
    start = read_metadata(folder)["starts"][0]
    version = start["versions"].get("qam_jax")
    change = network_change(config, version)
    if change is not None:
        raise ValueError(
            f"the checkpoints in {folder} were written by qam_jax {version or 'before 0.2.0'} "
            f"(git revision {start.get('git_revision') or 'unknown'}), and {config.agent_name!r} "
            f"has changed in {change.version}: {change.what}. Use them with the version that wrote "
            "them, or start a new run with another --run_id."
        )


def _taking_part(folder: Path, read_only: bool) -> ocp.options.MultiprocessingOptions:
    """Names the processes that a manager of checkpoints works in; a reader works in one."""
    if hosts.several() and read_only:
        index = jax.process_index()
        return ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"reader{index}"
        )
    return ocp.options.MultiprocessingOptions(
        barrier_sync_key_prefix=folder.name if hosts.several() else None
    )


def _restore_like(tree: chex.ArrayTree) -> ocp.args.StandardRestore:
    """Reads a tree of this structure onto the device; with several processes into memory."""
    return ocp.args.StandardRestore(jax.device_get(tree) if hosts.several() else tree)


class _Milestones(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints that were saved as milestones."""

    def should_preserve(
        self, checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo], *, context: Any
    ) -> Sequence[bool]:
        return [bool(checkpoint.metrics["milestone"]) for checkpoint in checkpoints]


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _checksum(tree: chex.ArrayTree) -> int:
    value = 0
    for leaf in jax.tree.leaves(tree):
        content: Any = np.ascontiguousarray(leaf)
        value = zlib.crc32(content, value)
    return value


def _verify(restored: Any) -> None:
    if _checksum(jax.device_get(restored["agent"])) != restored["progress"]["checksum"]:
        raise DamagedError("its values have changed since they were saved")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
