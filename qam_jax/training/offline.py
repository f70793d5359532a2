"""Training on a dataset: the offline stage, and the stage of behaviour cloning before it."""

import time
from typing import Any

import jax
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState
from qam_jax.data.dataset import sample_windows
from qam_jax.data.sources import DataSource
from qam_jax.training.updates import Tally, UpdateBlock, check_finite, shapes_of
from qam_jax.types import Array, Batch, TransitionDataset

_BLOCK_SECONDS = 1.0  # how long one call of the compiled block is to take
_FIRST_BLOCK = 10  # updates in the first call, before the speed is known


class OfflineStage:
    """Updates on a dataset alone, one for each step.

    Args:
      name: `cloning` or `offline`.
      agent: the algorithm.
      config: its config.
      key: source of the batches.
      source: the data.
      start: the run's step at which the stage starts.
      end: the step at which it ends.
      step: the step at which it is entered now.
    """

    unit = "update"

    def __init__(
        self,
        name: str,
        agent: Agent,
        config: ConfigDict,
        key: Array,
        source: DataSource,
        start: int,
        end: int,
        step: int,
    ):
        self.name, self.agent, self.start, self.end = name, agent, start, end
        self._source = source
        self._data_shapes = shapes_of(source.at(step))
        self._block_length = _FIRST_BLOCK

        def sample(dataset: TransitionDataset, key: Array) -> Batch:
            return sample_windows(
                dataset, key, config.batch_size, config.horizon_length, config.discount
            )

        self._block = UpdateBlock(agent, key, sample)

    def empty_tally(self, state: AgentState) -> Tally:
        """A tally of no updates."""
        return self._block.empty_tally(state, self._data_shapes)

    def advance(
        self, state: AgentState, tally: Tally, step: int, limit: int
    ) -> tuple[AgentState, Tally, int]:
        """Makes a block of updates.

        Args:
          state: the agent's; donated.
          tally: metrics since their last row; donated.
          step: of the run.
          limit: step beyond which the block must not go.

        Returns:
          The new state, tally and step.

        Raises:
          NotFiniteError: if training went wrong.
        """
        change = self._source.next_change(step)
        count = min(self._block_length, min(limit, change or limit) - step)
        started = time.perf_counter()
        state, tally = jax.block_until_ready(
            self._block(state, tally, self._source.at(step), count)
        )
        speed = count / (time.perf_counter() - started)
        self._block_length = max(1, min(2 * self._block_length, int(speed * _BLOCK_SECONDS)))
        check_finite(tally, state.params)
        return state, tally, step + count

    def metrics(self) -> dict[str, float]:
        """What to log beside the agent's metrics."""
        return self._source.metrics()

    def save(self) -> dict[str, Any]:
        """What it takes to continue, beside the state and the tally: nothing."""
        return {}

    def restore(self, progress: dict[str, Any]) -> None:
        """Continues from what `save` returned."""

    def close(self) -> None:
        """Lets go of what the stage holds."""
