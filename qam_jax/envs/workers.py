"""Processes that run one environment each and are stepped together."""

import contextlib
import multiprocessing
import multiprocessing.util
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper, batch_space, clear_mpi_env_vars

_CLOSE_SECONDS = 5.0  # for an environment to close by itself
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerError(RuntimeError):
    """An environment raised an error, or its process ended. The message names either.

    Attributes:
      details: the traceback within the process, or "".
    """

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


class Workers(gymnasium.vector.VectorEnv):
    """Environments in processes of their own, stepped in parallel.

    They are not reset on their own: the caller resets those that have ended and so chooses each
    episode's seed.

    The processes ignore SIGINT and SIGTERM, which clusters and terminals send to all processes
    alike: this process decides when they end. They end by themselves when this process is gone.
    After any error, also one that a signal handler raises here in the middle of a call, all of
    them have been ended and `closed` is True.

    Args:
      env_fn: makes one environment with observations [O]; can be pickled by cloudpickle.
      num_envs: how many.

    Raises:
      WorkerError: from any call, if an environment raised an error or its process ended.
    """

    def __init__(self, env_fn: Callable[[], gymnasium.Env], num_envs: int):
        self.num_envs = num_envs
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        # Also at exit, before multiprocessing sends its SIGTERM and waits.
        self._kill = multiprocessing.util.Finalize(
            self, _kill, args=(self._processes, self._pipes), exitpriority=100
        )
        with self._all_or_nothing():
            self._start(pickle.dumps(CloudpickleWrapper(env_fn)))
            spaces = [self._receive(index) for index in range(num_envs)]
        self.single_observation_space, self.single_action_space = spaces[0]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        zeros = np.zeros(self.single_observation_space.shape, self.single_observation_space.dtype)
        self._latest: list[tuple[np.ndarray, dict[str, Any]]] = [(zeros, {})] * num_envs

    def reset(
        self, *, seed: Sequence[int] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Resets all environments, or those that `options["reset_mask"]` [num_envs] selects.

        Args:
          seed: one for each environment, also for those not reset.
          options: the rest of them is passed to the environments.

        Returns:
          Observations [num_envs, O] and infos, [num_envs, ...] each: the latest ones of
          environments that are not reset, and zeros where there never was a reset.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, bool))
        seeds = [None] * self.num_envs if seed is None else seed
        answers = self._call(
            "reset", {int(i): {"seed": seeds[i], "options": options} for i in np.flatnonzero(mask)}
        )
        for index, latest in answers.items():
            self._latest[index] = latest
        return self._observations(), self._infos()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps all environments; all results have [num_envs, ...]."""
        actions = np.asarray(actions)  # processes would have to load JAX for its arrays
        answers = self._call("step", {i: {"action": actions[i]} for i in range(self.num_envs)})
        observations, rewards, terminated, truncated, infos = zip(*answers.values(), strict=True)
        self._latest = list(zip(observations, infos, strict=True))
        return (
            self._observations(),
            np.array(rewards, np.float64),
            np.array(terminated, bool),
            np.array(truncated, bool),
            self._infos(),
        )

    def close_extras(self, **_: Any) -> None:
        """Lets the environments close; ends those that have not after 5 seconds."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_CLOSE_SECONDS)
        self._kill()

    def _start(self, pickled_env_fn: bytes) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads
        resource_tracker.ensure_running()  # first, since its start unblocks signals
        with clear_mpi_env_vars(), _signals_blocked():
            for index in range(self.num_envs):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(theirs, pickled_env_fn),
                    name=f"environment-{index}",
                    daemon=True,
                )
                self._pipes.append(ours)
                process.start()
                self._processes.append(process)
                theirs.close()

    def _call(self, method: str, arguments: Mapping[int, dict[str, Any]]) -> dict[int, Any]:
        """Calls a method of some environments, given its arguments for each."""
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError(f"{method} of closed environments.")
        with self._all_or_nothing():
            for index, kwargs in arguments.items():
                try:
                    self._pipes[index].send((method, kwargs))
                except OSError as error:
                    raise self._death(index, error) from None
            return {index: self._receive(index) for index in arguments}

    def _receive(self, index: int) -> Any:
        try:
            succeeded, *answer = self._pipes[index].recv()
        except (EOFError, OSError) as error:
            raise self._death(index, error) from None
        if not succeeded:
            raise WorkerError(*answer)
        return answer[0]

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Ends all processes if the block fails: one is gone, or answers are outstanding."""
        try:
            yield
        except BaseException:
            self._kill()
            self.closed = True
            raise

    def _death(self, index: int, error: Exception) -> Exception:
        """What became of a process whose pipe gave an error."""
        process = self._processes[index]
        process.join(_CLOSE_SECONDS)
        code = process.exitcode
        if code is None:
            if isinstance(error, EOFError | ConnectionError):
                return WorkerError("an environment's process closed its pipe")
            return error  # of a signal handler
        if code >= 0:
            return WorkerError(f"an environment's process ended with exit code {code}")
        hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
        return WorkerError(
            f"an environment's process was ended by {signal.Signals(-code).name}{hint}"
        )

    def _observations(self) -> np.ndarray:
        return np.stack([observation for observation, _ in self._latest])

    def _infos(self) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for index, (_, info) in enumerate(self._latest):
            infos = self._add_info(infos, info, index)
        return infos


def _kill(processes: list[BaseProcess], pipes: list[Connection]) -> None:
    for process in processes:
        process.kill()  # SIGTERM is ignored
    for process in processes:
        process.join()
    for pipe in pipes:
        pipe.close()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started meanwhile have these signals blocked, from their first instruction."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, pickled_env_fn: bytes) -> None:
    """What a process does: answers calls of its environment until the pipe is closed.

    The first answer, to no call, is the environment's spaces.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    env: gymnasium.Env | None = None

    def make() -> tuple[gymnasium.Space, gymnasium.Space]:
        nonlocal env
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as many times as there are processes
            env = pickle.loads(pickled_env_fn)()
        return env.observation_space, env.action_space

    answer = _attempt(make)
    while True:
        try:
            pipe.send(answer)
            method, kwargs = pipe.recv()
        except (EOFError, OSError):  # nobody is there any more
            break
        answer = _attempt(getattr(env, method), **kwargs)
    if env is not None:
        with contextlib.suppress(Exception):
            env.close()


def _attempt(function: Callable[..., Any], **kwargs: Any) -> tuple[Any, ...]:
    """`(True, result)`, or `(False, error, traceback)` as text."""
    try:
        return True, function(**kwargs)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}", traceback.format_exc()
