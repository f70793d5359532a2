"""Downloads OGBench's datasets (arXiv 2410.20092) from the first mirror that has them.

During a transfer three files stand beside the target. `<file>.part` holds the bytes that have
arrived. `<file>.part.json` names the remote file that they are the beginning of.
`<file>.part.lock` keeps a second process waiting. A broken transfer goes on where it stopped, also
in a later run. A file gets its name only once it is complete and all checksums in it are right, so
pieces that do not belong together are never kept.

Own code, because `urllib3.Retry` cannot continue a body that broke off.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from qam_jax.data import npz
from qam_jax.data.checks import REQUIRED_FIELDS, check_headers
from qam_jax.files import ensure_writable_dir, hold_lock, read_json, user_path, write_json

MIRRORS = (
    "https://rail.eecs.berkeley.edu/datasets/ogbench",
    "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main",
)

_CHUNK_BYTES = 64 * 1024  # at most this much is fetched twice when a transfer breaks
_PASSING_STATUSES = (408, 416, 429, 500, 502, 503, 504)  # worth asking again
_logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """No mirror could provide a file; the message says why for each, and what to do next."""


class _MirrorError(Exception):
    """This mirror cannot provide the file."""


class _BrokenTransferError(_MirrorError):
    """The transfer broke off; the same mirror may provide the rest."""


def download_dataset(
    dataset_name: str,
    dataset_dir: str | os.PathLike,
    *,
    mirrors: Sequence[str] = MIRRORS,
    timeout: float = 30.0,
    retries: int = 3,
    backoff: float = 0.5,
) -> str | None:
    """Fetches the validation and the training file of a dataset, unless they are there.

    The validation file comes first: where this function put a training file, both are complete. A
    terminal shows a bar for each file. Proxies are taken from the usual environment variables.

    Args:
      dataset_name: OGBench's name, such as `cube-double-play-v0`.
      dataset_dir: the folder to put the files in. It is created.
      mirrors: addresses to put `/<file>` behind, tried in this order. The mirror of a partial file
        is asked first.
      timeout: seconds to wait for a connection, and for each next piece of data.
      retries: how many times in a row a mirror may break off without headway before the next
        mirror is tried.
      backoff: seconds before asking again after a transfer broke off; doubled each time in a row.

    Returns:
      The mirror that served the training file; None if the file was there already.

    Raises:
      DownloadError: if no mirror provides a file.
      OSError: at once, if the folder cannot be written to or the disk is full.
      ValueError: if an argument makes no sense.
    """
    if not re.fullmatch(r"\w[\w.-]*", dataset_name):
        raise ValueError(
            f"{dataset_name!r} is not a dataset name: expected one such as 'cube-double-play-v0'."
        )
    if isinstance(mirrors, str) or not mirrors:
        raise ValueError(f"mirrors must be a sequence of one or more addresses, got {mirrors!r}.")
    folder = user_path(dataset_dir)
    fetch = partial(_fetch, timeout=timeout, retries=retries, backoff=backoff)
    for name in (f"{dataset_name}-val.npz", f"{dataset_name}.npz"):
        target = folder / name
        mirror = None if target.exists() else _provide(target, mirrors, fetch)
    return mirror


def _provide(
    target: Path, mirrors: Sequence[str], fetch: Callable[[str, Path], None]
) -> str | None:
    """Downloads one file and returns the mirror; None if another process did it meanwhile."""
    ensure_writable_dir(target.parent)
    part = target.with_name(f"{target.name}.part")
    lock = target.with_name(f"{target.name}.part.lock")
    with hold_lock(lock, f"downloading {target}"):
        try:
            mirror = None if target.exists() else _fetch_from_any(mirrors, target.name, part, fetch)
        except DownloadError:
            raise
        except OSError as error:  # the disk's: errors of the network end in `_attempt`
            raise OSError(
                error.errno,
                f"cannot store {target.name} in {str(target.parent)!r}: {error.strerror}. Free "
                "some space or choose another folder; the same command then continues where "
                "it stopped.",
            ) from error
        if mirror:
            os.replace(part, target)
            _discard(part)
        lock.unlink(missing_ok=True)
        return mirror


def _fetch_from_any(
    mirrors: Sequence[str], name: str, part: Path, fetch: Callable[[str, Path], None]
) -> str:
    """Completes a partial file and returns the mirror."""
    urls = {f"{mirror.rstrip('/')}/{name}": mirror for mirror in mirrors}
    started = _read_note(part).get("url")
    failures = []
    for url in sorted(urls, key=lambda url: url != started):
        try:
            fetch(url, part)
            return urls[url]
        except _MirrorError as error:
            failures.append(f"  {url}: {error}")
    stem = name.removesuffix(".npz").removesuffix("-val")
    raise DownloadError(
        f"could not download {name}. Mirrors tried:\n" + "\n".join(failures) + "\n"
        "What to do: run the same command again (it continues where it stopped); or name another "
        f"mirror with --mirrors; or copy {stem}.npz and {stem}-val.npz into "
        f"{str(part.parent)!r} by hand; or simulate it, if it is in the "
        "list of experiments/generate_dataset.py --list (--data_source=generate)."
    )


def _fetch(url: str, part: Path, *, timeout: float, retries: int, backoff: float) -> None:
    """Completes a partial file from one address, asking again while that makes headway."""
    failed, farthest = 0, 0
    while True:
        try:
            return _check(part, joined=_attempt(url, part, timeout))
        except _BrokenTransferError as error:
            failed = 0 if _size(part) > farthest else failed + 1
            farthest = max(farthest, _size(part))
            if failed > retries:
                raise
            _logger.warning("%s: %s; trying again", url, error)
            time.sleep(backoff * 2**failed)


def _attempt(url: str, part: Path, timeout: float) -> bool:
    """Makes one request and stores its answer; returns whether it was joined to earlier data."""
    note, start = _read_note(part), _size(part)
    if note.get("url") != url or not note["size"] or start > note["size"]:
        start = 0
    elif start == note["size"]:
        return True  # stopped between the last byte and the check
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            status = response.status_code
            if status in (200, 206):
                _save(response, url, part)
                return status == 206
            if status == 416:  # the remote file has become shorter
                _discard(part)
            error_type = _BrokenTransferError if status in _PASSING_STATUSES else _MirrorError
            raise error_type(f"HTTP {status} {response.reason}")
    except requests.RequestException as error:
        lasts = isinstance(error, requests.ConnectTimeout)  # it took long already
        error_type = _MirrorError if lasts else _BrokenTransferError
        raise error_type(f"{type(error).__name__}: {error}") from error


def _save(response: requests.Response, url: str, part: Path) -> None:
    """Writes a whole file, or what follows the partial file."""
    chunks = response.iter_content(_CHUNK_BYTES)
    chunk = next(chunks, b"")
    if response.status_code == 200:
        if not chunk.startswith(b"PK"):  # before an earlier partial file is given up for it
            kind = response.headers.get("Content-Type", "unknown")
            raise _MirrorError(f"the answer is not an .npz file (content type {kind})")
        length = response.headers.get("Content-Length", "")
        part.write_bytes(b"")  # first, so that the new note never stands for old bytes
        write_json(
            _note_path(part), {"url": url, "size": int(length) if length.isdigit() else None}
        )
    size = _read_note(part)["size"]
    bar = tqdm(
        desc=part.stem, total=size, initial=_size(part), unit="B", unit_scale=True, disable=None
    )
    with bar, open(part, "ab") as file:
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = next(chunks, b"")


def _check(part: Path, *, joined: bool) -> None:
    """Checks every byte of a finished transfer; removes it if it is not a sound dataset."""
    try:
        headers = npz.read_headers(part, verify=True)
        check_headers(headers, REQUIRED_FIELDS, source=str(part))
    except ValueError as error:
        _discard(part)  # if it was joined, the remote file may have changed meanwhile
        raise (_BrokenTransferError if joined else _MirrorError)(str(error)) from error
    with open(part, "rb+") as file:
        os.fsync(file.fileno())


def _read_note(part: Path) -> dict[str, Any]:
    """The `url` and the `size` of the file that a partial file is the beginning of."""
    try:
        return read_json(_note_path(part))
    except (FileNotFoundError, ValueError):
        return {}


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)
