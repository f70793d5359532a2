"""Executes one job of a sweep, and keeps what it printed and how it ended."""

import contextlib
import datetime
import enum
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qam_jax.files import write_json
from qam_jax.runs.stopping import EXIT_CODE

if TYPE_CHECKING:
    import submitit

_POLL_SECONDS = 0.5
_START = "$ "  # begins the line of a log that says what is executed
_STOPPED = (EXIT_CODE, 128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)


class Task(NamedTuple):
    """What it takes to execute a job.

    Attributes:
      command: the program and its arguments.
      log: the file that its output is added to.
      record: the file for how it ended.
    """

    command: tuple[str, ...]
    log: Path
    record: Path


class Outcome(enum.Enum):
    """How a command ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # by a signal; the same command continues it
    FAILED = "failed"


def start_task(
    task: Task, environment: Mapping[str, str] | None = None, ignored: signal.Signals | None = None
) -> subprocess.Popen:
    """Starts a job, in a session of its own: signals reach it only if they are sent to it.

    Args:
      task: what to execute.
      environment: variables beside those of this process.
      ignored: a signal that is to be without effect on it.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "a") as log:
        line = shlex.join(task.command).replace("\n", " ")
        log.write(f"{_START}{line}\n")
        log.flush()
        return subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=ignored and (lambda: signal.signal(ignored, signal.SIG_IGN)),
        )


def end_task(task: Task, status: int) -> tuple[Outcome, str]:
    """Records how a job ended.

    Args:
      task: what was executed.
      status: of its process.

    Returns:
      The outcome, and the last line of an error; empty if there was none.
    """
    if status == 0:
        outcome = Outcome.FINISHED
    else:
        outcome = Outcome.STOPPED if status in _STOPPED else Outcome.FAILED
    error = ""
    if outcome is Outcome.FAILED:
        killed = f"killed by {signal.Signals(-status).name}" if status < 0 else ""
        error = killed or last_error(task.log) or f"ended with status {status}, without a word"
    record_task(task, outcome=outcome.value, status=status, error=error)
    return outcome, error


def record_task(task: Task, **facts: Any) -> None:
    """Writes what is known of a job, in place of what was."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(task.record, {"time": now, **facts})


def last_error(log: Path) -> str:
    """The line of a log that says why the command failed when it was last executed."""
    lines = [line.strip() for line in re.split(r"[\r\n]", log.read_text(errors="replace"))]
    starts = [number for number, line in enumerate(lines) if line.startswith(_START.strip())]
    lines = [line for line in lines[starts[-1] + 1 if starts else 0 :] if line]
    errors = [line for line in lines if line.startswith("Error: ")]
    return (errors or lines or [""])[-1].removeprefix("Error: ")


class RunTask:
    """What submitit executes for a job: its command; see submitit's notes on checkpointing.

    SIGUSR2, which SLURM sends before the time is up and many sites before a preemption, stops the
    command, which saves, and puts the job back into the queue. SIGTERM stops it alone: SLURM puts
    back what it preempts, and what a user has cancelled is not to come back.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._asked = False

    def __call__(self, task: Task) -> None:
        """Executes the command to its end.

        Raises:
          RuntimeError: if it failed, with the last line of its error.
          SystemExit: with status 75 if it was stopped.
        """
        self._start(task)
        while self._process.poll() is None:
            time.sleep(_POLL_SECONDS)
        outcome, error = end_task(task, self._process.returncode)
        if outcome is Outcome.FAILED:
            raise RuntimeError(error)
        if outcome is Outcome.STOPPED:
            sys.exit(EXIT_CODE)

    def checkpoint(self, task: Task) -> "submitit.helpers.DelayedSubmission":
        """Stops the command and says what is to be executed when the job's turn comes again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._ask_to_stop()
            with contextlib.suppress(ChildProcessError):  # it has been waited for already
                # This interrupts `poll`, whose lock `wait` would wait for.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        record_task(task, outcome=Outcome.STOPPED.value, error="")
        return DelayedSubmission(RunTask(), task)

    def _start(self, task: Task) -> None:
        """Starts the command; requests that come before it is known here wait until it is."""
        handlers = {
            signal.SIGUSR2: signal.getsignal(signal.SIGUSR2),
            signal.SIGTERM: lambda *_: self._ask_to_stop(),
        }
        held: list[int] = []
        for number in handlers:
            signal.signal(number, lambda number, _: held.append(number))
        self._process = start_task(task, ignored=signal.SIGUSR2)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)

    def _ask_to_stop(self) -> None:
        if not self._asked:  # asked again, a run ends at once
            self._asked = True
            self._process.terminate()
