"""Several processes that train together, by JAX's own distributed runtime.

All processes make the same calls in the same order. JAX's heartbeat ends the other processes when
one is lost; the launcher starts the same command again, which continues from the last checkpoint.
"""

import atexit
import contextlib
import logging
import os
import pickle
import platform
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from qam_jax.envs import EnvFailure
from qam_jax.runs.settings import ProcessSettings, check_ranges
from qam_jax.runs.stopping import Stopped

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_BY_HAND = ("coordinator_address", "num_processes", "process_id")
_WEEK_MS = 7 * 24 * 3600 * 1000  # a download or an evaluation may take long; JAX notices a loss
_RUNTIME_ERROR = re.compile("UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED")


def several() -> bool:
    """Whether this process trains together with others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which acts, evaluates, writes and logs."""
    return jax.process_index() == 0


def gather(value: _T) -> list[_T]:
    """Returns the values that the processes gave, in their order; any that can be pickled."""
    if not several():
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    capacity = 1 << int(sizes.max()).bit_length()  # few shapes, so few programs to compile
    contents = multihost_utils.process_allgather(np.resize(content, capacity))
    return [pickle.loads(each[:size].tobytes()) for each, size in zip(contents, sizes, strict=True)]


def from_first(function: Callable[[], _T]) -> _T:
    """Calls a function in process 0 alone, and returns its result in all processes.

    The other processes wait as long as it takes, without keeping their devices busy.

    Raises what the function raised. The other processes raise an OSError that says so, unless it is
    Stopped or EnvFailure, after which all of them save.
    """
    if not several():
        return function()
    result: Any = None
    error: BaseException | None = None
    try:
        result = function() if is_first() else None
    except (Exception, Stopped) as raised:
        error = raised
    wait_for_all("first")
    known = isinstance(error, Stopped | EnvFailure | None)
    result, theirs = gather((result, error if known else OSError(f"process 0: {error}")))[0]
    if failure := error or theirs:
        raise failure
    return result


def wait_for_all(name: str) -> None:
    """Waits until all processes have come here."""
    if several():
        ocp.multihost.get_barrier_sync_fn()(key=f"qam_jax_{name}", timeout_ms=_WEEK_MS)


def take_turns(function: Callable[[], _T]) -> _T:
    """Calls a function in all processes; the first of each machine goes ahead, and others find its
    files there."""
    leads = gather(platform.node()).index(platform.node()) == jax.process_index()
    result: Any = function() if leads else None
    wait_for_all("turns")
    return result if leads else function()


def check_same(label: str, mine: dict[str, Any]) -> None:
    """Raises ValueError, naming the differences, if the processes were not given the same."""
    first, *others = gather(mine)
    differing = [
        f"{name} is {first[name]!r} in process 0 and {theirs[name]!r} in process {index}"
        for index, theirs in enumerate(others, start=1)
        for name in sorted(first)
        if first[name] != theirs[name]
    ]
    if differing:
        raise ValueError(
            f"the processes differ in their {label}: {'; '.join(differing)}. Start all with "
            "the same command, code and data."
        )


@contextlib.contextmanager
def session(settings: ProcessSettings) -> Iterator[None]:
    """Connects the processes that the settings name, and disconnects them at the end.

    Enter it before JAX is used. By default this process trains alone.

    Raises:
      ValueError: if the settings contradict each other, or JAX detects no cluster.
      OSError: if process 0 cannot be reached, or another process is lost.
    """
    if not _check(settings):
        yield
        return
    _start(settings)
    try:
        if not is_first():
            logging.getLogger("qam_jax").setLevel(logging.WARNING)
        kind, count = jax.devices()[0].device_kind, jax.device_count()
        _logger.info("%d processes with %d devices (%s).", jax.process_count(), count, kind)
        yield
    except Stopped:  # all processes stop after the same update
        with contextlib.suppress(RuntimeError):  # but one may be stopped before the first one
            jax.distributed.shutdown()
        raise
    except BaseException as error:
        sys.stdout.flush()
        atexit.register(os._exit, 1)  # before JAX's own exit, which waits for the others
        message = str(error).strip()
        if isinstance(error, ValueError | RuntimeError) and _RUNTIME_ERROR.match(message):
            raise OSError(
                f"another process is lost ({message.splitlines()[0][:200]}). The same command, "
                "given to all processes, continues from the last checkpoint."
            ) from error
        raise
    wait_for_all("end")  # the first one may still draw and film
    jax.distributed.shutdown()


def _check(settings: ProcessSettings) -> bool:
    """Whether the settings ask for several processes. Raises ValueError if they make no sense."""
    check_ranges(settings)
    defaults = ProcessSettings()
    given = [name for name in _BY_HAND if getattr(settings, name) != getattr(defaults, name)]
    missing = [name for name in _BY_HAND if name not in given]
    if not given:
        return settings.distributed
    if settings.distributed:
        wrong = f"--distributed detects what --{given[0]} says by hand: give one or the other."
    elif missing:
        wrong = (
            f"--{' and --'.join(given)} without --{' and --'.join(missing)}: by hand it takes all "
            "three of them. On a TPU slice or under SLURM --distributed alone will do."
        )
    elif settings.process_id >= settings.num_processes:
        wrong = (
            f"--process_id={settings.process_id} is none of the {settings.num_processes} of "
            f"--num_processes: number them from 0 to {settings.num_processes - 1}."
        )
    elif not re.fullmatch(r".+:\d+", settings.coordinator_address):
        wrong = (
            f"--coordinator_address must be <host>:<port>, such as 10.0.0.1:1234, got "
            f"{settings.coordinator_address!r}."
        )
    else:
        return True
    raise ValueError(wrong)


def _start(settings: ProcessSettings) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take over SIGTERM
    by_hand: dict[str, Any] = {}
    if not settings.distributed:
        by_hand = {name: getattr(settings, name) for name in _BY_HAND}
        by_hand["cluster_detection_method"] = "deactivate"
        if settings.process_id > 0:
            _reach(settings)
    try:
        jax.distributed.initialize(
            **by_hand,
            initialization_timeout=settings.start_timeout,
            heartbeat_timeout_seconds=settings.heartbeat_timeout,
            shutdown_timeout_seconds=settings.heartbeat_timeout,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed: JAX detects no cluster here ({error}) Start inside of one, under "
            "SLURM by srun, or say it by hand: --coordinator_address, --num_processes and "
            "--process_id."
        ) from error


def _reach(settings: ProcessSettings) -> None:
    """Waits until process 0 can be reached: JAX would end this process without an exception."""
    host, _, port = settings.coordinator_address.rpartition(":")
    end = time.monotonic() + settings.start_timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(
                    f"process 0 cannot be reached at --coordinator_address="
                    f"{settings.coordinator_address} ({error.strerror or error}), for "
                    f"--start_timeout={settings.start_timeout} seconds. Is it running, is the "
                    "address right, and is the port open?"
                ) from error
            time.sleep(0.2)
