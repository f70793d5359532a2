"""Lock of a run's folder: which process is at work in it, and how the last one ended."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qam_jax.files import hold_lock, is_held, remove_leftovers
from qam_jax.runs.stopping import Stopped

LOCK = "lock"
"""Name of the file. It names the process at work; afterwards it says how that process ended."""

RUNNING, STOPPED, FAILED, FINISHED, UNKNOWN = "running", "stopped", "failed", "finished", ""

_MAX_LENGTH = 1000  # of an error's line
_PLAIN = (ValueError, OSError, ImportError, RuntimeError, MemoryError)  # their messages suffice


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder; the lock ends with the process.

    The lock's file records how the block ended; see `read_status`. An empty folder is removed, and
    so are the temporary files of processes that were killed.

    Raises OSError, which names it, if another process works in the folder.
    """
    path = folder / LOCK
    try:
        with hold_lock(path, f"at work in {folder}", wait=False):
            end = FINISHED
            remove_leftovers(folder)
            try:
                yield
            except BaseException as error:
                end = _describe(error)
                raise
            finally:
                with contextlib.suppress(OSError):  # a full disk, say, is not to hide the error
                    path.write_text(end)  # in place: the lock is of this file, not of its name
                _remove_empty(folder)
    except BlockingIOError as error:
        raise OSError(
            f"another process is at work in the run folder {folder} ({error.strerror}). Wait until "
            "it ends, or give another --run_id."
        ) from None


def read_status(folder: Path) -> tuple[str, str]:
    """Returns the status of the process in a run's folder, and the reason if it is known.

    The status is `running`, `stopped`, `failed` or `finished`. It is empty where the folder does
    not tell, as of a process of another machine that may have been killed.
    """
    path = folder / LOCK
    if held := is_held(path):
        return RUNNING, ""
    try:
        status, _, why = path.read_text(errors="replace").partition(": ")
    except OSError:
        return UNKNOWN, ""
    if status in (STOPPED, FAILED, FINISHED):
        return status, why
    return (UNKNOWN, "") if held is None else (STOPPED, "killed")


def _describe(error: BaseException) -> str:
    kind, text = type(error).__name__, str(error).strip().partition("\n")[0][:_MAX_LENGTH]
    if not isinstance(error, Exception):
        return f"{STOPPED}: {text if isinstance(error, Stopped) else kind}"
    if not isinstance(error, _PLAIN):
        text = f"{kind}: {text}".removesuffix(": ")
    return f"{FAILED}: {text or kind}"


def _remove_empty(folder: Path) -> None:
    """Removes a run's folder if it is empty, and the folders above that become empty."""
    checkpoints = folder / "checkpoints"
    if {entry.name for entry in folder.iterdir()} - {LOCK, checkpoints.name}:
        return
    with contextlib.suppress(OSError):  # raised where one of them is not empty
        if checkpoints.exists():
            checkpoints.rmdir()
        (folder / LOCK).unlink()
        for each in (folder, folder.parent, folder.parent.parent):
            each.rmdir()
