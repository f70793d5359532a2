"""What jobs will cost, from the speed of their updates."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from qam_jax.agents import get_config
from qam_jax.sweeps.jobs import Job, last_step, read_rows


def parse_speeds(texts: Iterable[str]) -> dict[str, float]:
    """Speeds from `<updates/s>`, for all methods, under "", and `<method>=<updates/s>`.

    Raises:
      ValueError: naming what is not one.
    """
    speeds = {}
    for text in texts:
        method, _, number = text.rpartition("=")
        try:
            speeds[method] = float(number)
        except ValueError:
            speeds[method] = 0.0
        if not speeds[method] > 0:
            raise ValueError(
                f"--updates_per_second takes a number above 0, or <method>=<number>, got {text!r}."
            )
        if method:
            try:
                get_config(method)
            except ValueError as error:
                raise ValueError(f"--updates_per_second: {error}") from error
    return speeds


def measure_speeds(jobs: Iterable[Job]) -> dict[str, float]:
    """Updates per second of each method, as the median over the runs that there are of it."""
    measured: dict[str, list[float]] = {}
    for job in jobs:
        rows = read_rows(job.folder / "train.csv")
        speeds = [row.get("updates_per_second", 0.0) for row in rows[1:]]  # the first compiles
        speeds = [speed for speed in speeds if speed > 0]  # nan, and nothing, of the online stage
        if speeds:
            measured.setdefault(job.method, []).append(statistics.median(speeds))
    return {method: statistics.median(speeds) for method, speeds in measured.items()}


def hours(jobs: Sequence[Job], speeds: Mapping[str, float]) -> tuple[float, list[str]]:
    """How long jobs take one after the other, and the methods whose speed is not known.

    Counted are updates that are still to be made, online ones as fast as offline ones.

    Args:
      jobs: to execute.
      speeds: updates per second by method; under "", of all others.
    """
    seconds, unknown = 0.0, set()
    for job in jobs:
        speed = speeds.get(job.method, speeds.get(""))
        if speed is None:
            unknown.add(job.method)
        else:
            seconds += updates_left(job) / speed
    return seconds / 3600, sorted(unknown)


def updates_left(job: Job) -> int:
    """Updates that a job still has to make."""
    settings = job.resolved.settings
    border = settings.bc_steps + settings.offline_steps
    done = last_step(job)
    online = max(0, settings.total_steps - max(done, border + settings.start_training))
    return max(0, border - done) + online * settings.utd_ratio
