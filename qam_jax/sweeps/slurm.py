"""Submits jobs to SLURM in arrays, by submitit; jobs that are preempted are requeued."""

import getpass
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qam_jax.files import ensure_writable_dir, read_json, write_json
from qam_jax.sweeps.jobs import Job
from qam_jax.sweeps.worker import RunTask

if TYPE_CHECKING:
    import submitit

DEFAULTS: dict[str, Any] = {
    "time": 24 * 60,  # minutes; unfinished jobs are then requeued and continued
    "gpus_per_node": 1,
    "cpus_per_task": 8,
    "mem": "32GB",
    "signal_delay_s": 120,  # from the request to stop to the end
}
_ARRAY_LENGTH = 1000  # SLURM's default limit
_REQUEUES = 1000
_NUMBERS = "submitted.json"


def make_executor(
    folder: Path, name: str, parameters: Mapping[str, Any]
) -> "submitit.SlurmExecutor":
    """Makes the executor that submits jobs of a name to SLURM.

    The folder, on a shared file system, gets the scripts and submitit's own logs. The parameters
    are submitit's for SLURM, such as partition; they win over `DEFAULTS`.

    Raises ImportError without submitit, OSError if the folder cannot be written to, and ValueError
    if this machine has no SLURM, or submitit does not know a parameter.
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
    executor = submitit.SlurmExecutor(folder=ensure_writable_dir(folder), max_num_timeout=_REQUEUES)
    chosen = {**DEFAULTS, "job_name": name, **parameters}
    more = {"requeue": True, **chosen.pop("additional_parameters", {})}
    executor.update_parameters(**chosen, additional_parameters=more)
    return executor


def queued_jobs(folder: Path) -> set[str]:
    """Names of the queued jobs of an executor's folder. Raises OSError if SLURM does not answer."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise OSError(
            f"cannot tell which runs are queued: squeue says {result.stderr.strip()!r}. "
            "Try again when SLURM answers."
        )
    queued = set(result.stdout.split())  # <array>_<index>
    return {name for name, number in _read_numbers(folder).items() if number in queued}


def submit(
    jobs: Sequence[Job], executor: "submitit.Executor", array_length: int = _ARRAY_LENGTH
) -> list[str]:
    """Submits jobs in arrays; records their numbers, so that none is submitted twice."""
    folder, numbers = Path(executor.folder), dict[str, str]()
    for start in range(0, len(jobs), array_length):
        part = jobs[start : start + array_length]
        submitted = executor.map_array(RunTask(), [job.task for job in part])
        numbers |= {job.name: entry.job_id for job, entry in zip(part, submitted, strict=True)}
        write_json(folder / _NUMBERS, {**_read_numbers(folder), **numbers})
    return list(numbers.values())


def _read_numbers(folder: Path) -> dict[str, str]:
    path = folder / _NUMBERS
    return read_json(path) if path.exists() else {}
