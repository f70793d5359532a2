"""Checkpoints of the whole agent state, by orbax: written asynchronously and atomically."""

import os
from pathlib import Path

import orbax.checkpoint as ocp

from qam_jax.agents import AgentState


class Checkpoints:
    """The checkpoints in a run's folder; keeps the newest few.

    Args:
      folder: the run's folder.
      max_to_keep: how many to keep.
    """

    def __init__(self, folder: str | os.PathLike, max_to_keep: int = 2):
        self._manager = ocp.CheckpointManager(
            Path(folder).expanduser().absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep),
        )

    @property
    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: AgentState) -> None:
        """Starts to write the state under its own step, unless it is there."""
        step = int(state.step)
        if step not in self.steps:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, state: AgentState, step: int | None = None) -> AgentState:
        """Reads a state.

        Args:
          state: a state of the same agent, which tells the structure; its values are not used.
          step: which checkpoint; the newest by default.

        Raises:
          FileNotFoundError: if there is no such checkpoint; names those that there are.
        """
        step = self.steps[-1] if step is None and self.steps else step
        if step not in self.steps:
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(
                f"{wanted} in {self._manager.directory}; there are: {self.steps or 'none'}."
            )
        return self._manager.restore(step, args=ocp.args.StandardRestore(state))

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()
