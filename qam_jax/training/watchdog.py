"""What ends a process that trains together with others, with a word to the user, if one is lost."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import jax

from qam_jax.runs.stopping import EXIT_CODE, Stopped
from qam_jax.training import exchange, witness

_BOARD = "qam_jax_watch/"  # keys where the processes say how they are
_BEAT_SECONDS = 1.0
JAX_LOST_SECONDS = 200  # after which JAX ends all processes, should the watchdog fail to
_LOST_SECONDS = 60.0  # without a beat
_NAMING_SECONDS = 4.0  # to find out who is lost, once it is known that somebody is
_GRACE_SECONDS = 10.0  # for a process to end by itself, before it is ended
_UNWINDING_SECONDS = 30.0  # likewise, while it cleans up
_CONNECTION_ERRORS = ("Gloo", "NCCL", "oordination service", "UNAVAILABLE")
_CONTINUES = "The same command, given to all processes, continues."


class Witness:
    """The process that speaks if this one is ended amid its work."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", witness.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def say(self, message: str, folders: list[str]) -> None:
        """What it is to say from now on."""
        self._write(json.dumps([message, folders]))

    def close(self) -> None:
        """Lets it go without a word."""
        self._write(witness.GOODBYE)

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it is gone: nothing depends on it
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


class Watchdog:
    """Looks after the other processes, in a thread, and ends this one if one of them is lost."""

    def __init__(self, own: Witness):
        self._witness = own
        self._client = exchange.client()
        self._index, self._count = exchange.process_index(), exchange.process_count()
        self._folders: list[str] = []
        self._leaving: float | None = None  # since when this process is ending by itself
        self._over = threading.Event()
        self._beats: dict[int, tuple[str, float]] = {}  # the last of each, and since when
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, folders: list[str]) -> None:
        """The runs have begun, in these folders."""
        self._folders = folders
        self._witness.say(
            f"Error: process {self._index} (of {self._count}) was ended amid its work: by JAX, if "
            "there are lines of its own above, since another process (most likely process 0) is "
            "lost or does not answer; else it was killed. {checkpoints}" + _CONTINUES,
            folders,
        )

    def fail(self, error: Exception) -> None:
        """Ends this process if another was lost; otherwise tells the others of an error here."""
        if self._leaving is None and any(each in str(error) for each in _CONNECTION_ERRORS):
            self._leaving = time.monotonic()
            self._end(*self._find_lost(str(error).strip().splitlines()[0]))
        self._tell(str(error) or type(error).__name__, 1)

    def part(self, error: BaseException) -> None:
        """Ends the session after an error, which goes on to be raised; does not wait for those who
        do not come."""
        code = 1
        if isinstance(error, Stopped):
            self._leaving = time.monotonic()
            self._post("stopped", "")
            if self._wait_for("stopped", _GRACE_SECONDS):
                self.stop()
                jax.distributed.shutdown()
                return
            code = EXIT_CODE
            self._tell(f"it was stopped by {error}", code)
        elif isinstance(error, Exception):
            self.fail(error)
        else:
            self._tell(f"it ended: {error}", code)
        self._post("ended", "")
        if self._index == 0:  # it serves the others: they are to end in good order
            self._wait_for("ended", _GRACE_SECONDS + 2 * _BEAT_SECONDS)
        atexit.register(_exit_at_once, code)  # before JAX, which would wait for the others

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._over.wait(_BEAT_SECONDS):
            number += 1
            try:
                self._post("beat", str(number))
                board = self._read()
            except Exception:  # process 0 is lost: JAX ends this process, and the witness speaks
                continue
            self._note(board)
            self._look(board)

    def _look(self, board: dict[str, str]) -> None:
        now = time.monotonic()
        if self._leaving is not None:
            if now - self._leaving > _UNWINDING_SECONDS:
                _exit_at_once(1)
            return
        for name, text in board.items():
            if name.startswith("failed-") and name != f"failed-{self._index}":
                if not self._over.wait(_GRACE_SECONDS / 2) and self._leaving is None:
                    self._end(*_describe_failure(name, text))
                return
        for index in range(self._count):
            ended = f"stopped-{index}" in board or f"ended-{index}" in board
            if index != self._index and not ended and self._stale(index, _LOST_SECONDS):
                self._end(_describe_lost([index], f"no sign for {_LOST_SECONDS:.0f} s"), 1)

    def _find_lost(self, reason: str) -> tuple[str, int]:
        """Who is lost, in words, and the status to end with."""
        end = time.monotonic() + _NAMING_SECONDS
        while time.monotonic() < end:
            for name, text in self._read().items():
                if name.startswith("failed-"):
                    return _describe_failure(name, text)
            time.sleep(_BEAT_SECONDS / 4)
        others = [index for index in range(self._count) if index != self._index]
        lost = [index for index in others if self._stale(index, _NAMING_SECONDS / 2)]
        return _describe_lost(lost, reason), 1

    def _end(self, message: str, code: int) -> None:
        """Ends this process here and now, whatever its other threads are waiting for."""
        words = witness.last_checkpoints(self._folders)
        print(f"\nError: {message} {words}{_CONTINUES}", file=sys.stderr)
        self._witness.close()
        with contextlib.suppress(Exception):  # where process 0 is lost there is nobody to tell
            if not any(name.startswith("failed-") for name in self._read()):
                self._tell(message, code)
            self._post("ended", "")
            if self._index == 0:
                self._wait_for("ended", _GRACE_SECONDS)
        _exit_at_once(code)

    def _tell(self, text: str, code: int) -> None:
        self._leaving = self._leaving or time.monotonic()
        with contextlib.suppress(Exception):  # where process 0 is lost there is nobody to tell
            self._post("failed", json.dumps([text, code]))

    def _wait_for(self, what: str, seconds: float) -> bool:
        """Waits until all others have posted this or are lost; whether they have posted it."""
        end = time.monotonic() + seconds
        while True:
            board = self._read()
            self._note(board)  # the thread that does so may be the one that waits
            missing = [i for i in range(self._count) if f"{what}-{i}" not in board]
            missing = [index for index in missing if index != self._index]
            waiting = [index for index in missing if not self._stale(index, _NAMING_SECONDS)]
            if not waiting or time.monotonic() > end:
                return not missing
            time.sleep(_BEAT_SECONDS / 10)

    def _post(self, what: str, value: str) -> None:
        key = f"{_BOARD}{what}-{self._index}"
        self._client.key_value_set(key, value or "1", allow_overwrite=True)

    def _read(self) -> dict[str, str]:
        items = self._client.key_value_dir_get(_BOARD)
        return {key.rpartition("/")[2]: value for key, value in items}

    def _note(self, board: dict[str, str]) -> None:
        for index in range(self._count):
            beat = board.get(f"beat-{index}", "")
            if self._beats.get(index, (None,))[0] != beat:
                self._beats[index] = beat, time.monotonic()

    def _stale(self, index: int, seconds: float) -> bool:
        since = self._beats.get(index, ("", time.monotonic()))[1]
        return time.monotonic() - since > seconds


def _describe_failure(name: str, text: str) -> tuple[str, int]:
    reason, code = json.loads(text)
    return f"process {name.partition('-')[2]} has ended: {reason.rstrip('.')}.", code


def _describe_lost(lost: list[int], reason: str) -> str:
    who = " and ".join(f"process {index}" for index in lost) or "another process"
    return f"lost {who} ({reason}); without it training cannot go on."


def _exit_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
