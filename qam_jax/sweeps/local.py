"""Executes jobs as processes of this machine, a bounded number at a time."""

import contextlib
import logging
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from qam_jax.reports.folders import read_evaluations
from qam_jax.runs.stopping import Stopped, stop_signals
from qam_jax.sweeps.jobs import Job, last_step, read_rows
from qam_jax.sweeps.worker import end_task, start_task

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_VIEW_SECONDS = 2.0


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    bar: tqdm
    started: float


def run_local(
    jobs: Sequence[Job], *, parallel: int = 1, gpus: Sequence[str] = ()
) -> dict[str, tuple[str, str]]:
    """Executes jobs in their order, `parallel` at a time; returns outcome and error by job's name.

    A terminal shows a bar for all and one for each running job. The jobs take turns on the `gpus`
    of these numbers; each sees all GPUs if none is given.

    Raises OSError if a job's log or record cannot be written, and Stopped if a signal asked to
    stop: running jobs have been asked too, and have ended.
    """
    waiting, asked, viewed = list(jobs), False, 0.0
    running: dict[int, _Running] = {}  # by the number of the slot
    outcomes: dict[str, tuple[str, str]] = {}
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if parallel > len(gpus) else {}
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        all_bar = tqdm(total=len(jobs), desc="runs", unit="run", position=0, disable=None)
        stack.enter_context(all_bar)
        stack.callback(_terminate, running)  # asked a second time, jobs end at once
        while waiting or running:
            if stop.signal_name and not asked:
                _logger.info("Stopping %d runs; each saves what it has.", len(running))
                _terminate(running)
                waiting, asked = [], True
            for slot in range(parallel):
                if waiting and slot not in running:
                    own = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)], **shared} if gpus else {}
                    running[slot] = _start(waiting.pop(0), slot, own)
            for slot, (job, process, bar, started) in list(running.items()):
                if (status := process.poll()) is not None:
                    del running[slot]
                    bar.close()
                    outcome, error = outcomes[job.name] = end_task(job.task, status)
                    minutes, result = (time.monotonic() - started) / 60, error or _score(job)
                    _logger.info(
                        "%-9s %s after %.1f min: %s",
                        outcome, job.name, minutes, result or "see the log",
                    )  # fmt: skip
                    all_bar.update()
            if time.monotonic() - viewed > _VIEW_SECONDS:
                _show(running)
                viewed = time.monotonic()
            time.sleep(_POLL_SECONDS)
        if asked:
            raise Stopped(stop.signal_name)
    return outcomes


def _start(job: Job, slot: int, environment: dict[str, str]) -> _Running:
    process = start_task(job.task, environment)
    _logger.info("started   %s", job.name)
    bar = tqdm(
        total=job.resolved.settings.total_steps, initial=last_step(job), desc=job.name, unit="step",
        position=slot + 1, leave=False, disable=None,
    )  # fmt: skip
    return _Running(job, process, bar, time.monotonic())


def _terminate(running: dict[int, _Running]) -> None:
    for entry in running.values():
        entry.process.terminate()


def _show(running: dict[int, _Running]) -> None:
    """Refreshes the bars of the running jobs."""
    for job, _, bar, _ in running.values():
        rows = [] if bar.disable else read_rows(job.folder / "train.csv")
        if rows:
            bar.n = int(rows[-1]["step"])
            bar.set_postfix_str(_score(job))


def _score(job: Job) -> str:
    """The last evaluation of a run, in words."""
    with contextlib.suppress(ValueError, OSError):  # it is damaged, say
        _, scores, unit = read_evaluations(job.folder)
        if scores:
            return f"success {scores[-1]:.0f}%" if unit == "%" else f"return {scores[-1]:.1f}"
    return ""
