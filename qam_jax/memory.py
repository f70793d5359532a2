"""Memory and processes of this machine: what is free, and a clear refusal of what does not fit."""

import contextlib
import logging
import os
import resource
from pathlib import Path

from rich.filesize import decimal

from qam_jax.files import num_usable_cpus

REMEDY = (
    "Lower --config.batch_size, the widths of the networks (--config.actor_hidden_dims, "
    "--config.critic_hidden_dims), --config.num_qs, --num_seeds or --buffer_size, or use another "
    "machine. Of data that do not fit, --ogbench_dataset_dir holds one file at a time."
)
"""What to do where no more is known than that memory has run out."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_PROCESS_BYTES = 50 * 10**6  # that an environment's process takes at the least
_FILES_PER_PROCESS, _OTHER_FILES = 2, 100  # open files
_CROWD = 16  # processes for each processor, from which on they mainly wait for each other

_logger = logging.getLogger(__name__)


def free_memory() -> int:
    """Bytes that processes of this machine, or of its control group, can still take."""
    try:
        kibibytes = _read_table(_MEMINFO)
        free = 1024 * (kibibytes["MemAvailable:"] + kibibytes["SwapFree:"])
    except (OSError, KeyError):  # not on macOS
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        cached = _read_table(_CGROUP / "memory.stat")["inactive_file"]
        used = int((_CGROUP / "memory.current").read_text()) - cached
        return min(free, int((_CGROUP / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):  # there is no limit
        return free


def _read_table(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value, *_ in map(str.split, path.read_text().splitlines())}


def free_device_memory() -> tuple[int, str]:
    """Bytes that JAX's first device can still give, and what they are memory of."""
    import jax  # some programs that check the machine's memory do without

    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:  # a CPU
        return free_memory(), "this machine"
    return stats["bytes_limit"] - stats["bytes_in_use"], device.device_kind


def check_fits(label: str, num_bytes: int, remedy: str, *, on_device: bool = True) -> None:
    """Raises MemoryError if something does not fit into the memory.

    The message begins with the `label`, in the plural, and ends with the `remedy`. With `on_device`
    the memory is that of JAX's first device, otherwise the machine's.
    """
    free, place = free_device_memory() if on_device else (free_memory(), "this machine")
    if num_bytes > free:
        raise MemoryError(
            f"{label} need {decimal(num_bytes)} of memory; {decimal(free)} of {place} are free. "
            f"{remedy}"
        )


def is_exhausted(error: BaseException) -> bool:
    """Whether an error of any library says that memory has run out."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def explain(error: BaseException) -> str:
    """Says in one line what an error for which `is_exhausted` holds wanted, and what to lower."""
    text = next(iter(str(error).strip().splitlines()), "")
    if type(error) is MemoryError and text:
        return text  # by `check_fits`
    text = text.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".") or "no more can be had"
    free, place = free_device_memory()
    return f"out of memory ({text}); {decimal(free)} of {place} are free. {REMEDY}"


def check_processes(flag: str, count: int, num_bytes: int = _PROCESS_BYTES) -> None:
    """Raises ValueError if this machine cannot hold so many processes; warns of a crowd.

    `flag` says where the number is given, as `--num_envs=8`; `num_bytes` is the memory of each.
    """
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limits = {"of memory": free_memory() // num_bytes}
    if open_files != resource.RLIM_INFINITY:
        limits["of open files (ulimit -n)"] = (open_files - _OTHER_FILES) // _FILES_PER_PROCESS
    with contextlib.suppress(OSError, ValueError):  # there is no limit
        limits["of processes (pids.max)"] = int((_CGROUP / "pids.max").read_text())
    limit, most = min(limits.items(), key=lambda item: item[1])
    if count > most:
        raise ValueError(
            f"{flag} asks for {count} processes; this machine holds at most {max(most, 0)}, by its "
            f"limit {limit}. It has {num_usable_cpus()} processors: a few for each are the fastest."
        )
    if count > _CROWD * num_usable_cpus():
        _logger.warning(
            "%s: %d processes share %d processors, and mainly wait for each other.",
            flag, count, num_usable_cpus(),
        )  # fmt: skip
