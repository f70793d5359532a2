"""The server by the wire format, and by openpi's own client."""

import contextlib
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from qam_jax.deploy.server import MAX_MESSAGE_BYTES, make_server, pack, unpack


class _Policy:
    """A chunk of three rows: the observation plus the row."""

    def __init__(self):
        self.metadata = {"method": "sums", "action_shape": [3, 2], "share": np.float32(0.5)}

    def act_chunk(self, observation):
        if observation.shape != (2,):
            raise ValueError(f"the observation has shape {observation.shape}, expected (2,).")
        if observation[0] == 13:
            raise RuntimeError("no luck")
        return (observation + np.arange(3)[:, None]).astype(np.float32)


@pytest.fixture(name="port", scope="module")
def _port():
    with make_server(_Policy(), port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
    thread.join()


@contextlib.contextmanager
def _client(port):
    """As openpi-client connects."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        yield connection, msgpack.unpackb(connection.recv())


def _packed(name, values, dtype="<f8"):
    array = np.asarray(values, dtype)
    entry = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": dtype, b"shape": array.shape}
    return msgpack.packb({name: entry, "prompt": "sum"})


@pytest.mark.parametrize("name", ["observation", "state", "observation/state"])
def test_an_observation_is_answered_by_a_chunk_and_its_time(port, name):
    with _client(port) as (connection, metadata):
        assert metadata["method"] == "sums"
        assert metadata["action_shape"] == [3, 2]
        assert metadata["share"] == {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}
        connection.send(_packed(name, [1, 2]))
        reply = msgpack.unpackb(connection.recv())
    actions = reply["actions"]
    assert actions[b"__ndarray__"] is True
    assert (actions[b"dtype"], actions[b"shape"]) == ("<f4", [3, 2])
    numbers = np.frombuffer(actions[b"data"], "<f4").reshape(3, 2)
    np.testing.assert_array_equal(numbers, [[1, 2], [2, 3], [3, 4]])
    assert reply["server_timing"]["infer_ms"] >= 0


_BAD = {
    "no key": (msgpack.packb({"image": 1}), "has the keys ['image'], expected the observation un"),
    "two keys": (msgpack.packb({"state": [1], "observation": [1]}), "exactly one of observation, "),
    "shape": (_packed("state", [1.0, 2.0, 3.0]), "has shape (3,), expected (2,)"),
    "huge": (_packed("state", np.zeros(10**6)), "has shape (1000000,), expected (2,)"),
    "not msgpack": (b"\xc1", "is not msgpack as openpi-client packs it (FormatError"),
    "cut off": (_packed("state", [1, 2])[:-20], "is not msgpack as openpi-client packs it"),
    "text": ("hello", "the message is text"),
    "no dictionary": (msgpack.packb([1, 2]), "is a list, expected a dictionary"),
    "ragged": (msgpack.packb({"state": [[1], [1, 2]]}), "'state' is no array"),
    "half an array": (
        msgpack.packb({"state": {b"__ndarray__": True, b"data": b"12", b"dtype": "<f8"}}),
        "is not msgpack as openpi-client packs it (ValueError: buffer size",
    ),
    "objects": (
        msgpack.packb({"state": {b"__ndarray__": 1, b"data": b"1" * 8, b"dtype": "O"}}),
        "is not msgpack as openpi-client packs it (ValueError: cannot create an OBJECT array",
    ),
    "policy": (_packed("state", [13, 0]), "the policy fails on this observation, see the server's"),
}


@pytest.mark.parametrize("case", _BAD)
def test_a_bad_message_is_answered_in_one_line_and_everyone_goes_on(port, case):
    message, expected = _BAD[case]
    with _client(port) as (other, _), _client(port) as (connection, _):
        connection.send(message)
        reply = connection.recv()
        assert isinstance(reply, str)
        assert expected in reply
        assert "\n" not in reply
        for each in (other, connection):
            each.send(_packed("state", [1, 2]))
            assert isinstance(each.recv(), bytes)


def test_a_message_beyond_the_limit_ends_its_connection_alone(port):
    with _client(port) as (other, _):
        with _client(port) as (connection, _), pytest.raises(ConnectionClosed, match="1009"):
            connection.send(bytes(MAX_MESSAGE_BYTES + 1))
            connection.recv()
        other.send(_packed("state", [1, 2]))
        assert isinstance(other.recv(), bytes)


def test_health(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as response:
        assert (response.status, response.read()) == (200, b"OK\n")


def test_a_server_that_ends_tells_its_clients():
    with make_server(_Policy(), port=0) as server:
        threading.Thread(target=server.serve_forever).start()
        with _client(server.socket.getsockname()[1]) as (connection, _):
            server.shutdown()
            with pytest.raises(ConnectionClosed, match="1001"):
                connection.recv()


def test_messages_come_back_as_they_were():
    message = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": [1.5, None, "text"]}
    back = unpack(pack(message))
    np.testing.assert_array_equal(back["a"], message["a"])
    assert back["a"].dtype == np.int16
    assert back["b"] == message["b"]
    assert unpack(pack(np.float64(2.5))) == 2.5
    with pytest.raises(TypeError, match="cannot hold"):
        pack({"a": np.array(["text"])})


_OPENPI = """
import sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
metadata = policy.get_server_metadata()
assert metadata["method"] == "sums" and metadata["share"] == np.float32(0.5), metadata
for name in ("observation", "state", "observation/state"):
    reply = policy.infer({name: np.array([1.0, 2.0]), "prompt": "sum"})
    assert reply["actions"].tolist() == [[1, 2], [2, 3], [3, 4]], reply
    assert reply["actions"].dtype == np.float32 and reply["server_timing"]["infer_ms"] >= 0, reply
try:
    policy.infer({"state": np.zeros(3)})
except RuntimeError as error:
    assert "has shape (3,), expected (2,)" in str(error), error
else:
    raise AssertionError("no error")
policy.reset()
assert policy.infer({"state": [1, 2]})["actions"].shape == (3, 2)
print("agreed")
"""


@pytest.mark.slow
def test_the_client_of_openpi_agrees(port, tmp_path):
    """In an environment of its own, as it wants an older NumPy."""
    python = tmp_path / "venv" / "bin" / "python"
    packages = ["openpi-client", "typing_extensions"]  # it does not say that it needs the latter
    for command in (
        [sys.executable, "-m", "venv", str(tmp_path / "venv")],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    client = [str(python), "-c", _OPENPI, str(port)]
    result = subprocess.run(client, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "agreed", result.stderr


@pytest.mark.slow
def test_a_signal_at_the_first_moment_ends_the_command(qam_run):
    script = Path(__file__).parents[2] / "experiments" / "serve.py"
    command = [sys.executable, str(script), f"--run={qam_run}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("Serving QAM")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 75


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_command_serves_a_run_until_a_signal(qam_run, name):
    script = Path(__file__).parents[2] / "experiments" / "serve.py"
    command = [sys.executable, str(script), f"--run={qam_run}", "--port=0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        line = process.stdout.readline()
        assert line.startswith("Serving QAM at ws://127.0.0.1:"), process.stderr.read()
        with _client(int(line.rpartition(":")[2])) as (connection, metadata):
            assert metadata["env_name"] == "Pendulum-v1"
            connection.send(_packed("state", [0.1, 0.2, 0.3]))
            reply = unpack(connection.recv())
            assert reply["actions"].shape == tuple(metadata["action_shape"]) == (2, 2)
            process.send_signal(getattr(signal, name))
            with pytest.raises(ConnectionClosed, match="1001"):
                connection.recv()
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest) == (75, "")
    assert errors == f"Stopped by {name}. All clients are disconnected.\n"
