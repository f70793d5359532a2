"""Console for tables in the terminal."""

import sys

from rich.console import Console

_WIDTH = 140  # where the output is no terminal


def make_console() -> Console:
    """Console that is wide enough for tables, also where the output is no terminal.

    It raises BrokenPipeError where nobody reads it, see `runs.command_line.until_closed`.
    """
    return _Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


class _Console(Console):
    def on_broken_pipe(self) -> None:  # rich would end the process with status 1
        raise BrokenPipeError
