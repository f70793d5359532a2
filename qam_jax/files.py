"""Services of the operating system: atomic files, locks between processes, processors."""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_logger = logging.getLogger(__name__)

_GLANCE_SECONDS = 0.1  # `is_held` looks at a lock for less than this time
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class DamagedError(ValueError):
    """A saved file cannot be read back."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and moves the file into place if the block succeeds.

    After a crash, `path` holds the old file or the complete new one, never a part. This is own
    code because no dependency of the project offers it. The temporary name keeps the suffix of
    `path`, because writers such as `np.savez` look at it. A lock marks it as in use: the next call
    for `path` removes what a killed process has left. The folder of `path` is created. Raises
    OSError, which names it, if this fails or it cannot be written to.
    """
    path = Path(os.path.realpath(path))  # a link stays, and its file is replaced
    ensure_writable_dir(path.parent)
    remove_leftovers(path.parent, f".{glob.escape(path.stem)}")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    with contextlib.ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        in_use = stack.enter_context(open(temporary, "wb"))
        with contextlib.suppress(OSError):  # where there are no locks
            fcntl.flock(in_use, fcntl.LOCK_EX)
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)


def remove_leftovers(folder: Path, pattern: str = "**/.*") -> None:
    """Removes what `atomic_write` has left of a folder's files where its process was killed.

    The pattern is of the names without their random part, such as `.config` for `config.json`.
    """
    for each in folder.glob(f"{pattern}.????????.tmp*"):
        with contextlib.suppress(OSError), open(each) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while a process writes it
            each.unlink()


def flush_to_disk(path: str | os.PathLike) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def user_path(path: str | os.PathLike) -> Path:
    """Returns a path with the home folder in place of `~`. Raises OSError if none is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(
            f"the home folder in {os.fspath(path)!r} is not known (~ is the folder of HOME, "
            "~<name> that of a user of this machine). Give the full path."
        ) from error


def ensure_writable_dir(path: str | os.PathLike) -> Path:
    """Creates a folder. Raises OSError, which names it, if files cannot be created in it."""
    path = user_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {str(path)!r} ({error.strerror}). "
            "Choose another folder, or change its permissions."
        ) from error
    return path


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON object. Raises DamagedError, which names the file, if it is damaged."""
    try:
        content = json.loads(Path(path).read_text())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except ValueError as error:
        raise DamagedError(
            f"{path} is damaged ({error}). Restore it from a copy, or start a new run."
        ) from error


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes `content` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def hold_lock(path: str | os.PathLike, doing: str, *, wait: bool = True) -> Iterator[bool]:
    """Lets one process at a time into the block; the kernel frees the lock of a dead process.

    The package `filelock` does not serve: it cannot say who holds a lock, whether any process
    holds it (`is_held`), nor go on with a warning where the file system has no locks.

    The file `path` is created, and names the holder, who may remove it. `doing` says what the block
    does, for the log of a process that waits. Yields whether the lock is held: False where the file
    system has no locks. Raises BlockingIOError, whose `strerror` names the holder, if another
    process holds the lock and `wait` is False.
    """
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "a+"))
            held = _lock(file, doing, wait)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break  # otherwise the last holder has removed the file meanwhile
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield held


def is_held(path: str | os.PathLike) -> bool | None:
    """Whether a process holds the lock of `hold_lock`; None if this machine cannot tell.

    A shared file system may hide the locks of other machines. A lock that seems free is therefore
    certainly free only on the machine that held it last. The file is not changed.
    """
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            holder = file.read()
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return None
    return False if holder.rpartition(" on ")[2] == platform.node() else None


def num_usable_cpus() -> int:
    """Number of processors that this process may use; the machine can have more."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lock(file: TextIO, doing: str, wait: bool) -> bool:
    at_once = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, at_once)
            return True
        if wait:
            _logger.warning("another process is %s; waiting for it", doing)
        else:
            time.sleep(_GLANCE_SECONDS)  # `is_held` of another process may hold it just now
        fcntl.flock(file, fcntl.LOCK_EX if wait else at_once)
        return True
    except BlockingIOError:
        file.seek(0)
        raise BlockingIOError(errno.EWOULDBLOCK, file.read()) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _logger.warning("%s cannot be locked: let one process at a time be %s", file.name, doing)
        return False
