"""Training on a dataset: the offline stage, and the stage of behaviour cloning before it."""

import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState
from qam_jax.data.dataset import DataSource, sample_windows
from qam_jax.training import exchange
from qam_jax.training.devices import Lanes, SharedData
from qam_jax.training.update import Tally, UpdateBlock, check_all_finite
from qam_jax.types import Array, Batch, TransitionDataset

_BLOCK_SECONDS = 1.0  # how long one call of the compiled block is to take,
_BRIEF_SECONDS = 0.05  # and while an evaluation waits for the device in between
_FIRST_BLOCK = 10  # updates in the first call, before the speed is known


class OfflineStage:
    """Updates on a dataset alone, one for each step.

    Args:
      name: `cloning` or `offline`.
      agent: the algorithm.
      config: its config.
      keys: sources of the batches of each run.
      source: the data.
      lanes: the runs.
      start: the run's step at which the stage starts.
      end: the step at which it ends.
    """

    unit, overlaps = "update", True

    def __init__(
        self,
        name: str,
        agent: Agent,
        config: ConfigDict,
        keys: Sequence[Array],
        source: DataSource,
        lanes: Lanes,
        start: int,
        end: int,
    ):
        self.name, self.agent, self.lanes, self.start, self.end = name, agent, lanes, start, end
        self._source, self._data = source, SharedData(source, lanes)
        self._block_length, self.brief = _FIRST_BLOCK, False

        def sample(dataset: TransitionDataset, key: Array) -> Batch:
            return sample_windows(
                dataset, key, config.batch_size, config.horizon_length, config.discount
            )

        sample_all = lanes.map(sample, in_axes=(None, 0))
        self._block = UpdateBlock(agent, lanes.join(keys), sample_all, lanes)

    def advance(
        self, state: AgentState, tally: Tally, steps: list[int], limits: list[int]
    ) -> tuple[AgentState, Tally, list[int]]:
        """Makes a block of updates.

        Runs that are ahead of others wait.

        Args:
          state: the agents', joined; donated.
          tally: metrics since their last row, joined; donated.
          steps: of each run.
          limits: steps beyond which the block must not go, or where a run is to wait.

        Returns:
          The new state, tally and steps.

        Raises:
          NotFiniteError: if training went wrong.
        """
        going = [index for index, step in enumerate(steps) if step < limits[index]]
        step = min(steps[index] for index in going)
        borders = [self._source.next_change(step), *(limits[index] for index in going), *steps]
        border = min(border for border in borders if border is not None and border > step)
        count = min(self._block_length, border - step)
        counts = [count if i in going and steps[i] == step else 0 for i in range(len(steps))]
        started = time.perf_counter()
        state, tally = jax.block_until_ready(self._block(state, tally, self._data.at(step), counts))
        speed = count / (time.perf_counter() - started)
        seconds = _BRIEF_SECONDS if self.brief else _BLOCK_SECONDS
        length = max(1, min(2 * self._block_length, int(speed * seconds)))
        self._block_length = exchange.from_first("block length", lambda: length)
        check_all_finite(self.lanes, tally, state.params)
        return state, tally, [step + count for step, count in zip(steps, counts, strict=True)]

    def metrics(self, index: int) -> dict[str, float]:
        """What to log of a run beside the agent's metrics."""
        return self._source.metrics()

    def save(self, index: int) -> dict[str, object]:
        """What it takes to continue a run, beside the state and the tally: nothing."""
        return {}

    def close(self) -> None:
        """Lets go of what the stage holds."""
