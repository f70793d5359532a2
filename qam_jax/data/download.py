"""Downloads OGBench's datasets (arXiv 2410.20092) from the first mirror that has them.

During a transfer three files stand beside the target. `<file>.part` holds the bytes that have
arrived. `<file>.part.json` names the remote file that they are the beginning of.
`<file>.part.lock` keeps a second process waiting. A broken transfer goes on where it stopped, also
in a later run. A file gets its name only once it is complete and checked.
"""

import json
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import requests
from tqdm import tqdm

from qam_jax.data import npz
from qam_jax.data.checks import REQUIRED_FIELDS, check_headers
from qam_jax.files import ensure_writable_dir, hold_lock, write_json

MIRRORS = (
    "https://rail.eecs.berkeley.edu/datasets/ogbench",
    "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main",
)

_CHUNK_BYTES = 64 * 1024  # at most this much is fetched twice when a transfer breaks
_PASSING_STATUSES = (408, 429, 500, 502, 503, 504)  # worth asking again
_LASTING_ERRORS = (
    requests.exceptions.ConnectTimeout,
    requests.exceptions.ProxyError,
    requests.exceptions.SSLError,
)
_PASSING_ERRORS = (
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
)
_logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """No mirror could provide a file; the message says why for each, and what to do next."""


class _MirrorError(Exception):
    """This mirror cannot provide the file."""


class _BrokenTransferError(Exception):
    """The transfer broke off; the same mirror may provide the rest."""


def download_dataset(
    dataset_name: str,
    dataset_dir: str | os.PathLike,
    *,
    mirrors: Sequence[str] = MIRRORS,
    timeout: float = 30.0,
    retries: int = 3,
    backoff: float = 0.5,
    progress: bool = True,
) -> str | None:
    """Fetches the validation and the training file of a dataset, unless they are there.

    The validation file comes first: where this function put a training file, both are complete.
    Proxies are taken from the usual environment variables.

    Args:
      dataset_name: OGBench's name, such as `cube-double-play-v0`.
      dataset_dir: the folder to put the files in. It is created.
      mirrors: addresses to put `/<file>` behind, tried in this order. The mirror of a partial file
        is asked first.
      timeout: seconds to wait for a connection, and for each next piece of data.
      retries: how many times in a row a mirror may break off without headway before the next
        mirror is tried.
      backoff: seconds before asking again after a transfer broke off; doubled each time in a row.
      progress: whether to show a bar per file, where the output is a terminal.

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
    folder = Path(dataset_dir).expanduser()
    training, validation = folder / f"{dataset_name}.npz", folder / f"{dataset_name}-val.npz"
    with requests.Session() as session:
        for target in (validation, training):
            transfer = _Transfer(target, session, timeout, progress)
            mirror = None if target.exists() else _provide(transfer, mirrors, retries, backoff)
    return mirror


def _provide(
    transfer: "_Transfer", mirrors: Sequence[str], retries: int, backoff: float
) -> str | None:
    """Downloads one file and returns the mirror; None if another process did it meanwhile."""
    target = transfer.target
    ensure_writable_dir(target.parent)
    urls = {f"{mirror.rstrip('/')}/{target.name}": mirror for mirror in mirrors}
    failures = []
    lock = target.with_name(f"{target.name}.part.lock")
    with hold_lock(lock, f"downloading {target}"):
        if target.exists():
            lock.unlink()
            return None
        started = transfer.read_note().url
        for url in sorted(urls, key=lambda url: url != started):
            try:
                transfer.fetch(url, retries, backoff)
                transfer.finish()
                lock.unlink(missing_ok=True)
                return urls[url]
            except _MirrorError as error:
                failures.append(f"  {url}: {error}")
            except OSError as error:  # the disk's: errors of the network end in `_request`
                raise OSError(
                    error.errno,
                    f"cannot store {target.name} in {str(target.parent)!r}: {error.strerror}. Free "
                    "some space or choose another folder; the same command then continues where "
                    "it stopped.",
                ) from error
    stem = target.stem.removesuffix("-val")
    raise DownloadError(
        f"could not download {target.name}. Mirrors tried:\n" + "\n".join(failures) + "\n"
        "What to do: run the same command again (it continues where it stopped); or name another "
        f"mirror with --mirrors; or copy {stem}.npz and {stem}-val.npz into "
        f"{str(target.parent)!r} by hand; or simulate it, if it is in the "
        "list of experiments/generate_dataset.py --list (--data_source=generate)."
    )


class _Note(NamedTuple):
    """Remote file that a partial file is the beginning of."""

    url: str | None = None
    validator: str | None = None
    size: int | None = None  # bytes of the whole file


class _Transfer:
    """A file on its way: the part that has arrived, and the note that names its origin.

    Own code, because `urllib3.Retry` cannot continue a body that broke off.
    """

    def __init__(self, target: Path, session: requests.Session, timeout: float, progress: bool):
        self.target = target
        self._session, self._timeout, self._progress = session, timeout, progress
        self._part = target.with_name(f"{target.name}.part")
        self._note_path = target.with_name(f"{target.name}.part.json")

    def read_note(self) -> _Note:
        try:
            return _Note(**json.loads(self._note_path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return _Note()

    def fetch(self, url: str, retries: int, backoff: float) -> None:
        """Completes the partial file from one address, asking again while that makes headway."""
        failed, farthest = 0, 0
        while True:
            try:
                resumed = self._request(url)
                self._check(resumed)
                return
            except _BrokenTransferError as error:
                failed = 0 if self._size() > farthest else failed + 1
                farthest = max(farthest, self._size())
                if failed > retries:
                    message = f"{error} (gave up after {failed} times in a row)"
                    raise _MirrorError(message) from error
                _logger.warning("%s: %s; trying again", url, error)
                time.sleep(backoff * 2**failed)

    def finish(self) -> None:
        with open(self._part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._part, self.target)
        self._note_path.unlink(missing_ok=True)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def _request(self, url: str) -> bool:
        """Makes one request. Returns whether its answer was joined to earlier data."""
        note, start = self.read_note(), self._size()
        if not (note.url == url and note.validator and note.size and start <= note.size):
            start = 0
        elif start == note.size:
            return True  # stopped between the last byte and the check
        headers = {"Accept-Encoding": "identity"}
        if start and note.validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": note.validator}
        try:
            with self._session.get(
                url, headers=headers, stream=True, timeout=self._timeout
            ) as response:
                resumed = self._continues(response, start)
                self._save(response, start if resumed else 0, url)
                return resumed
        except requests.RequestException as error:
            passing = isinstance(error, _PASSING_ERRORS) and not isinstance(error, _LASTING_ERRORS)
            cause = getattr(error.args[0], "reason", error) if error.args else error
            message = f"{type(error).__name__}: {' '.join(str(cause).split())}"
            raise (_BrokenTransferError if passing else _MirrorError)(message) from error

    def _continues(self, response: requests.Response, start: int) -> bool:
        """Whether the answer continues the partial file; otherwise it is the whole file."""
        status = response.status_code
        if status in _PASSING_STATUSES:
            raise _BrokenTransferError(f"HTTP {status} {response.reason}")
        if start and status in (206, 416):
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            note = self.read_note()
            fits = span and (int(span[1]), int(span[2])) == (start, note.size)
            if status == 416 or not fits or _validator(response) not in (None, note.validator):
                self._discard()
                raise _BrokenTransferError(
                    "the remote file has changed, starting from its beginning"
                )
            return True
        if status != 200:
            raise _MirrorError(f"HTTP {status} {response.reason}")
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise _MirrorError(f"unexpected encoding {encoding!r}")
        return False

    def _save(self, response: requests.Response, start: int, url: str) -> None:
        """Writes the answer behind the first `start` bytes of the partial file."""
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
        chunks = response.iter_content(_CHUNK_BYTES)
        chunk = next(chunks, b"")
        if start:
            size = self.read_note().size
        else:
            if not chunk.startswith(b"PK"):  # before an earlier partial file is given up for it
                kind = response.headers.get("Content-Type", "unknown")
                raise _MirrorError(f"the answer is not an .npz file (content type {kind})")
            self._part.write_bytes(b"")  # first, so that the new note never stands for old bytes
            write_json(self._note_path, _Note(url, _validator(response), size)._asdict())
        bar = tqdm(
            desc=self._part.stem,
            total=size,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None if self._progress else True,  # None: unless the output is a terminal
        )
        with bar, open(self._part, "ab") as file:
            while chunk:
                file.write(chunk)
                bar.update(len(chunk))
                chunk = next(chunks, b"")
        if size is not None and self._size() != size:
            raise _BrokenTransferError(f"ended after {self._size()} of {size} bytes")

    def _check(self, resumed: bool) -> None:
        """Checks every byte of a finished transfer; removes it if it is not a sound dataset."""
        try:
            headers = npz.read_headers(self._part, verify=True)
        except ValueError as error:
            problem = f"sent a damaged or truncated file ({error.__cause__})"
        else:
            try:
                check_headers(headers, REQUIRED_FIELDS, source="sent a file that is no dataset")
                return
            except ValueError as error:
                problem = str(error)
        self._discard()
        if resumed:  # the pieces may not belong together, though each was sound
            raise _BrokenTransferError(f"{problem}, starting from the beginning")
        raise _MirrorError(problem)


def _validator(response: requests.Response) -> str | None:
    """Identifies this version of the remote file in `If-Range` (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")
