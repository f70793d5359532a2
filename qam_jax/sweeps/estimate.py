"""Estimates the time that jobs take, from the speed of their updates."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from qam_jax.agents import get_config
from qam_jax.sweeps.jobs import Job, last_step, read_rows


def parse_speeds(texts: Iterable[str]) -> dict[str, float]:
    """Parses `<method>=<updates/s>`, and `<updates/s>` for all others, which has the name "".

    Raises ValueError if a text has another form, or names an unknown method.
    """
    speeds = {}
    for text in texts:
        method, _, number = text.rpartition("=")
        try:
            if method:
                get_config(method)
            speeds[method] = float(number)
        except ValueError as error:
            raise ValueError(f"--updates_per_second={text}: {error}") from error
        if not speeds[method] > 0:
            raise ValueError(f"--updates_per_second={text}: expected a number above 0.")
    return speeds


def measure_speeds(jobs: Iterable[Job]) -> dict[str, float]:
    """Updates per second of each method: the median over its existing runs."""
    measured: dict[str, list[float]] = {}
    for job in jobs:
        rows = read_rows(job.folder / "train.csv")[1:]  # the first row includes compiling
        speeds = [row["updates_per_second"] for row in rows if row.get("updates_per_second", 0) > 0]
        if speeds:  # rows of the online stage have none
            measured.setdefault(job.method, []).append(statistics.median(speeds))
    return {method: statistics.median(speeds) for method, speeds in measured.items()}


def hours(jobs: Sequence[Job], speeds: Mapping[str, float]) -> tuple[float, list[str]]:
    """Hours of the jobs' remaining updates, and the methods whose speed is unknown.

    Online updates count as offline ones. The speeds are those of `parse_speeds`.
    """
    known = {job.method: speeds.get(job.method, speeds.get("")) for job in jobs}
    seconds = sum(updates_left(job) / speed for job in jobs if (speed := known[job.method]))
    return seconds / 3600, sorted(method for method, speed in known.items() if not speed)


def updates_left(job: Job) -> int:
    """Number of updates until the job is finished."""
    settings, done = job.resolved.settings, last_step(job)
    offline = settings.bc_steps + settings.offline_steps
    online = settings.total_steps - max(done, offline + settings.start_training)
    return max(0, offline - done) + max(0, online) * settings.utd_ratio
