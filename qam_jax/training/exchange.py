"""What processes that train together tell each other, by way of JAX's coordination service.

These are messages between the programs, not between the devices: one can wait for another as long
as it takes, and no device is kept busy by that.
"""

import functools
import io
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jax._src import distributed  # has the service's client, which JAX shows nowhere else

from qam_jax.runs.stopping import Stopped

_T = TypeVar("_T")

_POLL_MS = 1000  # between two looks at whether a signal has arrived
_LATE = "DEADLINE_EXCEEDED"


class OtherProcessError(OSError):
    """What went wrong in another process."""


class Exchange:
    """The messages of one process. All processes make the same calls in the same order.

    Args:
      client: of the coordination service.
      index: of this process.
      count: of processes.
    """

    def __init__(self, client: Any, index: int, count: int):
        self._client, self.index, self.count = client, index, count
        self._number = 0
        self._written: list[str] = []  # what all may have read at the next `gather`

    def gather(self, label: str, value: Any) -> list[Any]:
        """The value that each process gave, in their order, made by way of JSON."""
        self._number += 1
        before, self._written = self._written, []
        self._write(f"{self._number}/{self.index}", json.dumps([label, value]).encode())
        values = []
        for index in range(self.count):
            theirs, value = json.loads(self._read(f"{self._number}/{index}"))
            _check_label(label, theirs, index)
            values.append(value)
        for key in before:  # who has come here has read them
            self._client.key_value_delete(key)
        return values

    def from_first(
        self,
        label: str,
        function: Callable[[], _T],
        encode: Callable[[_T], bytes],
        decode: Callable[[bytes], _T],
    ) -> _T:
        """See the function of this name."""
        self._number += 1
        key = f"{self._number}/0"
        if self.index == 0:
            head = {"label": label}
            try:
                result = function()
                content = encode(result)
            except Stopped as stopped:
                self._write(key, _pack({**head, "stopped": str(stopped)}))
                raise
            except BaseException as error:
                self._write(key, _pack({**head, "error": str(error) or type(error).__name__}))
                raise
            self._write(key, _pack(head, content))
            return result
        head, content = _unpack(self._read(key))
        _check_label(label, head["label"], 0)
        if "stopped" in head:
            raise Stopped(head["stopped"])
        if "error" in head:
            raise OtherProcessError(f"process 0: {head['error']}")
        return decode(content)

    def _write(self, key: str, content: bytes) -> None:
        key = f"qam_jax/{key}"
        self._client.key_value_set_bytes(key, content)
        self._written.append(key)

    def _read(self, key: str) -> bytes:
        while True:
            try:
                return self._client.blocking_key_value_get_bytes(f"qam_jax/{key}", _POLL_MS)
            except Exception as error:
                if _LATE not in str(error):
                    raise


def several() -> bool:
    """Whether this process trains together with others."""
    return process_count() > 1


def client() -> Any:
    """The client of JAX's coordination service, where several processes train together."""
    return distributed.global_state.client


def process_count() -> int:
    """How many processes train together."""
    state = distributed.global_state
    return state.num_processes if state.client is not None else 1


def process_index() -> int:
    """The number of this process among those that train together; 0 if it is alone."""
    return distributed.global_state.process_id if several() else 0


def is_first() -> bool:
    """Whether this process writes, evaluates and talks: one does."""
    return process_index() == 0


def gather(label: str, value: _T) -> list[_T]:
    """The JSON value that each process gave, in their order; waits for all of them.

    Args:
      label: the same in all processes, or they have lost step.
      value: of this process.
    """
    return _exchange().gather(label, value) if several() else [value]


def from_first(
    label: str,
    function: Callable[[], _T],
    encode: Callable[[_T], bytes] = lambda value: json.dumps(value).encode(),
    decode: Callable[[bytes], _T] = json.loads,
) -> _T:
    """Calls a function in process 0 alone, and returns its result in all.

    Args:
      label: the same in all processes, or they have lost step.
      function: what to call.
      encode: from the result to bytes.
      decode: what the other processes get from these.

    Raises:
      Stopped: in all processes, if the function did.
      OtherProcessError: in the others, if the function raised anything else.
    """
    return _exchange().from_first(label, function, encode, decode) if several() else function()


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """Named arrays as bytes; see `unpack_arrays`."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def unpack_arrays(content: bytes) -> dict[str, np.ndarray]:
    """What `pack_arrays` was given."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)


def _exchange() -> Exchange:
    return _exchange_of(distributed.global_state.client)


@functools.lru_cache(maxsize=1)
def _exchange_of(client: Any) -> Exchange:
    return Exchange(client, distributed.global_state.process_id, process_count())


def _check_label(ours: str, theirs: str, index: int) -> None:
    if ours != theirs:
        raise RuntimeError(
            f"the processes have lost step: this one is at {ours!r}, process {index} at {theirs!r}."
        )


def _pack(head: dict[str, Any], content: bytes = b"") -> bytes:
    return json.dumps(head).encode() + b"\n" + content


def _unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    head, _, content = message.partition(b"\n")
    return json.loads(head), content
