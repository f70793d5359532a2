"""Downloads OGBench's datasets (arXiv 2410.20092) from the first mirror that has them.

What has arrived from an address stands in `<file>.part-<hash of the address>`, and the lock
`<file>.part.lock` keeps a second process waiting. A broken transfer goes on where it stopped, also
in a later run. A file gets its name only once it is complete and all checksums in it are right, so
pieces that do not belong together are never kept.

Own code, because `urllib3.Retry` cannot continue a body that broke off.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import requests
from tqdm import tqdm

from qam_jax.data import npz
from qam_jax.data.checks import REQUIRED_FIELDS, check_headers
from qam_jax.files import ensure_writable_dir, flush_to_disk, hold_lock, user_path

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
    Returns the mirror that served the training file; None if the file was there already.

    Args:
      dataset_name: OGBench's name, such as `cube-double-play-v0`.
      dataset_dir: the folder to put the files in. It is created.
      mirrors: addresses to put `/<file>` behind, tried in this order; those of partial files first.
      timeout: seconds to wait for a connection, and for each next piece of data.
      retries: how many times in a row a mirror may break off without headway before the next
        mirror is tried.
      backoff: seconds before asking again after a transfer broke off; doubled each time in a row.

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
    lock = target.with_name(f"{target.name}.part.lock")
    with hold_lock(lock, f"downloading {target}"):
        try:
            mirror = None if target.exists() else _fetch_from_any(mirrors, target, fetch)
        except DownloadError:
            raise
        except OSError as error:  # the disk's: errors of the network end in `_attempt`
            raise OSError(
                error.errno,
                f"cannot store {target.name} in {str(target.parent)!r}: {error.strerror}. Free "
                "some space or choose another folder; the same command then continues where "
                "it stopped.",
            ) from error
        for leftover in target.parent.glob(f"{target.name}.part*"):
            leftover.unlink(missing_ok=True)
        return mirror


def _fetch_from_any(
    mirrors: Sequence[str], target: Path, fetch: Callable[[str, Path], None]
) -> str:
    """Downloads one file and returns the mirror."""
    urls = {f"{mirror.rstrip('/')}/{target.name}": mirror for mirror in mirrors}
    failures = []
    for url in sorted(urls, key=lambda url: not _part(target, url).exists()):
        try:
            fetch(url, _part(target, url))
            os.replace(_part(target, url), target)
            return urls[url]
        except _MirrorError as error:
            failures.append(f"  {url}: {error}")
    stem = target.name.removesuffix(".npz").removesuffix("-val")
    raise DownloadError(
        f"could not download {target.name}. Mirrors tried:\n" + "\n".join(failures) + "\n"
        "What to do: run the same command again (it continues where it stopped); or name another "
        f"mirror with --mirrors; or copy {stem}.npz and {stem}-val.npz into "
        f"{str(target.parent)!r} by hand; or simulate it, if it is in the "
        "list of experiments/generate_dataset.py --list (--data_source=generate)."
    )


def _part(target: Path, url: str) -> Path:
    return target.with_name(f"{target.name}.part-{hashlib.sha256(url.encode()).hexdigest()[:8]}")


def _fetch(url: str, part: Path, *, timeout: float, retries: int, backoff: float) -> None:
    """Completes a partial file from its address, asking again while that makes headway."""
    if part.exists() and not _fault(part):
        return  # stopped after the last byte
    failed, farthest = 0, 0
    while True:
        try:
            joined = _attempt(url, part, timeout)
            fault = _fault(part)
            if not fault:
                return
            part.unlink()  # if it was joined, the remote file may have changed meanwhile
            raise (_BrokenTransferError if joined else _MirrorError)(fault)
        except _BrokenTransferError as error:
            failed = 0 if _size(part) > farthest else failed + 1
            farthest = max(farthest, _size(part))
            if failed > retries:
                raise
            _logger.warning("%s: %s; trying again", url, error)
            time.sleep(backoff * 2**failed)


def _attempt(url: str, part: Path, timeout: float) -> bool:
    """Makes one request and stores its answer; returns whether it was joined to earlier data."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            status = response.status_code
            if status in (200, 206):
                _save(response, part, start if status == 206 else 0)
                return status == 206
            if status == 416:  # the remote file has become shorter
                part.unlink(missing_ok=True)
            error_type = _BrokenTransferError if status in _PASSING_STATUSES else _MirrorError
            raise error_type(f"HTTP {status} {response.reason}")
    except requests.RequestException as error:
        lasts = isinstance(error, requests.ConnectTimeout)  # it took long already
        error_type = _MirrorError if lasts else _BrokenTransferError
        raise error_type(f"{type(error).__name__}: {error}") from error


def _save(response: requests.Response, part: Path, start: int) -> None:
    """Writes the bytes of a file from `start` on."""
    chunks = response.iter_content(_CHUNK_BYTES)
    chunk = next(chunks, b"")
    if not start and not chunk.startswith(b"PK"):  # before earlier bytes are given up for it
        kind = response.headers.get("Content-Type", "unknown")
        raise _MirrorError(f"the answer is not an .npz file (content type {kind})")
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else None
    bar = tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None)
    with bar, open(part, "ab" if start else "wb") as file:
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = next(chunks, b"")


def _fault(part: Path) -> str:
    """Reads every byte of a file; says why it is no sound dataset, if it is none."""
    try:
        headers = npz.read_headers(part, verify=True)
        check_headers(headers, REQUIRED_FIELDS, source=str(part))
    except ValueError as error:
        return str(error)
    flush_to_disk(part)
    return ""


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
