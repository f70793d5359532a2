"""Executes the command of one job, and records its output and its outcome."""

import contextlib
import datetime
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qam_jax.files import ensure_writable_dir, write_json
from qam_jax.runs.lock import FAILED, FINISHED, STOPPED
from qam_jax.runs.stopping import EXIT_CODE

if TYPE_CHECKING:
    import submitit

_POLL_SECONDS = 0.5
_START = "$ "  # begins the line of a log that holds the command
_STOPPED = (EXIT_CODE, 128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)


class Task(NamedTuple):
    """A command, the log that its output is appended to, and the JSON file for its outcome."""

    command: tuple[str, ...]
    log: Path
    record: Path


def start_task(
    task: Task, environment: Mapping[str, str] | None = None, ignored: signal.Signals | None = None
) -> subprocess.Popen:
    """Starts a command in a session of its own, so that signals to this process do not reach it.

    The `environment` adds to the variables of this process; the command ignores the signal
    `ignored`. Raises OSError, which names the log, if the log cannot be written.
    """
    ensure_writable_dir(task.log.parent)
    with _naming(task.log), open(task.log, "a") as log:
        line = shlex.join(task.command).replace("\n", " ")
        log.write(f"{_START}{line}\n")
    with open(task.log, "a") as log:
        return subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=(lambda: signal.signal(ignored, signal.SIG_IGN)) if ignored else None,
        )


def end_task(task: Task, status: int) -> tuple[str, str]:
    """Records how a command ended, and returns the outcome, with the error of a failure.

    The outcome is `finished`, `stopped` (by a signal: the same command continues it) or `failed`.
    The exit status is negative for a signal. Raises OSError, which names the record, if the record
    cannot be written.
    """
    outcome, error = FAILED, ""
    if status == 0 or status in _STOPPED:
        outcome = STOPPED if status else FINISHED
    elif status < 0:
        error = f"killed by {signal.Signals(-status).name}"
    else:
        error = last_error(task.log) or f"ended with status {status}, without a word"
    record_task(task, outcome=outcome, status=status, error=error)
    return outcome, error


def record_task(task: Task, **facts: Any) -> None:
    """Replaces the record of a command."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _naming(task.record):
        write_json(task.record, {"time": now, **facts})


def last_error(log: Path) -> str:
    """Finds the line of a log that explains why the last command failed; empty if none does."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    last = re.split(f"(?m)^{re.escape(_START)}.*$", text)[-1]
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    return (errors or lines or [""])[-1].removeprefix("Error: ")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file that cannot be written, and says what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}). If the disk is full, make "
            "room: the same command continues the sweep."
        ) from error


class RunTask:
    """The callable that submitit executes for a job; see submitit's notes on checkpointing.

    SLURM sends SIGUSR2 before the time is up, and on many clusters before a preemption. It stops
    the command, which saves, and requeues the job. SIGTERM only stops the command: SLURM itself
    requeues jobs that it preempts, and cancelled jobs must not come back.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._asked = False

    def __call__(self, task: Task) -> None:
        """Executes the command to its end.

        Raises RuntimeError with its error if it failed, and SystemExit (75) if it was stopped.
        """
        process = self._start(task)
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
        outcome, error = end_task(task, process.returncode)
        if outcome == FAILED:
            raise RuntimeError(error)
        if outcome == STOPPED:
            sys.exit(EXIT_CODE)

    def checkpoint(self, task: Task) -> "submitit.helpers.DelayedSubmission":
        """Stops the command and returns the submission that continues it."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._ask_to_stop()
            with contextlib.suppress(ChildProcessError):  # it has been waited for already
                # This interrupts `poll`, whose lock `wait` would wait for.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        record_task(task, outcome=STOPPED, error="")
        return DelayedSubmission(RunTask(), task)

    def _start(self, task: Task) -> subprocess.Popen:
        """Starts the command. Signals that arrive meanwhile are handled once it has started."""
        handlers: dict[signal.Signals, Any] = {
            signal.SIGUSR2: signal.getsignal(signal.SIGUSR2),
            signal.SIGTERM: lambda *_: self._ask_to_stop(),
        }
        held: list[int] = []
        for number in handlers:
            signal.signal(number, lambda number, _: held.append(number))
        self._process = start_task(task, ignored=signal.SIGUSR2)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for arrived in held:
            signal.raise_signal(arrived)
        return self._process

    def _ask_to_stop(self) -> None:
        if self._process is not None and not self._asked:  # asked again, a run ends at once
            self._asked = True
            self._process.terminate()
