"""Downloads from real HTTP servers on this machine that misbehave in all the usual ways."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import qam_jax
from qam_jax import files
from qam_jax.data import download
from qam_jax.data.download import DownloadError, download_dataset

NAME = "cube-double-play-v0"
TRAIN, VAL = f"{NAME}.npz", f"{NAME}-val.npz"


def _npz_bytes(seed: int = 0, num_rows: int = 2000, fields=3) -> bytes:
    rng = np.random.default_rng(seed)
    data = {
        "observations": rng.normal(size=(num_rows, 40)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(num_rows, 5)).astype(np.float32),
        "terminals": (np.arange(num_rows) % 100 == 99).astype(np.float32),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(list(data.items())[:fields]))
    return buffer.getvalue()


def _flipped(position: int) -> bytes:
    """The training file with one wrong bit."""
    changed = bytearray(TRAIN_BYTES)
    changed[position] ^= 1
    return bytes(changed)


TRAIN_BYTES = _npz_bytes()
VAL_BYTES = _npz_bytes(seed=1, num_rows=100)


class Mirror:
    """An HTTP server with the two files; `script` says how to answer the training file's GETs.

    Each answer is called with the request handler and the file; when the script is used up, its
    last entry answers. The validation file is always served properly.
    """

    def __init__(self, *script):
        self.script = list(script) or [serve()]
        self.requests: list[dict[str, str]] = []  # headers of the requests for the training file
        self.paths: list[str] = []
        self.bytes_sent = 0
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.paths.append(handler.path)
        handler.mirror = self
        if handler.path == f"/data/{VAL}":
            serve()(handler, VAL_BYTES)
            return
        self.requests.append(dict(handler.headers))
        answer = self.script.pop(0) if self.script[1:] else self.script[0]
        with contextlib.suppress(ConnectionError):  # a client that was killed
            answer(handler, TRAIN_BYTES)


def serve(content=None, *, stop=None, ranges=True, length=True, kind="application/zip"):
    """An answer to a GET, proper by default.

    `content` stands in place of the file; at byte `stop` the connection is dropped; `ranges` says
    whether parts of the file are sent; `length` whether Content-Length is.
    """

    def answer(handler, body):
        body, asked = body if content is None else content, handler.headers
        start = int(asked["Range"][6:-1]) if ranges and "Range" in asked else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if length:
            handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        handler.wfile.write(body[start:stop])
        handler.mirror.bytes_sent += len(body[start:stop])

    return answer


def status(code: int):
    return lambda handler, body: handler.send_error(code)


STOP = 200_000
BROKEN = serve(stop=STOP)
PAGE = serve(b"<html>Log in</html>", kind="text/html")


@pytest.fixture(autouse=True)
def _no_proxy_and_no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def mirror():
    """Starts mirrors; stops them after the test."""
    started = []

    def start(*script) -> Mirror:
        started.append(Mirror(*script))
        return started[-1]

    yield start
    for each in started:
        each.server.shutdown()
        each.server.server_close()


def _download(folder: Path, *mirrors: Mirror | str, **options):
    urls = [each if isinstance(each, str) else each.url for each in mirrors]
    options = {"timeout": 5.0, "backoff": 0.0} | options
    return download_dataset(NAME, folder, mirrors=urls, **options)


def _assert_complete(folder: Path) -> None:
    assert (folder / TRAIN).read_bytes() == TRAIN_BYTES
    assert (folder / VAL).read_bytes() == VAL_BYTES
    assert sorted(path.name for path in folder.iterdir()) == [VAL, TRAIN]  # nothing left over


def test_fetches_the_validation_file_first_and_each_file_once(mirror, tmp_path):
    good = mirror()
    result = _download(tmp_path / "new", good)
    assert result == good.url
    _assert_complete(tmp_path / "new")
    assert good.paths == [f"/data/{VAL}", f"/data/{TRAIN}"]
    assert _download(tmp_path / "new", good) is None
    assert len(good.paths) == 2


def test_a_dropped_connection_is_resumed_where_it_stopped(mirror, tmp_path):
    flaky = mirror(BROKEN, serve())
    (tmp_path / f"{TRAIN}.part").write_bytes(b"PK")  # of an earlier version of this package
    _download(tmp_path, flaky)
    _assert_complete(tmp_path)
    first, second = flaky.requests
    assert "Range" not in first
    start = int(second["Range"][6:-1])
    assert STOP - 64 * 1024 < start <= STOP
    assert flaky.bytes_sent - len(VAL_BYTES) < 1.5 * len(TRAIN_BYTES)


_OTHER, _SHORTER = _npz_bytes(seed=7), _npz_bytes(seed=7, num_rows=1990)
_SECOND_ATTEMPTS = {  # the server's answers, and which of the requests ask for a range
    "server ignores ranges": ([BROKEN, serve(ranges=False)], "-r"),
    "changed": ([serve(_OTHER, stop=STOP), serve()], "-r-"),
    "other size": ([serve(_SHORTER, stop=STOP), serve()], "-r-"),
    "one wrong bit": ([serve(_flipped(1000), stop=STOP), serve()], "-r-"),
    "416": ([BROKEN, status(416), serve()], "-r-"),
}


@pytest.mark.parametrize(("script", "asked"), _SECOND_ATTEMPTS.values(), ids=_SECOND_ATTEMPTS)
def test_a_second_attempt_never_joins_what_does_not_belong_together(
    mirror, tmp_path, script, asked
):
    flaky = mirror(*script)
    _download(tmp_path, flaky)
    _assert_complete(tmp_path)
    assert "".join("r" if "Range" in each else "-" for each in flaky.requests) == asked


def test_retries_continue_while_there_is_headway(mirror, tmp_path):
    quarters = [serve(stop=len(TRAIN_BYTES) * part // 4) for part in (1, 2, 3)]
    flaky = mirror(*quarters, serve())
    _download(tmp_path, flaky, retries=0)
    _assert_complete(tmp_path)
    assert len(flaky.requests) == 4


def test_retries_are_bounded_and_back_off(mirror, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    busy, good = mirror(status(503)), mirror()
    assert _download(tmp_path, busy, good, retries=3, backoff=0.5) == good.url
    assert len(busy.requests) == 4
    assert pauses == [1.0, 2.0, 4.0]


def test_a_partial_file_is_not_continued_from_another_mirror(mirror, tmp_path):
    broken, good = mirror(BROKEN, status(404)), mirror()
    assert _download(tmp_path, broken, good) == good.url
    _assert_complete(tmp_path)
    assert "Range" not in good.requests[0]


def test_a_partial_file_survives_mirrors_that_fail_and_its_own_is_asked_first(mirror, tmp_path):
    broken, empty = mirror(BROKEN, status(404), serve()), mirror(PAGE)
    with pytest.raises(DownloadError):
        _download(tmp_path, broken, empty)
    assert not (tmp_path / TRAIN).exists()

    assert _download(tmp_path, empty, broken) == broken.url
    _assert_complete(tmp_path)
    assert "Range" in broken.requests[-1]
    assert len(empty.requests) == 1


_BAD_ANSWERS = {
    "404": (status(404), "HTTP 404"),
    "web page": (PAGE, "text/html"),
    "nothing": (serve(b""), "not an .npz"),
    "truncated, claimed complete": (serve(TRAIN_BYTES[:-5000]), "damaged or incomplete"),
    "truncated, no length": (serve(TRAIN_BYTES[:STOP], length=False), "damaged or incomplete"),
    "flipped byte": (serve(_flipped(150_000)), "damaged"),
    "other fields": (serve(_npz_bytes(fields=2)), "'terminals' is missing"),
}


@pytest.mark.parametrize(("answer", "reason"), _BAD_ANSWERS.values(), ids=_BAD_ANSWERS)
def test_a_bad_answer_is_named_and_never_kept(mirror, tmp_path, answer, reason):
    bad = mirror(answer)
    with pytest.raises(DownloadError) as raised:
        _download(tmp_path, bad, retries=0)
    assert f"{bad.url}/{TRAIN}: " in str(raised.value)
    assert reason in str(raised.value)
    assert (tmp_path / VAL).exists() and not (tmp_path / TRAIN).exists()
    good = mirror()
    assert _download(tmp_path, bad, good, retries=0) == good.url
    _assert_complete(tmp_path)


def test_when_all_mirrors_fail_all_are_named_with_what_to_do(mirror, tmp_path):
    urls = [mirror(status(404)).url, "http://127.0.0.1:1", mirror(PAGE).url, "no-scheme://host"]
    with pytest.raises(DownloadError) as raised:
        _download(tmp_path, *urls)
    first, *lines, what_to_do = str(raised.value).splitlines()
    assert TRAIN in first
    reasons = ("HTTP 404", "Connection refused", "text/html", "InvalidSchema")
    for line, url, reason in zip(lines, urls, reasons, strict=True):
        assert line.startswith(f"  {url}/{TRAIN}: ")
        assert reason in line
    for part in ("--mirrors", f"copy {TRAIN} and {VAL}", str(tmp_path), "--data_source=generate"):
        assert part in what_to_do


def test_an_unwritable_folder_is_named_at_once(mirror, tmp_path):
    (tmp_path / "file").write_text("")
    good = mirror()
    with pytest.raises(OSError, match=r"cannot write to the folder .*file/data") as raised:
        _download(tmp_path / "file" / "data", good)
    assert not isinstance(raised.value, DownloadError)
    assert good.paths == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_at_once(mirror, tmp_path):
    first, second = mirror(), mirror()
    download._part(tmp_path / TRAIN, f"{first.url}/{TRAIN}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*Free some space") as raised:
        _download(tmp_path, first, second)
    assert raised.value.errno == errno.ENOSPC
    assert not isinstance(raised.value, DownloadError)
    assert len(first.requests) == 1
    assert second.paths == []


def test_files_in_a_folder_that_is_only_readable_are_used(mirror, tmp_path, monkeypatch):
    _download(tmp_path, mirror())

    def refuse(folder):
        raise OSError("read-only")

    monkeypatch.setattr(download, "ensure_writable_dir", refuse)
    assert _download(tmp_path, "http://127.0.0.1:1") is None


_KILLED_CHILD = """
import os, signal, sys
from qam_jax.data import download

class DeadlyBar(download.tqdm):
    written = 0
    def update(self, n=1):
        DeadlyBar.written += n
        if DeadlyBar.written > 150_000:
            os.kill(os.getpid(), signal.SIGKILL)

download.tqdm = DeadlyBar
download.download_dataset(sys.argv[1], sys.argv[2], mirrors=[sys.argv[3]])
"""


def test_a_killed_process_is_continued_by_the_next(mirror, tmp_path):
    good = mirror()
    path = os.pathsep.join([str(Path(qam_jax.__file__).parents[1]), *filter(None, sys.path)])
    child = subprocess.run(
        [sys.executable, "-c", _KILLED_CHILD, NAME, str(tmp_path), good.url],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        timeout=60,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (tmp_path / TRAIN).exists()

    _download(tmp_path, good)  # also shows that the dead process holds no lock
    _assert_complete(tmp_path)
    start = int(good.requests[1]["Range"][6:-1])
    assert 64 * 1024 < start < len(TRAIN_BYTES)


def test_a_process_killed_before_the_last_check_needs_no_network(mirror, tmp_path, monkeypatch):
    (tmp_path / VAL).write_bytes(VAL_BYTES)
    good = mirror()
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(download, "_fault", None)
        _download(tmp_path, good)
    assert not (tmp_path / TRAIN).exists()
    _download(tmp_path, good)
    _assert_complete(tmp_path)
    assert len(good.requests) == 1


def test_two_downloads_at_once_fetch_the_file_once(mirror, tmp_path, monkeypatch):
    second_waits = threading.Event()
    monkeypatch.setattr(files._logger, "warning", lambda *message: second_waits.set())

    def wait_for_second(handler, body):
        assert second_waits.wait(10)
        serve()(handler, body)

    (tmp_path / VAL).write_bytes(VAL_BYTES)
    good = mirror(wait_for_second)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(_download(tmp_path, good))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(str(result) for result in results) == ["None", good.url]
    assert len(good.requests) == 1
    _assert_complete(tmp_path)


def test_a_file_system_without_locks_is_used_with_a_warning(mirror, tmp_path, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    _download(tmp_path, mirror())
    _assert_complete(tmp_path)
    assert "cannot be locked" in caplog.text


def test_arguments_that_make_no_sense(tmp_path):
    for name in ("", "../secrets", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="is not a dataset name"):
            download_dataset(name, tmp_path)
    for mirrors in ("https://one.example", []):
        with pytest.raises(ValueError, match="sequence of one or more addresses"):
            download_dataset(NAME, tmp_path, mirrors=mirrors)
