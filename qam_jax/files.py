"""Files that are either absent, the old version or complete: never half-written."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_logger = logging.getLogger(__name__)

_GLANCE_SECONDS = 0.1  # in which a look at a lock is over
_HOLDER = re.compile(r"^process \d+ on ")  # of the note in a lock's file


class DamagedError(ValueError):
    """What was saved cannot be read back."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; moves it into place only if the block succeeds.

    The content reaches the disk before the move, so that a crash leaves either the old file or
    the new one. The temporary name keeps the suffix of `path`, since writers such as `np.savez`
    look at it.

    Args:
      path: the file to create or replace. Its folder is created.

    Raises:
      OSError: if the folder cannot be created or written to; the message names it.
    """
    path = Path(path)
    ensure_writable_dir(path.parent)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}"
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only the owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def ensure_writable_dir(path: str | os.PathLike) -> Path:
    """Creates the folder `path` and checks that files can be made in it.

    Raises:
      OSError: naming the folder and what to do, if that is not so.
    """
    path = Path(path).expanduser()
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


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file. Raises DamagedError, naming it, if it is damaged."""
    try:
        return json.loads(Path(path).read_text())
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
    """Lets one process at a time into the block; the kernel frees the lock of one that dies.

    Args:
      path: the lock's file. It is created, and says who holds it. The holder may remove it.
      doing: what is done in the block, for the note to those who wait.
      wait: whether to wait for another process.

    Yields:
      Whether the lock is held: False where the file system has no locks.

    Raises:
      BlockingIOError: if another process holds the lock and `wait` is False; says which.
    """
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "a+"))
            held = _lock(file, doing, wait)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break  # else the last holder removed it in between
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield held


def is_held(path: str | os.PathLike) -> bool | None:
    """Whether a process holds the lock of `hold_lock`.

    Locks of other machines may not be seen over a shared file system, so only the machine that
    held it last is sure that nobody does.

    Args:
      path: the lock's file, which is not changed.

    Returns:
      None if that cannot be told from here.
    """
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            holder = file.read()
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return None
    return False if _HOLDER.sub("", holder) == platform.node() else None


def _lock(file: TextIO, doing: str, wait: bool) -> bool:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait:
                _logger.warning("another process is %s; waiting for it", doing)
                fcntl.flock(file, fcntl.LOCK_EX)
            else:
                _try_again(file)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        _logger.warning("%s cannot be locked: let one process at a time be %s", file.name, doing)
        return False
    return True


def _try_again(file: TextIO) -> None:
    """Takes a lock that was held a moment ago, if only by `is_held`, which looks just then.

    Raises:
      BlockingIOError: if it is still held; says by whom.
    """
    time.sleep(_GLANCE_SECONDS)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise BlockingIOError(error.errno, file.read()) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
