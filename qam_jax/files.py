"""Files that are either absent, the old version or complete: never half-written."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes `content` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
