"""Offline stages: training on a dataset, and the behaviour cloning before it."""

import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState
from qam_jax.data.dataset import DataSource, sample_windows
from qam_jax.runs import hosts
from qam_jax.training.devices import Layout, SharedData
from qam_jax.training.update import MetricSums, UpdateBlock, check_finite
from qam_jax.types import Array, Batch, TransitionDataset

_BLOCK_SECONDS = 1.0  # length of one call of the compiled block,
_BRIEF_SECONDS = 0.05  # and while an evaluation waits for the device in between
_FIRST_BLOCK = 10  # updates in the first call, before the speed is known


class OfflineStage:
    """Updates on a dataset alone, one for each step; all runs are at the same step.

    Args:
      name: `cloning` or `offline`.
      agent: the algorithm.
      config: its config.
      keys: keys of the batches of each run.
      source: source of the data.
      layout: how the seeds lie on the devices.
      start: step at which the stage starts.
      end: step at which it ends.
    """

    unit, overlaps = "update", True

    def __init__(
        self,
        name: str,
        agent: Agent,
        config: ConfigDict,
        keys: Sequence[Array],
        source: DataSource,
        layout: Layout,
        start: int,
        end: int,
    ):
        self.name, self.agent, self.layout, self.start, self.end = name, agent, layout, start, end
        self._source, self._data = source, SharedData(source, layout)
        self._block_length, self.brief = _FIRST_BLOCK, False

        def sample(dataset: TransitionDataset, key: Array) -> Batch:
            return sample_windows(
                dataset, key, config.batch_size, config.horizon_length, config.discount
            )

        sample_all = layout.map(sample, in_axes=(None, 0))
        self._block = UpdateBlock(agent, layout.join(keys), sample_all, layout)

    def advance(
        self, state: AgentState, sums: MetricSums, steps: list[int], limits: list[int]
    ) -> tuple[AgentState, MetricSums, list[int]]:
        """Makes a block of updates.

        Args:
          state: states of the agents, stacked; donated.
          sums: metrics since their last row, stacked; donated.
          steps: step of each run.
          limits: step of each run that the block must not pass.

        Returns:
          The new states, sums and steps.

        Raises:
          NotFiniteError: if training went wrong.
        """
        step = steps[0]
        borders = [step + self._block_length, self._source.next_change(step), *limits]
        count = min(border for border in borders if border is not None) - step
        counts, started = [count] * len(steps), time.perf_counter()
        state, sums = jax.block_until_ready(self._block(state, sums, self._data.at(step), counts))
        speed = count / (time.perf_counter() - started)
        seconds = _BRIEF_SECONDS if self.brief else _BLOCK_SECONDS
        length = max(1, min(2 * self._block_length, int(speed * seconds)))
        self._block_length = hosts.gather(length)[0]
        check_finite(sums, state.params, self.layout)
        return state, sums, [step + count] * len(steps)

    def metrics(self, index: int) -> dict[str, float]:
        """Returns metrics of a run beside the agent's own."""
        return self._source.metrics()

    def save(self, index: int) -> dict[str, Any]:
        """Returns what a checkpoint of a run needs beside state and metrics: nothing."""
        return {}

    def close(self) -> None:
        """Releases what the stage holds."""
