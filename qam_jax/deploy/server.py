"""Serves a policy over a websocket, to clients of openpi.

The protocol is that of `WebsocketClientPolicy` of the package openpi-client: messages are msgpack,
with NumPy arrays as dictionaries. On connecting the client gets the metadata; each observation is
answered by a chunk of actions, or by an error message as a string.
"""

import contextlib
import http
import logging
import threading
import time
from typing import Any

import numpy as np

from qam_jax.deploy.policy import Policy

try:
    import msgpack
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
    from websockets.sync.server import Server, ServerConnection, serve
except ImportError as missing:
    raise ImportError(
        f'a policy server needs msgpack and websockets ({missing}): pip install "qam_jax[serve]".'
    ) from missing

OBSERVATION_KEYS = ("observation", "state", "observation/state")
"""Names under which a client may send the observation; others of its dictionary are ignored."""

MAX_MESSAGE_BYTES = 2**24  # of a client; a longer message ends its connection, with code 1009

_logger = logging.getLogger("qam_jax.deploy")


def make_server(policy: Policy, host: str = "127.0.0.1", port: int = 8000) -> Server:
    """Server that answers any number of clients, one inference at a time.

    `serve_forever()` of the server, best in a thread, answers until the server is closed by leaving
    its `with`; clients then get the closing code 1001. `GET /healthz` is answered by OK.

    Args:
      policy: its `metadata` is sent on connecting, its `act_chunk` answers observations.
      host: address to listen on; there is no authentication, so keep it in a trusted network.
      port: 0 takes a free one, see `server.socket.getsockname()`.

    Raises:
      OSError: if the address is in use or not of this machine.
    """
    one_at_a_time = threading.Lock()

    def answer_client(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(pack(policy.metadata))
            for message in connection:
                connection.send(answer(policy, message, one_at_a_time))

    def check_health(connection: ServerConnection, request: Request) -> Response | None:
        healthy = request.path == "/healthz"
        return connection.respond(http.HTTPStatus.OK, "OK\n") if healthy else None

    try:
        return serve(
            answer_client,
            host,
            port,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            process_request=check_health,
        )
    except OSError as error:
        raise OSError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): give another --port, or "
            "an address of this machine as --host."
        ) from error


def answer(
    policy: Policy, message: bytes | str, lock: contextlib.AbstractContextManager
) -> bytes | str:
    """Answer to a message: packed `actions` [H, A] and `server_timing`, or an error as text.

    An error is told to this client alone, in one line.
    """
    try:
        observation = _read_observation(message)
        with lock:
            started = time.monotonic()
            actions = policy.act_chunk(observation)
            timing = {"infer_ms": 1000 * (time.monotonic() - started)}
        return pack({"actions": np.asarray(actions), "server_timing": timing})
    except ValueError as error:
        return str(error)
    except Exception as error:  # of the policy, which may still answer other observations
        _logger.exception("The policy fails on an observation:")
        return f"the policy fails on this observation, see the server's log ({error!r})."


def pack(message: Any) -> bytes:
    """Packs a message, arrays and NumPy's numbers included. Raises TypeError for other types."""
    return msgpack.packb(message, default=_as_dictionary)


def unpack(data: bytes) -> Any:
    """Unpacks a message. Raises ValueError if it is not msgpack, or an array in it is not whole."""
    try:
        return msgpack.unpackb(data, object_hook=_as_array)
    except Exception as error:  # its class depends on the bytes
        raise ValueError(
            f"the message is not msgpack as openpi-client packs it ({type(error).__name__}: "
            f"{error})."
        ) from error


def _read_observation(message: bytes | str) -> np.ndarray:
    if isinstance(message, str):
        raise ValueError("the message is text, expected msgpack in a binary message.")
    content = unpack(message)
    if not isinstance(content, dict):
        raise ValueError(f"the message is a {type(content).__name__}, expected a dictionary.")
    found = [name for name in OBSERVATION_KEYS if name in content]
    if len(found) != 1:
        raise ValueError(
            f"the message has the keys {sorted(map(str, content))}, expected the observation under "
            f"exactly one of {', '.join(OBSERVATION_KEYS)}."
        )
    try:
        return np.asarray(content[found[0]])
    except ValueError as error:  # a list of lists of several lengths
        raise ValueError(f"{found[0]!r} is no array ({error}).") from error


def _as_dictionary(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "fiub":
        raise TypeError(f"a message cannot hold {value!r}.")
    kind = {b"dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), **kind}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"shape": value.shape, **kind}


def _as_array(entry: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entry:
        numbers = np.frombuffer(entry[b"data"], np.dtype(entry[b"dtype"]))
        return numbers.reshape(entry[b"shape"])
    if b"__npgeneric__" in entry:
        return np.dtype(entry[b"dtype"]).type(entry[b"data"])
    return entry
