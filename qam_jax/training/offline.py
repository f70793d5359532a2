"""Offline stages: training on a dataset, and the behaviour cloning before it."""

import time
from collections.abc import Sequence

import jax

from qam_jax.agents import AgentState
from qam_jax.agents.values import num_consecutive
from qam_jax.data.dataset import sample_windows
from qam_jax.runs import processes
from qam_jax.training.devices import Layout
from qam_jax.training.loop import Stage
from qam_jax.training.run import Plan, Run
from qam_jax.training.update import MetricSums, UpdateBlock, check_finite
from qam_jax.types import Array, Batch, TransitionDataset

_BLOCK_SECONDS = 1.0  # length of one call of the compiled block,
_BRIEF_SECONDS = 0.05  # and while an evaluation waits for the device in between
_FIRST_BLOCK = 10  # updates in the first call, before the speed is known


class OfflineStage(Stage):
    """Updates on a dataset alone, one for each step; all runs are at the same step."""

    def __init__(self, plan: Plan, runs: Sequence[Run], layout: Layout):
        super().__init__(plan, runs, layout)
        self._block_length, config = _FIRST_BLOCK, self.config

        def sample(dataset: TransitionDataset, key: Array) -> Batch:
            return sample_windows(
                dataset, key, config.batch_size, config.horizon_length, config.discount,
                num_consecutive(config),
            )  # fmt: skip

        keys = layout.join([run.batch_key for run in runs])
        self.block = UpdateBlock(self.agent, keys, layout.map(sample, in_axes=(None, 0)), layout)

    def data(self) -> TransitionDataset:
        """Returns the data of the next update."""
        return self.dataset(self.runs[0].step)

    def advance(
        self, state: AgentState, sums: MetricSums, limits: list[int]
    ) -> tuple[AgentState, MetricSums]:
        """Makes a block of updates of about a second, or less where data change or a limit is."""
        step, started = self.runs[0].step, time.perf_counter()
        borders = [step + self._block_length, self.source.next_change(step), *limits]
        count = min(border for border in borders if border is not None) - step
        counts = [count] * len(self.runs)
        state, sums = jax.block_until_ready(self.block(state, sums, self.data(), counts))
        speed = count / (time.perf_counter() - started)
        self.log_estimate(self.end - step - count, speed)
        seconds = _BRIEF_SECONDS if self.brief else _BLOCK_SECONDS
        length = max(1, min(2 * self._block_length, int(speed * seconds)))
        self._block_length = processes.gather(length)[0]
        check_finite(sums, state.params, self.layout)
        for run in self.runs:
            run.step += count
        return state, sums
