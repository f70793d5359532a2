"""Executes jobs on a cluster: arrays of SLURM by submitit, requeued where they are preempted."""

import getpass
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qam_jax.files import read_json, write_json
from qam_jax.sweeps.jobs import Job
from qam_jax.sweeps.worker import RunTask

if TYPE_CHECKING:
    import submitit

DEFAULTS: dict[str, Any] = {
    "time": 24 * 60,  # minutes; what is not done by then is requeued and continued
    "gpus_per_node": 1,
    "cpus_per_task": 8,
    "mem": "32GB",
    "signal_delay_s": 120,  # from the request to stop to the end
}
_ARRAY_LENGTH = 1000  # SLURM's own limit, unless a site has changed it
_REQUEUES = 1000
_NUMBERS = "submitted.json"


def make_executor(
    folder: Path, name: str, parameters: Mapping[str, Any]
) -> "submitit.SlurmExecutor":
    """A way to submit to SLURM.

    Args:
      folder: for the scripts, and the logs of submitit itself; on a shared file system.
      name: of the jobs.
      parameters: submitit's for SLURM, beside `DEFAULTS`: partition, account, time in minutes, ...

    Raises:
      ImportError: if submitit is not installed.
      ValueError: if there is no SLURM here, or no such parameter.
    """
    missing = [program for program in ("sbatch", "srun", "squeue") if not shutil.which(program)]
    if missing:
        raise ValueError(
            f"there is no {' and no '.join(missing)} here: start the sweep on a machine of the "
            "cluster from which jobs are submitted, or use --backend=commands."
        )
    try:
        import submitit
    except ImportError as error:
        raise ImportError(
            'submitting to SLURM needs submitit: pip install -e ".[slurm]", or write the commands '
            "to a file by --backend=commands."
        ) from error
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_REQUEUES)
    chosen = {**DEFAULTS, "job_name": name, **parameters}
    more = {"requeue": True, **chosen.pop("additional_parameters", {})}
    executor.update_parameters(**chosen, additional_parameters=more)
    return executor


def queued_jobs(folder: Path) -> set[str]:
    """The names of the jobs that were submitted from a folder and that SLURM still has.

    Args:
      folder: that of the executor.

    Raises:
      OSError: if SLURM does not answer.
    """
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise OSError(
            f"cannot tell which runs wait already: squeue says {result.stderr.strip()!r}. "
            "Try again when SLURM answers."
        )
    waiting = set(result.stdout.split())  # <array>_<index>
    return {name for name, number in _read_numbers(folder).items() if number in waiting}


def submit(
    jobs: Sequence[Job], executor: "submitit.Executor", array_length: int = _ARRAY_LENGTH
) -> list[str]:
    """Submits jobs in arrays, and keeps their numbers, so that none is submitted twice.

    Args:
      jobs: to submit.
      executor: see `make_executor`.
      array_length: the most jobs in one array.

    Returns:
      The jobs' numbers.
    """
    numbers = {}
    for start in range(0, len(jobs), array_length):
        part = jobs[start : start + array_length]
        submitted = executor.map_array(RunTask(), [job.task for job in part])
        numbers |= {job.name: entry.job_id for job, entry in zip(part, submitted, strict=True)}
        folder = Path(executor.folder)
        write_json(folder / _NUMBERS, {**_read_numbers(folder), **numbers})
    return list(numbers.values())


def _read_numbers(folder: Path) -> dict[str, str]:
    path = folder / _NUMBERS
    return read_json(path) if path.exists() else {}
