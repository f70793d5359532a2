"""Where tables are printed."""

import sys

from rich.console import Console

_WIDTH = 140  # where the output is no terminal


def make_console() -> Console:
    """A console that is wide enough for tables when redirected."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
