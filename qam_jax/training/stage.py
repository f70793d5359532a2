"""A stage of training: updates on a dataset, of several runs together."""

import datetime
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from qam_jax.agents.values import num_consecutive
from qam_jax.data.dataset import sample_windows
from qam_jax.runs import processes
from qam_jax.training.devices import Layout
from qam_jax.training.run import Plan, Run, Snapshot
from qam_jax.training.update import check_finite, compile_block, empty_sums, make_block
from qam_jax.types import Array, Batch, TransitionDataset

_BLOCK_SECONDS = 1.0  # length of one call of the compiled block,
_BRIEF_SECONDS = 0.05  # and while an evaluation waits for the device in between
_FIRST_BLOCK = 10  # updates in the first call, before the speed is known
_SHORT_SECONDS = 60  # a stage that ends sooner needs no estimate

_logger = logging.getLogger(__name__)


class Stage:
    """Updates on a dataset, one for each step of runs that are all at the same step.

    A stage takes over the states and the metrics of its runs, and stacks them, until `release`.
    """

    unit = "update"  # what a step is
    overlaps = True  # whether evaluations may go on during updates
    brief = False  # whether blocks are to be short, while an evaluation is at work

    def __init__(self, plan: Plan, runs: Sequence[Run], layout: Layout):
        self.plan, self.runs, self.layout = plan, runs, layout
        self.name = runs[0].stage
        self.start, self.end = plan.stages[self.name].start, plan.stages[self.name].stop
        self.agent, config = plan.algorithm(self.name)
        sizes = config.batch_size, config.horizon_length, config.discount
        self._windows = *sizes, num_consecutive(config)  # what `sample` draws
        self._block = make_block(self.agent, self.sample, layout)
        self._programs: dict[int, jax.stages.Compiled] = {}  # by the axes of the counts
        self._keys = layout.join([run.batch_key for run in runs])
        self.state, self.sums = layout.join([(run.state, run.sums) for run in runs])
        for run in runs:
            del run.state, run.sums
        self._dataset: TransitionDataset | None = None  # the last one that the source gave,
        self._shared: TransitionDataset | None = None  # and its copy on the devices
        self._block_length, self._estimated = _FIRST_BLOCK, False

    def advance(self, limits: list[int]) -> None:
        """Goes on by one block of updates, or one round of acting and updates.

        A block takes about a second, or less where the data change or a limit is. Each run stops
        at the step that is its limit; the online stage may end somewhat beyond.

        Raises:
          NotFiniteError: if training went wrong.
          Stopped, EnvFailure: from the environments, before anything has changed.
        """
        step, started = self.runs[0].step, time.perf_counter()
        borders = [step + self._block_length, self.plan.source.next_change(step), *limits]
        count = min(border for border in borders if border is not None) - step
        self.update([count] * len(self.runs))
        jax.block_until_ready(self.state)
        speed = count / (time.perf_counter() - started)
        self.log_estimate(self.end - step - count, speed)
        seconds = _BRIEF_SECONDS if self.brief else _BLOCK_SECONDS
        length = max(1, min(2 * self._block_length, int(speed * seconds)))
        self._block_length = processes.gather(length)[0]
        check_finite(self.sums, self.state.params, self.layout)
        for run in self.runs:
            run.step += count

    def update(self, counts: Sequence[int]) -> None:
        """Makes a number of updates of each run. Raises MemoryError if they need too much."""
        equal = len(set(counts)) == 1
        num_updates = np.asarray(counts[0] if equal else counts, np.int32)
        arguments = self.state, self.sums, self._keys, self.data(), num_updates
        if num_updates.ndim not in self._programs:
            self._programs[num_updates.ndim] = compile_block(self._block, *arguments)
        program = self._programs[num_updates.ndim]
        self.state, self.sums = program(*arguments)

    def data(self) -> Any:
        """Returns what the next batches are drawn from."""
        return self.dataset(self.runs[0].step)

    def dataset(self, step: int) -> TransitionDataset:
        """Returns the data of a step, on all devices."""
        dataset = self.plan.source.at(step)
        if self._shared is None or dataset is not self._dataset:
            self._shared = None  # first, which makes room
            self._dataset = dataset
            self._shared = self.layout.share(self.plan.prepare(dataset))
        return self._shared

    def sample(self, data: Any, keys: Array) -> Batch:
        """Draws the batches of all runs, inside the program."""

        def sample(dataset: TransitionDataset, key: Array) -> Batch:
            return sample_windows(dataset, key, *self._windows)

        return self.layout.map(sample, in_axes=(None, 0))(data, keys)

    def snapshot(self, index: int) -> Snapshot:
        """Returns one of the runs as it is now."""
        run = self.runs[index]
        return Snapshot(*self.layout.pick((self.state, self.sums), index), run.step, run.reported)

    def clear_sums(self, index: int) -> None:
        """Starts the metrics of one of the runs anew."""
        self.sums = self.layout.put(self.sums, index, empty_sums(self.sums.sums))

    def release(self) -> None:
        """Gives the runs their states and metrics back."""
        for index, run in enumerate(self.runs):
            state, sums = self.layout.local(self.layout.pick((self.state, self.sums), index))
            run.state, run.sums = state, sums

    def metrics(self, run: Run) -> dict[str, float]:
        """Returns metrics of a run beside the agent's own, by name."""
        return self.plan.source.metrics()

    def save(self, run: Run) -> dict[str, Any]:
        """Returns what a checkpoint of a run needs beside state and metrics."""
        return {}

    def log_estimate(self, num_steps: int, speed: float) -> None:
        """Says, once, how long the remaining steps take at the first speed, in steps per second."""
        seconds = round(num_steps / speed)
        if seconds > _SHORT_SECONDS and not self._estimated:
            _logger.info(
                "%s: about %s for %s %ss at %.3g per second, evaluations aside.",
                self.name, datetime.timedelta(seconds=seconds), f"{num_steps:,}", self.unit, speed,
            )  # fmt: skip
        self._estimated = True

    def close(self) -> None:
        """Ends what runs in the background."""
