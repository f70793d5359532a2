"""Executes jobs as processes of this machine, a bounded number at a time."""

import contextlib
import logging
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from qam_jax.runs.stopping import Stopped, stop_signals
from qam_jax.sweeps.jobs import Job, last_step, read_rows
from qam_jax.sweeps.worker import Outcome, end_task, start_task

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
) -> dict[str, tuple[Outcome, str]]:
    """Executes jobs. On a terminal there is a bar for all and one for each that runs.

    Args:
      jobs: in order.
      parallel: how many at a time.
      gpus: numbers of the GPUs that they take turns on; empty: each sees all.

    Returns:
      By the jobs' names, how each ended, and why it failed if it did.

    Raises:
      Stopped: if a signal asked to stop. The jobs that were running have been asked too, and have
        ended.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        pool = stack.enter_context(contextlib.closing(_Pool(len(jobs), parallel, gpus)))
        waiting, asked, viewed = list(jobs), False, 0.0
        while waiting or pool.running:
            if stop.signal_name and not asked:
                _logger.info("Stopping %d runs; each saves what it has.", len(pool.running))
                pool.terminate()
                waiting, asked = [], True
            while waiting and pool.free:
                pool.start(waiting.pop(0))
            pool.collect()
            if time.monotonic() - viewed > _VIEW_SECONDS:
                pool.show()
                viewed = time.monotonic()
            time.sleep(_POLL_SECONDS)
        if asked:
            raise Stopped(stop.signal_name)
        return pool.outcomes


class _Pool:
    """Slots, each for one running job."""

    def __init__(self, total: int, parallel: int, gpus: Sequence[str]):
        self.outcomes: dict[str, tuple[Outcome, str]] = {}
        self.free = list(range(parallel))[::-1]
        self.running: dict[int, _Running] = {}
        self._gpus, self._shared = gpus, parallel > len(gpus)
        self._bar = tqdm(total=total, desc="runs", unit="run", position=0, disable=None)

    def start(self, job: Job) -> None:
        slot = self.free.pop()
        environment = {}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
            if self._shared:
                environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        process = start_task(job.task, environment)
        _logger.info("started   %s", job.name)
        bar = tqdm(
            total=job.total_steps, initial=last_step(job), desc=job.name, unit="step",
            position=slot + 1, leave=False, disable=None,
        )  # fmt: skip
        self.running[slot] = _Running(job, process, bar, time.monotonic())

    def collect(self) -> None:
        """Takes note of those that have ended."""
        for slot, (job, process, bar, started) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            outcome, error = self.outcomes[job.name] = end_task(job.task, status)
            minutes = (time.monotonic() - started) / 60
            what = error or _score(job) or "as the log says"
            _logger.info("%-9s %s after %.1f min: %s", outcome.value, job.name, minutes, what)
            bar.close()
            del self.running[slot]
            self.free.append(slot)
            self._bar.update()

    def show(self) -> None:
        """Refreshes the bars of those that run."""
        for job, _, bar, _ in self.running.values():
            rows = [] if bar.disable else read_rows(job.folder / "train.csv")
            if rows:
                bar.n = int(rows[-1]["step"])
                bar.set_postfix_str(_score(job))

    def terminate(self) -> None:
        """Asks those that run to save and end; asked again, they end at once."""
        for running in self.running.values():
            running.process.terminate()

    def close(self) -> None:
        self.terminate()
        for running in self.running.values():
            running.bar.close()
        self._bar.close()


def _score(job: Job) -> str:
    """The last evaluation of a run, in words."""
    rows = read_rows(job.folder / "eval.csv")
    if not rows:
        return ""
    if "success" in rows[-1]:
        return f"success {rows[-1]['success']:.0%}"
    return f"return {rows[-1]['return']:.1f}"
