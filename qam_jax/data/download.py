"""Downloads OGBench's datasets (arXiv 2410.20092) from the first mirror that has them.

While a file is fetched, three others stand beside it: `<file>.part` holds what has arrived,
`<file>.part.json` says which remote file that is the beginning of, and `<file>.part.lock` keeps
a second process waiting. A broken transfer goes on where it stopped, also in a later run; a
file gets its name only once it is complete and checked.
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


class DownloadedDataset(NamedTuple):
    """A dataset on disk.

    Attributes:
      path: the training file.
      validation_path: the validation file.
      mirror: which mirror served the training file; None if it was there already.
    """

    path: Path
    validation_path: Path
    mirror: str | None


class _Options(NamedTuple):
    timeout: float
    retries: int
    backoff: float
    progress: bool


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
) -> DownloadedDataset:
    """Fetches the validation and the training file of a dataset, unless they are there.

    The validation file comes first: where this function put a training file, both are complete.
    Proxies are taken from the usual environment variables.

    Args:
      dataset_name: OGBench's name, such as `cube-double-play-v0`.
      dataset_dir: the folder to put the files in. It is created.
      mirrors: addresses to put `/<file>` behind, tried in this order; a mirror that a partial
        file came from is asked first.
      timeout: seconds to wait for a connection, and for each next piece of data.
      retries: how many times in a row a mirror may break off without any headway before the next
        one is tried.
      backoff: seconds before asking again after a transfer broke off; doubled with each time in
        a row.
      progress: whether to show a bar per file, where the output is a terminal.

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
    options = _Options(timeout, retries, backoff, progress)
    mirror = None
    with requests.Session() as session:
        for target in (validation, training):
            mirror = None if target.exists() else _provide(session, target, mirrors, options)
    return DownloadedDataset(training, validation, mirror)


def _provide(
    session: requests.Session, target: Path, mirrors: Sequence[str], options: _Options
) -> str | None:
    """Downloads one file and returns the mirror; None if another process did it meanwhile."""
    ensure_writable_dir(target.parent)
    urls = {f"{mirror.rstrip('/')}/{target.name}": mirror for mirror in mirrors}
    failures = []
    lock = target.with_name(f"{target.name}.part.lock")
    with hold_lock(lock, f"downloading {target}"):
        if target.exists():
            lock.unlink()
            return None
        partial = _Partial(target)
        started = partial.read_note().url
        for url in sorted(urls, key=lambda url: url != started):
            try:
                _fetch(session, url, partial, options)
                partial.finish(target)
                lock.unlink(missing_ok=True)
                return urls[url]
            except _MirrorError as error:
                failures.append(f"  {url}: {error}")
            except OSError as error:  # not the network's: those end in _transfer
                raise _storage_error(target, error) from error
    stem = target.stem.removesuffix("-val")
    raise DownloadError(
        f"could not download {target.name}. Mirrors tried:\n" + "\n".join(failures) + "\n"
        "What to do: run the same command again (it continues where it stopped); or name another "
        f"mirror with --mirrors; or copy {stem}.npz and {stem}-val.npz into "
        f"{str(target.parent)!r} by hand; or simulate it, if it is in the "
        "list of experiments/generate_dataset.py --list (--data_source=generate)."
    )


def _fetch(session: requests.Session, url: str, partial: "_Partial", options: _Options) -> None:
    """Completes the partial file from one address, asking again while that makes headway."""
    failed, farthest = 0, 0
    while True:
        try:
            resumed = _transfer(session, url, partial, options)
            _check_archive(partial, resumed)
            return
        except _BrokenTransferError as error:
            failed = 0 if partial.size() > farthest else failed + 1
            farthest = max(farthest, partial.size())
            if failed > options.retries:
                raise _MirrorError(f"{error} (gave up after {failed} times in a row)") from error
            _logger.warning("%s: %s; trying again", url, error)
            time.sleep(options.backoff * 2**failed)


def _transfer(session: requests.Session, url: str, partial: "_Partial", options: _Options) -> bool:
    """Makes one request. Returns whether its answer was joined to earlier data."""
    note, start = partial.read_note(), partial.size()
    if not (note.url == url and note.validator and note.size and start <= note.size):
        start = 0
    elif start == note.size:
        return True  # stopped between the last byte and the check
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": note.validator}
    try:
        with session.get(url, headers=headers, stream=True, timeout=options.timeout) as response:
            resumed = _check_response(response, start, partial)
            _save_body(response, start if resumed else 0, url, partial, options.progress)
            return resumed
    except requests.RequestException as error:
        passing = isinstance(error, _PASSING_ERRORS) and not isinstance(error, _LASTING_ERRORS)
        raise (_BrokenTransferError if passing else _MirrorError)(_one_line(error)) from error


def _check_response(response: requests.Response, start: int, partial: "_Partial") -> bool:
    """Returns whether the answer continues the partial file (or else is the whole file)."""
    status = response.status_code
    if status in _PASSING_STATUSES:
        raise _BrokenTransferError(f"HTTP {status} {response.reason}")
    if start and status in (206, 416):
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        note, validator = partial.read_note(), _validator(response)
        fits = span and (int(span[1]), int(span[2])) == (start, note.size)
        if status == 416 or not fits or validator not in (None, note.validator):
            partial.discard()
            raise _BrokenTransferError("the remote file has changed, starting from its beginning")
        return True
    if status != 200:
        raise _MirrorError(f"HTTP {status} {response.reason}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _MirrorError(f"unexpected encoding {response.headers['Content-Encoding']!r}")
    return False


def _save_body(
    response: requests.Response, start: int, url: str, partial: "_Partial", progress: bool
) -> None:
    """Writes the answer behind the first `start` bytes of the partial file."""
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdigit() else None
    chunks = response.iter_content(_CHUNK_BYTES)
    chunk = next(chunks, b"")
    if start:
        size = partial.read_note().size
    else:
        if not chunk.startswith(b"PK"):  # before an earlier partial file is given up for it
            kind = response.headers.get("Content-Type", "unknown")
            raise _MirrorError(f"the answer is not an .npz file (content type {kind})")
        partial.begin(_Note(url, _validator(response), size))
    bar = tqdm(
        desc=partial.path.stem,
        total=size,
        initial=start,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: unless the output is a terminal
    )
    with bar, open(partial.path, "ab") as file:
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = next(chunks, b"")
    if size is not None and partial.size() != size:
        raise _BrokenTransferError(f"ended after {partial.size()} of {size} bytes")


def _validator(response: requests.Response) -> str | None:
    """What stands for this version of the remote file in `If-Range` (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _check_archive(partial: "_Partial", resumed: bool) -> None:
    """Checks every byte of a finished transfer; removes it if it is not a sound dataset."""
    problem = _find_damage(partial.path)
    if problem is None:
        return
    partial.discard()
    if resumed:  # the pieces may not belong together, though each was sound
        raise _BrokenTransferError(f"{problem}, starting from the beginning")
    raise _MirrorError(problem)


def _find_damage(path: Path) -> str | None:
    """Names what is wrong with a file of transitions, or returns None. Loads no array."""
    try:
        headers = npz.read_headers(path, verify=True)
    except ValueError as error:
        return f"sent a damaged or truncated file ({error.__cause__})"
    lengths = set()
    for name in npz.REQUIRED_FIELDS:
        if name not in headers:
            return f"sent a file without {name!r}; it has: {', '.join(sorted(headers)) or 'none'}"
        if not headers[name].shape or headers[name].dtype.kind not in "fiub":
            return f"sent a file in which {name!r} is not an array of numbers"
        lengths.add(headers[name].shape[0])
    if len(lengths) > 1:
        return f"sent a file whose fields differ in length ({sorted(lengths)} rows)"
    return None


class _Note(NamedTuple):
    """Which remote file a partial file is the beginning of."""

    url: str | None = None
    validator: str | None = None
    size: int | None = None  # bytes of the whole file


class _Partial:
    """What has arrived of a file, and the note that tells where it is from."""

    def __init__(self, target: Path):
        self.path = target.with_name(f"{target.name}.part")
        self._note_path = target.with_name(f"{target.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def read_note(self) -> _Note:
        try:
            return _Note(**json.loads(self._note_path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return _Note()

    def begin(self, note: _Note) -> None:
        """Empties the file first, so that the new note never stands for old bytes."""
        self.path.write_bytes(b"")
        write_json(self._note_path, note._asdict())

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._note_path.unlink(missing_ok=True)


def _storage_error(target: Path, error: OSError) -> OSError:
    if error.errno is None:  # not from the system, and so with a message of its own
        return error
    return OSError(
        error.errno,
        f"cannot store {target.name} in {str(target.parent)!r}: {error.strerror}. Free "
        "some space or choose another folder; the same command then continues where it stopped.",
    )


def _one_line(error: requests.RequestException) -> str:
    cause = getattr(error.args[0], "reason", error) if error.args else error  # without the pool's
    return f"{type(error).__name__}: {' '.join(str(cause).split())}"
