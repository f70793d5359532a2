"""Environments side by side that survive each other's crashes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from qam_jax.envs.workers import WorkerError, Workers
from qam_jax.envs.wrappers import OpenLoopChunks

_logger = logging.getLogger(__name__)


class EnvsRestarted(Exception):
    """The environments were started anew: all episodes in progress are lost, the caller resets."""


class EnvFailure(RuntimeError):
    """The environments cannot be made, or have crashed too often."""


def make_vector_env(
    env_fn: Callable[[], gymnasium.Env], horizon_length: int, num_envs: int
) -> gymnasium.vector.VectorEnv:
    """Environments stepped in parallel processes, a chunk of actions at a time.

    Environments are not reset on their own: the caller resets those that have ended, with
    `options={"reset_mask": ...}`, and so chooses each episode's seed.

    Args:
      env_fn: makes one environment; picklable.
      horizon_length: `H`, actions in a chunk.
      num_envs: how many.

    Returns:
      A vector environment with observations [num_envs, O] and actions [num_envs, H, A].

    Raises:
      WorkerError: here or later, if an environment raised an error or its process ended.
    """
    return Workers(partial(_make_chunked, env_fn, horizon_length), num_envs)


class EnvPool:
    """A vector environment that survives its environments' crashes.

    A crash is an error in an environment, one that is not finite, or the end of its process. All
    processes are then started anew, and `EnvsRestarted` tells the caller to reset; the same goes
    for a call that a signal handler interrupted, which does not count as a crash. There is no
    limit on how long a step may take.

    Args:
      env_fn: makes one environment; picklable.
      horizon_length: `H`, actions in a chunk.
      num_envs: how many.
      max_crashes: how many crashes are survived.

    Attributes:
      num_envs: how many.
      crashes: how many there were so far; may be set, to go on counting.

    Raises:
      EnvFailure: if the environments cannot be made in the first place.
    """

    def __init__(
        self,
        env_fn: Callable[[], gymnasium.Env],
        horizon_length: int,
        num_envs: int,
        *,
        max_crashes: int,
    ):
        self.num_envs = num_envs
        self.crashes = 0
        self._max_crashes = max_crashes
        self._closed = False
        self._make = partial(make_vector_env, env_fn, horizon_length, num_envs)
        try:
            self._envs = self._make()
        except WorkerError as error:
            _log_details(error)
            raise EnvFailure(f"the environment cannot be made: {error}") from None

    def reset(
        self,
        seeds: Sequence[int],
        mask: np.ndarray,
        replay: Mapping[int, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in the environments that `mask` [num_envs] selects.

        Args:
          seeds: of the episodes, one for each environment; those not selected are ignored.
          mask: bool, at least one True.
          replay: actions [n, A] to execute at once, by the episode's seed.

        Returns:
          Observations [num_envs, O] and infos, each [num_envs, ...], see `EpisodeSummary`; the
          latest ones where `mask` is False.

        Raises:
          EnvsRestarted: if the processes were started anew.
          EnvFailure: if there were too many crashes.
        """
        return self._call(
            lambda envs: envs.reset(
                seed=seeds, options={"reset_mask": mask, "replay": dict(replay or {})}
            )
        )

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Executes a chunk of actions [num_envs, H, A].

        Returns:
          Observations [num_envs, O]; rewards, terminated and truncated, each [num_envs]; infos,
          each [num_envs, ...], see `EpisodeSummary`.

        Raises:
          EnvsRestarted: if the processes were started anew.
          EnvFailure: if there were too many crashes.
        """
        return self._call(lambda envs: envs.step(actions))

    def close(self) -> None:
        """Ends the environments' processes."""
        self._closed = True
        self._envs.close()

    def _call(self, function: Callable[[gymnasium.vector.VectorEnv], Any]) -> Any:
        if self._closed:
            raise gymnasium.error.ClosedEnvironmentError("the environments have been closed.")
        if self._envs.closed:
            self._restart("the call before was interrupted")
        try:
            return function(self._envs)
        except WorkerError as error:
            self._count(error)
            self._restart(str(error))

    def _restart(self, reason: str) -> None:
        """Starts all processes anew, until that succeeds, and raises EnvsRestarted."""
        while True:
            try:
                self._envs = self._make()
            except WorkerError as error:
                self._count(error)
            else:
                raise EnvsRestarted(f"the environments were started anew, since {reason}.")

    def _count(self, error: WorkerError) -> None:
        self.crashes += 1
        _log_details(error)
        _logger.warning(
            "Crash %d of the environments (%d are survived): %s",
            self.crashes,
            self._max_crashes,
            error,
        )
        if self.crashes > self._max_crashes:
            self.close()
            raise EnvFailure(
                f"the environments crashed {self.crashes} times, more than the "
                f"{self._max_crashes} that are survived. The last crash was {error}. Mend the "
                "environment (--verbosity=1 shows where each error arose), or raise "
                "--max_env_crashes if such crashes are rare and harmless."
            )


def _log_details(error: WorkerError) -> None:
    if error.details:
        _logger.debug("Details of the environment's error:\n%s", error.details)


def _make_chunked(env_fn: Callable[[], gymnasium.Env], horizon_length: int) -> gymnasium.Env:
    return OpenLoopChunks(env_fn(), horizon_length)
