"""Environments in processes of their own, stepped together, that survive each other's crashes."""

import contextlib
import logging
import multiprocessing
import multiprocessing.util
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper, clear_mpi_env_vars

from qam_jax.envs.wrappers import OpenLoopChunks
from qam_jax.errors import explain

_CLOSE_SECONDS = 5.0  # for the environments to close by themselves
_WAIT_SECONDS = 0.5  # between two calls of `on_wait`
_TASKS = {"at_rest": "start", "reset": "reset", "step": "execute a chunk of actions"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_logger = logging.getLogger(__name__)


class EnvsRestarted(Exception):
    """The environments were started anew, for this reason: all episodes in progress are lost."""


class EnvFailure(RuntimeError):
    """The environments cannot be made, or have crashed too often."""


class _CrashError(Exception):
    """An environment raised an error, or its process ended."""


class EnvPool:
    """Environments stepped in parallel, a chunk of actions at a time.

    Own code, because gymnasium's `AsyncVectorEnv` blocks on errors that cannot be pickled. The
    caller resets the environments that have ended, and so chooses each episode's seed.

    A crash is an error in an environment, a value that is not finite, the end of its process, or
    an answer that takes too long. All processes are then started anew, and `EnvsRestarted` tells
    the caller to reset. The same happens after a call that was interrupted, by `on_wait` or a
    signal handler, which does not count as a crash.

    The processes ignore SIGINT, SIGTERM and SIGHUP, which clusters and terminals send to all alike:
    this process decides when they end. They end by themselves when this process is gone.

    Args:
      env_fn: makes one of `num_envs` environments with observations [O], for cloudpickle.
      horizon_length: `H`, actions in a chunk.
      max_crashes: number of crashes to survive; the next one raises EnvFailure.
      timeout: seconds in which an environment has to start, to reset, or to execute a chunk.
      on_wait: called before each call of the environments, and often while it waits for them; may
        raise to interrupt the call.

    `crashes` is the number of crashes so far; it may be set, to go on counting. Raises EnvFailure
    if the environments cannot be made.
    """

    def __init__(
        self,
        env_fn: Callable[[], gymnasium.Env],
        horizon_length: int,
        num_envs: int,
        *,
        max_crashes: int,
        timeout: float = 60.0,
        on_wait: Callable[[], None] = lambda: None,
    ):
        self.num_envs = num_envs
        self._horizon_length, self._timeout, self._on_wait = horizon_length, timeout, on_wait
        self.crashes = 0
        self._max_crashes = max_crashes
        self._closed = False
        self._arguments = pickle.dumps(CloudpickleWrapper(env_fn)), horizon_length
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        # Also at exit, before multiprocessing sends its SIGTERM and waits.
        self._finalizer = multiprocessing.util.Finalize(
            self, _kill, args=(self._processes, self._pipes), exitpriority=100
        )
        try:
            self._start()
        except _CrashError as error:
            self.close()
            raise EnvFailure(f"the environment cannot be made: {error}") from None

    def reset(
        self, seeds: Sequence[int], mask: np.ndarray, replay: Mapping[int, np.ndarray] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in the environments that `mask` [num_envs] selects, one at least.

        Args:
          seeds: seeds of the episodes, one for each environment; others than selected are ignored.
          mask: bool [num_envs].
          replay: actions [n, A] to execute at once, by the episode's seed.

        Returns observations [num_envs, O] and infos, each [num_envs, ...], see `EpisodeSummary`.
        Where `mask` is False they are the latest ones, and zeros before the first reset. Raises
        EnvsRestarted if the processes were started anew, EnvFailure after too many crashes.
        """
        options = {"replay": dict(replay or {})}
        chosen = np.flatnonzero(mask).tolist()
        selected = {i: {"seed": seeds[i], "options": options} for i in chosen}
        longest = max(map(len, options["replay"].values()), default=0)
        chunks = -(-longest // self._horizon_length)
        self._latest |= self._call("reset", selected, (1 + chunks) * self._timeout)
        return self._stack()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Executes a chunk of actions [num_envs, H, A].

        Returns observations [num_envs, O]; rewards, terminated and truncated, each [num_envs];
        infos, each [num_envs, ...], see `EpisodeSummary`. Raises as `reset`.
        """
        actions = np.asarray(actions)  # processes would have to load JAX for its arrays
        arguments = {i: {"action": actions[i]} for i in range(self.num_envs)}
        answers = self._call("step", arguments, self._timeout)
        self._latest = {index: (answer[0], answer[4]) for index, answer in answers.items()}
        observations, infos = self._stack()
        _, *columns, _ = zip(*answers.values(), strict=True)
        rewards, terminated, truncated = map(np.array, columns)
        return observations, rewards, terminated, truncated, infos

    def close(self) -> None:
        """Lets the environments close, and kills those that have not closed after 5 seconds."""
        self._closed, end = True, time.monotonic() + _CLOSE_SECONDS
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
        _kill(self._processes, self._pipes)

    def _stack(self) -> tuple[np.ndarray, dict[str, Any]]:
        observations, infos = zip(*self._latest.values(), strict=True)
        stacked = {key: np.stack([info[key] for info in infos]) for key in infos[0]}
        return np.stack(observations), stacked

    def _call(
        self, method: str, arguments: Mapping[int, dict[str, Any]], seconds: float
    ) -> dict[int, Any]:
        """Calls a method of some environments, given the arguments of each.

        After a crash, or without processes, it starts them until that succeeds.
        """
        if self._closed:
            raise gymnasium.error.ClosedEnvironmentError(f"{method} of closed environments.")
        self._on_wait()
        reason = "the call before was interrupted, or failed"
        if self._processes:
            try:
                with self._all_or_nothing():
                    return self._exchange(method, arguments, seconds)
            except _CrashError as error:
                self._count(error)
                reason = str(error)
        while True:
            try:
                self._start()
                raise EnvsRestarted(reason)
            except _CrashError as error:
                self._count(error)

    def _exchange(
        self, method: str, arguments: Mapping[int, dict[str, Any]], seconds: float
    ) -> dict[int, Any]:
        answers = {}
        index, end = 0, time.monotonic() + seconds
        try:
            for index, kwargs in arguments.items():
                self._pipes[index].send((method, kwargs))
            for index in arguments:
                while not self._pipes[index].poll(min(_WAIT_SECONDS, self._timeout)):
                    self._on_wait()
                    if time.monotonic() > end:
                        raise _CrashError(
                            f"an environment took more than {seconds:g} seconds to "
                            f"{_TASKS[method]} (--env_timeout)"
                        )
                answers[index], problem = self._pipes[index].recv()
                if problem is not None:
                    _logger.debug("Details of the environment's error:\n%s", problem[1])
                    raise _CrashError(problem[0])
        except (EOFError, OSError) as error:
            raise self._cause_of_death(index, error) from None
        return answers

    def _count(self, error: _CrashError) -> None:
        self.crashes += 1
        if not self._max_crashes:
            raise EnvFailure(f"the environment failed: {error} (--verbosity=1 shows more).")
        _logger.warning(
            "Crash %d of the environments (%d are survived): %s",
            self.crashes, self._max_crashes, error,
        )  # fmt: skip
        if self.crashes > self._max_crashes:
            raise EnvFailure(
                f"the environments crashed {self.crashes} times, more than the "
                f"{self._max_crashes} that are survived. The last crash was {error}. Mend the "
                "environment (--verbosity=1 shows where each error arose), or raise "
                "--max_env_crashes if such crashes are rare and harmless."
            )

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads
        resource_tracker.ensure_running()  # first, since its start unblocks signals
        with self._all_or_nothing():
            # Processes have the signals blocked from their first instruction.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                for index in range(self.num_envs):
                    ours, theirs = context.Pipe()
                    name, arguments = f"environment-{index}", (theirs, *self._arguments)
                    process = context.Process(None, _serve, name, arguments, daemon=True)
                    self._pipes.append(ours)
                    with clear_mpi_env_vars():
                        process.start()
                    self._processes.append(process)
                    theirs.close()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            nothing: dict[int, dict[str, Any]] = {i: {} for i in range(self.num_envs)}
            self._latest = self._exchange("at_rest", nothing, self._timeout)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Kills all processes if the block fails, also by an error of a signal handler."""
        try:
            yield
        except BaseException:
            _kill(self._processes, self._pipes)
            raise

    def _cause_of_death(self, index: int, error: Exception) -> Exception:
        """Error that says how a process ended whose pipe gave an error."""
        process = self._processes[index]
        process.join(_CLOSE_SECONDS)
        code = process.exitcode
        if code is None and not isinstance(error, EOFError | ConnectionError):
            return error  # of a signal handler
        if code is None:
            end = "closed its pipe"
        elif code >= 0:
            end = f"ended with exit code {code}"
        else:
            hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
            end = f"was ended by {signal.Signals(-code).name}{hint}"
        return _CrashError(f"an environment's process {end}")


def _kill(processes: list[BaseProcess], pipes: list[Connection]) -> None:
    """Ends all processes, and empties both lists."""
    for process in processes:
        process.kill()  # SIGTERM is ignored
    for process in processes:
        process.join()
    for pipe in pipes:
        pipe.close()
    processes.clear()
    pipes.clear()


def _serve(pipe: Connection, env_fn: bytes, horizon_length: int) -> None:
    """Answers calls of an environment, which the first one makes, until the pipe is closed.

    An answer is `(result, None)`, or `(None, (error, traceback))` as text.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    env: OpenLoopChunks | None = None
    with contextlib.suppress(EOFError, OSError):  # nobody is there any more
        while True:
            method, kwargs = pipe.recv()
            result, problem = None, None
            try:
                if env is None:
                    warnings.simplefilter("ignore")  # as many times as there are processes
                    env = OpenLoopChunks(pickle.loads(env_fn)(), horizon_length)
                    warnings.simplefilter("ignore")  # before the filters of what was imported
                result = getattr(env, method)(**kwargs)
            except BaseException as error:  # also SystemExit, which would end without a word
                problem = explain(error), traceback.format_exc()
            pipe.send((result, problem))
    if env is not None:
        with contextlib.suppress(Exception):
            env.close()
