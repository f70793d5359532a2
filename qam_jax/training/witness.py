"""Says what became of a process that was ended amid its work: `python witness.py`.

A process that JAX ends, because another one was lost, has no chance to say what to do. Its witness
runs beside it, reads from a pipe what there is to say, one line of JSON at a time, and says the
last of it if the pipe ends without a good-bye. It needs nothing but Python itself.
"""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

GOODBYE = "goodbye"


def last_checkpoints(folders: Sequence[str]) -> str:
    """Where the runs in these folders stand, in words; empty before there are any."""
    words = []
    for folder in folders:
        path = Path(folder) / "checkpoints"
        names = [each.name for each in path.iterdir()] if path.is_dir() else []
        steps = [int(name) for name in names if name.isdigit()]
        words.append(f"step {max(steps)} in {folder}" if steps else f"none yet in {folder}")
    return f"Last checkpoint: {'; '.join(words)}. " if words else ""


def _main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # meant for the process
    message, folders = "", []
    for line in sys.stdin:
        if line.strip() == GOODBYE:
            return
        message, folders = json.loads(line)
    if message:
        print("\n" + message.replace("{checkpoints}", last_checkpoints(folders)), file=sys.stderr)


if __name__ == "__main__":
    _main()
