"""Executes chunks of actions in a control loop that is faster than the policy.

Time is counted in control steps. Row `i` of a chunk is meant for `i` steps after the observation
that it was computed from.
"""

import collections
import concurrent.futures
from collections.abc import Callable

import numpy as np

MODES = ("synchronous", "held", "real_time")

InferFn = Callable[..., np.ndarray]
"""`(observation [O]) -> chunk [H, A]`, and `(observation, known [H, A], weights [H]) -> chunk`.

The second form is for `real_time` alone: the chunk follows `known` by the weights.
"""

_DELAYS_KEPT = 10


class ChunkExecutor:
    """Gives an action at every control step, while the next chunk is being computed.

    The next inference starts when `execution_horizon` rows of the chunk have been executed, from
    the observation of that step. It ends some steps later, by the delay. Meanwhile:

    - `synchronous`: the robot waits. Then the new chunk is executed from its first row, late by
      the delay.
    - `held`: the rest of the old chunk is executed. Then the new chunk goes on at the row that is
      meant for this step.
    - `real_time`: as `held`, but the new chunk is made to continue the old one (real-time chunking,
      arXiv 2506.07339). Its rows that will pass during the inference are held to the actions that
      are executed then, the others follow the old chunk softly.

    Where a chunk runs out, and while the robot waits, the last action is repeated. A chunk is never
    padded with zeros.

    The first inference of an episode is waited for, as no action is there yet; it is not counted
    as a delay. With `real_time` it calls `infer` in both forms, so that both are compiled then.

    Args:
      infer: the policy, see `InferFn`, such as `Policy.act_chunk`.
      mode: one of `MODES`.
      execution_horizon: rows, 1 to H; by default as many as leave a rest of the chunk for the
        expected delay, or with `synchronous` all.
      delay: steps that an inference takes in simulated time. By default the inference runs in a
        thread, in real time.
      expected_delay: steps, until a delay is measured. Then the longest of the last ten counts.
      idle_action: [A], while `synchronous` waits, in place of the last action. Zeros stand still if
        actions are relative, as in OGBench's manipulation.

    Raises:
      ValueError: if the mode is unknown or a number is out of range.

    Examples:
      >>> infer = lambda observation: 10 * observation + np.arange(3.0)[:, None]
      >>> executor = ChunkExecutor(infer, mode="held", delay=1)
      >>> [float(executor.act(np.array([step]))[0]) for step in range(5)]
      [0.0, 1.0, 2.0, 21.0, 22.0]
    """

    def __init__(
        self,
        infer: InferFn,
        *,
        mode: str = "real_time",
        execution_horizon: int | None = None,
        delay: int | None = None,
        expected_delay: int = 1,
        idle_action: np.ndarray | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        if execution_horizon is not None and execution_horizon < 1:
            raise ValueError(f"execution_horizon must be at least 1, got {execution_horizon}.")
        expected = expected_delay if delay is None else delay
        if expected < 0:
            raise ValueError(f"a delay must be at least 0 steps, got {expected}.")
        self._infer, self._mode = infer, mode
        self._given_horizon, self._delay = execution_horizon, delay
        self._idle_action = idle_action
        self._delays = collections.deque([expected], maxlen=_DELAYS_KEPT)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "inference")
        self._chunk: np.ndarray | None = None
        self._row = self._waited = 0  # next row to execute; steps since the inference began
        self._pending: concurrent.futures.Future[np.ndarray] | None = None

    def reset(self) -> None:
        """Begins an episode: drops the chunk, after the inference in progress."""
        concurrent.futures.wait([self._pending] if self._pending else [])
        self._chunk = self._pending = None

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the action [A] for this control step.

        It waits for the policy only at the start of an episode. An error of `infer` is raised here,
        when its chunk is due.
        """
        if self._chunk is None:
            self._chunk = self._thread.submit(self._first_chunk, observation).result()
            self._row = 0
        self._adopt()
        if self._pending is None and self._row >= self.execution_horizon:
            self._start(observation)
            self._adopt()  # with no delay at once
        row, length = self._row, len(self._chunk)
        self._row += 1
        self._waited += 1
        if self._mode == "synchronous":
            length = self.execution_horizon
            if row >= length and self._idle_action is not None:
                return self._idle_action
        return self._chunk[min(row, length - 1)]

    @property
    def expected_delay(self) -> int:
        """Steps that the next inference is expected to take."""
        return max(self._delays)

    @property
    def execution_horizon(self) -> int:
        """Rows of the current chunk after which the next inference starts. Call `act` before.

        Raises ValueError if the given horizon is longer than a chunk.
        """
        assert self._chunk is not None
        length = len(self._chunk)
        if self._given_horizon is None:
            return length if self._mode == "synchronous" else max(1, length - self.expected_delay)
        if self._given_horizon > length:
            raise ValueError(
                f"execution_horizon = {self._given_horizon} is longer than a chunk of {length}."
            )
        return self._given_horizon

    def close(self) -> None:
        """Ends the thread, after the inference in progress."""
        self._thread.shutdown(cancel_futures=True)

    def _first_chunk(self, observation: np.ndarray) -> np.ndarray:
        chunk = self._infer(observation)
        if not isinstance(chunk, np.ndarray) or chunk.ndim != 2 or not len(chunk):
            raise ValueError(
                "infer must return a chunk of actions, an array [H, A] with at least one row; got "
                f"{getattr(chunk, 'shape', type(chunk).__name__)}."
            )
        if self._mode == "real_time":  # nothing is known
            chunk = self._infer(observation, chunk, np.zeros(len(chunk), np.float32))
        return chunk

    def _start(self, observation: np.ndarray) -> None:
        inputs = [np.array(observation)]  # the caller may reuse its own
        if self._mode == "real_time":
            assert self._chunk is not None
            length = len(self._chunk)
            rows = np.minimum(self._row + np.arange(length), length - 1)
            weights = soft_mask(length, self.expected_delay, max(0, length - self._row))
            inputs += [self._chunk[rows], weights]
        self._pending, self._waited = self._thread.submit(self._infer, *inputs), 0

    def _adopt(self) -> None:
        """Goes on with the chunk whose inference has ended, if any."""
        if self._pending is None:
            return
        if not (self._pending.done() if self._delay is None else self._waited >= self._delay):
            return
        pending, self._pending = self._pending, None
        self._chunk = pending.result()
        self._delays.append(self._waited)
        self._row = 0 if self._mode == "synchronous" else self._waited


def soft_mask(length: int, delay: int, overlap: int) -> np.ndarray:
    """Weights [H] by which a new chunk follows the old one (arXiv 2506.07339, eq. 5).

    The first `delay` rows have weight 1. The weight then falls, faster than exponentially, to 0
    at row `overlap`. With `c_i = (overlap - i) / (overlap - delay + 1)` it is
    `c_i (e^c_i - 1) / (e - 1)`.

    Args:
      length: `H`, rows of the new chunk.
      delay: rows that will have passed when it arrives.
      overlap: rows for which the old chunk has an action.

    Returns:
      [H], float32.

    Examples:
      >>> print(soft_mask(5, 1, 3).round(2))
      [1.   0.37 0.08 0.   0.  ]
    """
    rows = np.arange(length)
    shares = (overlap - rows) / max(1, overlap - delay + 1)
    weights = np.where(rows < overlap, shares * np.expm1(shares) / np.expm1(1), 0)
    return np.where(rows < delay, 1, weights).astype(np.float32)
