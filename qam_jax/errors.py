"""Errors of the user's own code: an environment, a policy, an algorithm or a config."""

import os
import sys
import sysconfig
import traceback
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep
_LIBRARIES = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def explain(error: BaseException) -> str:
    """Names an error in one line: its kind, its text, and its place in the user's own code."""
    kind, text, place = type(error).__name__, " ".join(str(error).split()), own_place(error)
    return (f"{kind}: {text}" if text else kind) + (f", {place}" if place else "")


def own_place(error: BaseException) -> str:
    """Line and file of the user's own code that an error arose in, or in a library that it called.

    Empty if the error arose in this package.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)  # which only calls the package
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_PACKAGE) or frame.filename == script:
            break
        if not frame.filename.startswith((*_LIBRARIES, "<")):
            return f"line {frame.lineno} of {frame.filename}"
    return ""
