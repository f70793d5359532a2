"""Several processes that train together: how they start, and how they end when one is lost."""

import contextlib
import logging
import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from qam_jax.runs.settings import HostSettings
from qam_jax.training import exchange
from qam_jax.training.watchdog import JAX_LOST_SECONDS, Watchdog, Witness

_logger = logging.getLogger(__name__)

_watchdog: Watchdog | None = None  # of this process; there is one at most, as in JAX


@contextlib.contextmanager
def session(settings: HostSettings) -> Iterator[None]:
    """Lets the processes that the settings speak of find each other, and part again.

    To be entered before JAX is used. If one of them fails or is lost, the others end: with a
    message of their own, or, where JAX ends them because the first process was lost, with that of
    their witness; see `qam_jax.training.witness`.

    Args:
      settings: which processes; this one alone by default.

    Raises:
      ValueError: if the settings make no sense, or JAX detects no cluster.
      OSError: if the first process cannot be reached.
    """
    global _watchdog
    if not _check(settings):
        yield
        return
    with contextlib.closing(Witness()) as own:
        own.say(_NOT_TOGETHER.format(**vars(settings)), [])
        _start(settings)
        own.say("", [])
        if not exchange.several():
            yield
            return
        _watchdog = Watchdog(own)
        try:
            _introduce()
            yield
            exchange.gather("end", None)
        except BaseException as error:
            _watchdog.part(error)
            raise
        finally:
            _watchdog.stop()
            _watchdog = None
        jax.distributed.shutdown()


@contextlib.contextmanager
def guard(folders: Sequence[Path]) -> Iterator[None]:
    """Tells the other processes at once of an error in the block, and ends this one if the error
    is that another was lost.

    Args:
      folders: of the runs, whose last checkpoints are named to the user.
    """
    if _watchdog is None:
        yield
        return
    _watchdog.begin([str(folder.absolute()) for folder in folders])
    try:
        yield
    except Exception as error:
        _watchdog.fail(error)
        raise


def take_turns(function: Callable[[], Any]) -> Any:
    """Calls a function in all processes; of those on one machine, in the first before the others.

    So what the first leaves on disk is there for the others.
    """
    machines = exchange.gather("machine", platform.node())
    index = exchange.process_index()
    leads = machines.index(machines[index]) == index
    result = function() if leads else None
    exchange.gather("machine is ready", None)
    return result if leads else function()


def check_same(label: str, mine: dict[str, Any]) -> None:
    """Raises ValueError, naming what differs, if the processes were not given the same."""
    everyone = exchange.gather(label, mine)
    for index, theirs in enumerate(everyone):
        differing = [
            f"{name} is {everyone[0].get(name)!r} in process 0 and {theirs.get(name)!r} in "
            f"process {index}"
            for name in sorted(everyone[0].keys() | theirs.keys())
            if everyone[0].get(name) != theirs.get(name)
        ]
        if differing:
            raise ValueError(
                f"the processes differ in their {label}: {'; '.join(differing)}. Start all with "
                "the same command, code and data."
            )


_NOT_TOGETHER = (
    "Error: the processes did not come together within --start_timeout={start_timeout} seconds. "
    "Were all of them started, with the same --coordinator_address and --num_processes, and can "
    "they reach process 0?"
)


def _check(settings: HostSettings) -> bool:
    """Whether the settings ask for several processes. Raises ValueError if they make no sense."""
    defaults = HostSettings()
    names = ("coordinator_address", "num_processes", "process_id")
    given = [name for name in names if getattr(settings, name) != getattr(defaults, name)]
    missing = [name for name in names if name not in given]
    if given and settings.distributed:
        raise ValueError(
            f"--distributed detects what --{given[0]} says by hand: give one or the other."
        )
    if given and missing:
        raise ValueError(
            f"--{' and --'.join(given)} without --{' and --'.join(missing)}: by hand it takes all "
            "three of them. On a TPU slice or under SLURM --distributed alone will do."
        )
    if settings.start_timeout < 1:
        raise ValueError(f"--start_timeout must be at least 1, got {settings.start_timeout}.")
    if not given:
        return settings.distributed
    if settings.num_processes < 1:
        raise ValueError(f"--num_processes must be at least 1, got {settings.num_processes}.")
    if not 0 <= settings.process_id < settings.num_processes:
        raise ValueError(
            f"--process_id={settings.process_id} is none of the {settings.num_processes} of "
            f"--num_processes: number them from 0 to {settings.num_processes - 1}."
        )
    host, _, port = settings.coordinator_address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"--coordinator_address must be <host>:<port>, such as 10.0.0.1:1234, got "
            f"{settings.coordinator_address!r}."
        )
    return True


def _start(settings: HostSettings) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take over SIGTERM
    if settings.distributed:
        try:
            jax.distributed.initialize(
                initialization_timeout=settings.start_timeout,
                heartbeat_timeout_seconds=JAX_LOST_SECONDS,
            )
        except ValueError as error:
            raise ValueError(
                f"--distributed: JAX detects no cluster here ({error}) Start inside of one, under "
                "SLURM by srun, or say it by hand: --coordinator_address, --num_processes and "
                "--process_id."
            ) from error
        return
    if settings.process_id > 0:
        _reach(settings)
    jax.distributed.initialize(
        settings.coordinator_address,
        settings.num_processes,
        settings.process_id,
        cluster_detection_method="deactivate",
        initialization_timeout=settings.start_timeout,
        heartbeat_timeout_seconds=JAX_LOST_SECONDS,
    )


def _reach(settings: HostSettings) -> None:
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


def _introduce() -> None:
    if not exchange.is_first():
        logging.getLogger("qam_jax").setLevel(logging.WARNING)  # the first talks for all
    devices = jax.devices()
    _logger.info(
        "%d processes with %d devices (%s).",
        jax.process_count(), len(devices), devices[0].device_kind,
    )  # fmt: skip
