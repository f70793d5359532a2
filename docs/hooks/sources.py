"""Source code that pages show: run this file to bring it up to date.

A page names a function or a file of the package in a line of its own, as a link or as code. The
block of Python below that line holds its source.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("docs/mathematics.md", "docs/own.md")

_SHOWN = re.compile(
    r"^(?P<head>\[?`(?P<name>[\w./]+)`(?:\]\(\S+\))?\n\n)```python\n.*?^```$",
    re.MULTILINE | re.DOTALL,
)


def with_sources(page: str) -> str:
    """The text of a page, with the source as it is now in all of these blocks."""
    return _SHOWN.sub(lambda m: f"{m['head']}```python\n{_source(m['name'])}\n```", page)


def _source(name: str) -> str:
    """Text of a file, or source of a function without its docstring."""
    if "/" in name:
        return (ROOT / name).read_text(encoding="utf-8").rstrip()
    module, _, function = name.rpartition(".")
    text = inspect.getsource(getattr(importlib.import_module(module), function))
    lines = text.splitlines()
    docstring = ast.parse(text).body[0].body[0]
    return "\n".join(lines[: docstring.lineno - 1] + lines[docstring.end_lineno :])


if __name__ == "__main__":
    for path in (ROOT / page for page in PAGES):
        path.write_text(with_sources(path.read_text(encoding="utf-8")), encoding="utf-8")
