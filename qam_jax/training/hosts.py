"""Several processes that train together: how they start, and how they end when one is lost."""

import atexit
import contextlib
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from qam_jax.training import exchange, witness
from qam_jax.training.settings import HostSettings
from qam_jax.training.stopping import EXIT_CODE, Stopped

_logger = logging.getLogger(__name__)

_BOARD = "qam_jax_watch/"  # keys where the processes say how they are
_BEAT_SECONDS = 1.0
_LOST_SECONDS = 60.0  # without a beat; JAX itself ends all processes after 100
_NAMING_SECONDS = 4.0  # to find out who is lost, once it is known that somebody is
_GRACE_SECONDS = 10.0  # for a process to end by itself, before it is ended
_UNWINDING_SECONDS = 30.0  # likewise, while it cleans up
_CONNECTION_ERRORS = ("Gloo", "NCCL", "oordination service", "UNAVAILABLE")
_CONTINUES = "The same command, given to all processes, continues from there."

_watch: "_Watch | None" = None  # of this process; there is one at most, as in JAX


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
    global _watch
    if not _check(settings):
        yield
        return
    with contextlib.closing(_Witness()) as own:
        own.say(_NOT_TOGETHER.format(**vars(settings)), [])
        _start(settings)
        own.say("", [])
        if not exchange.several():
            yield
            return
        _watch = _Watch(own)
        try:
            _introduce()
            yield
            exchange.gather("end", None)
        except BaseException as error:
            _watch.part(error)
            raise
        finally:
            _watch.stop()
            _watch = None
        jax.distributed.shutdown()


@contextlib.contextmanager
def guard(folders: Sequence[Path]) -> Iterator[None]:
    """Tells the other processes at once of an error in the block, and ends this one if the error
    is that another was lost.

    Args:
      folders: of the runs, whose last checkpoints are named to the user.
    """
    if _watch is None:
        yield
        return
    _watch.begin([str(folder.absolute()) for folder in folders])
    try:
        yield
    except Exception as error:
        _watch.fail(error)
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
            jax.distributed.initialize(initialization_timeout=settings.start_timeout)
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


class _Witness:
    """The process that speaks if this one is ended amid its work."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", witness.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def say(self, message: str, folders: list[str]) -> None:
        """What it is to say from now on."""
        self._write(json.dumps([message, folders]))

    def close(self) -> None:
        """Lets it go without a word."""
        self._write(witness.GOODBYE)

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it is gone: nothing depends on it
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


class _Watch:
    """Looks after the other processes, in a thread, and ends this one if one of them is lost."""

    def __init__(self, own: _Witness):
        self._witness = own
        self._client = exchange.client()
        self._index, self._count = exchange.process_index(), exchange.process_count()
        self._folders: list[str] = []
        self._leaving: float | None = None  # since when this process is ending by itself
        self._over = threading.Event()
        self._beats: dict[int, tuple[str, float]] = {}  # the last of each, and since when
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, folders: list[str]) -> None:
        """The runs have begun, in these folders."""
        self._folders = folders
        why = "it was killed, or it crashed"
        if self._index > 0:
            why = f"JAX ends it when process 0 is lost, which leaves lines above; else {why}"
        self._witness.say(
            f"Error: process {self._index} (of {self._count}) was ended amid its work: {why}. "
            "{checkpoints}" + _CONTINUES,
            folders,
        )

    def fail(self, error: Exception) -> None:
        """Ends this process if another was lost; otherwise tells the others of an error here."""
        if self._leaving is None and any(each in str(error) for each in _CONNECTION_ERRORS):
            self._leaving = time.monotonic()
            self._end(*self._find_lost(str(error).strip().splitlines()[0]))
        self._tell(str(error) or type(error).__name__, 1)

    def part(self, error: BaseException) -> None:
        """Ends the session after an error, which goes on to be raised; does not wait for those who
        do not come."""
        code = 1
        if isinstance(error, Stopped):
            self._leaving = time.monotonic()
            self._post("stopped", "")
            if self._wait_for("stopped", _GRACE_SECONDS):
                self.stop()
                jax.distributed.shutdown()
                return
            code = EXIT_CODE
            self._tell(f"it was stopped by {error}", code)
        elif isinstance(error, Exception):
            self.fail(error)
        else:
            self._tell(f"it ended: {error}", code)
        self._post("ended", "")
        if self._index == 0:  # it serves the others: they are to end in good order
            self._wait_for("ended", _GRACE_SECONDS + 2 * _BEAT_SECONDS)
        atexit.register(_exit_at_once, code)  # before JAX, which would wait for the others

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._over.wait(_BEAT_SECONDS):
            number += 1
            try:
                self._post("beat", str(number))
                board = self._read()
            except Exception:  # process 0 is lost: JAX ends this process, and the witness speaks
                continue
            self._note(board)
            self._look(board)

    def _look(self, board: dict[str, str]) -> None:
        now = time.monotonic()
        if self._leaving is not None:
            if now - self._leaving > _UNWINDING_SECONDS:
                _exit_at_once(1)
            return
        for name, text in board.items():
            if name.startswith("failed-") and name != f"failed-{self._index}":
                if not self._over.wait(_GRACE_SECONDS / 2) and self._leaving is None:
                    self._end(*_describe_failure(name, text))
                return
        for index in range(self._count):
            ended = f"stopped-{index}" in board or f"ended-{index}" in board
            if index != self._index and not ended and self._stale(index, _LOST_SECONDS):
                self._end(_describe_lost([index], f"no sign for {_LOST_SECONDS:.0f} s"), 1)

    def _find_lost(self, reason: str) -> tuple[str, int]:
        """Who is lost, in words, and the status to end with."""
        end = time.monotonic() + _NAMING_SECONDS
        while time.monotonic() < end:
            for name, text in self._read().items():
                if name.startswith("failed-"):
                    return _describe_failure(name, text)
            time.sleep(_BEAT_SECONDS / 4)
        others = [index for index in range(self._count) if index != self._index]
        lost = [index for index in others if self._stale(index, _NAMING_SECONDS / 2)]
        return _describe_lost(lost, reason), 1

    def _end(self, message: str, code: int) -> None:
        """Ends this process here and now, whatever its other threads are waiting for."""
        words = witness.last_checkpoints(self._folders)
        print(f"\nError: {message} {words}{_CONTINUES}", file=sys.stderr)
        self._witness.close()
        with contextlib.suppress(Exception):  # where process 0 is lost there is nobody to tell
            if not any(name.startswith("failed-") for name in self._read()):
                self._tell(message, code)
            self._post("ended", "")
            if self._index == 0:
                self._wait_for("ended", _GRACE_SECONDS)
        _exit_at_once(code)

    def _tell(self, text: str, code: int) -> None:
        self._leaving = self._leaving or time.monotonic()
        with contextlib.suppress(Exception):  # where process 0 is lost there is nobody to tell
            self._post("failed", json.dumps([text, code]))

    def _wait_for(self, what: str, seconds: float) -> bool:
        """Waits until all others have posted this or are lost; whether they have posted it."""
        end = time.monotonic() + seconds
        while True:
            board = self._read()
            missing = [i for i in range(self._count) if f"{what}-{i}" not in board]
            missing = [index for index in missing if index != self._index]
            waiting = [index for index in missing if not self._stale(index, _NAMING_SECONDS)]
            if not waiting or time.monotonic() > end:
                return not missing
            time.sleep(_BEAT_SECONDS / 10)

    def _post(self, what: str, value: str) -> None:
        key = f"{_BOARD}{what}-{self._index}"
        self._client.key_value_set(key, value or "1", allow_overwrite=True)

    def _read(self) -> dict[str, str]:
        items = self._client.key_value_dir_get(_BOARD)
        return {key.rpartition("/")[2]: value for key, value in items}

    def _note(self, board: dict[str, str]) -> None:
        for index in range(self._count):
            beat = board.get(f"beat-{index}", "")
            if self._beats.get(index, (None,))[0] != beat:
                self._beats[index] = beat, time.monotonic()

    def _stale(self, index: int, seconds: float) -> bool:
        since = self._beats.get(index, ("", time.monotonic()))[1]
        return time.monotonic() - since > seconds


def _describe_failure(name: str, text: str) -> tuple[str, int]:
    reason, code = json.loads(text)
    return f"process {name.partition('-')[2]} has ended: {reason.rstrip('.')}.", code


def _describe_lost(lost: list[int], reason: str) -> str:
    who = " and ".join(f"process {index}" for index in lost) or "another process"
    return f"lost {who} ({reason}); without it training cannot go on."


def _exit_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
