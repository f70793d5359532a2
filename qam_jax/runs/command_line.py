"""How entry points talk: plain lines above the progress bar, and errors without a traceback."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator

import absl.logging
from absl import app, flags
from tqdm import tqdm

from qam_jax.envs.pool import EnvFailure
from qam_jax.runs.stopping import EXIT_CODE, Stopped, stop_signals

_logger = logging.getLogger("qam_jax")


class _BesideBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_logging() -> None:
    """Prints this package's log lines, as they are, and the warnings of the libraries."""
    details = flags.FLAGS.verbosity > 0
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)
    _logger.setLevel(logging.DEBUG if details else logging.INFO)
    _logger.propagate = False
    _logger.handlers = [_BesideBar()]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the process with status 1 and a plain message where the user's input is at fault, and
    with status 75 where a signal stopped the run, which the same command then continues.

    `--verbosity=1` shows where in the code an error arose.
    """
    try:
        with stop_signals(at_once=True):
            yield
    except (ValueError, OSError, ImportError, EnvFailure) as error:
        _logger.debug("Details of the error:", exc_info=True)
        sys.exit(f"Error: {error}")
    except Stopped as stopped:
        print(f"Stopped by {stopped}. The same command continues.", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command continues from the last checkpoint.")


@contextlib.contextmanager
def until_closed() -> Iterator[None]:
    """Ends the block without a word where nobody reads what it prints any more, as after `head`.

    What is printed later goes nowhere, so that the program can finish the rest of its work.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run_main(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run`, with a plain message for a misspelt config field as well."""
    app.run(main, flags_parser=_parse_flags)


def unknown_field(error: AttributeError | KeyError, arguments: Iterable[str]) -> str:
    """Which argument is for a field that the config does not have, in words.

    Args:
      error: from ml_collections, whose message begins with the field's name or ends with it.
      arguments: of the command line.

    Returns:
      Nothing if the error is another one, as in the file of a config.
    """
    text = str(error).replace("\\", "")
    path = re.search(r"Attempting to lookup: ([\w.]+)", text) or re.search(r"(\w+)", text)
    given = [each for each in arguments if path and each.split("=")[0] == f"--config.{path[1]}"]
    if not given:
        return ""
    near = re.search(r'Did you mean "(\w+)"', text)
    hint = f" Did you mean --config.{near[1]}?" if near else ""
    return f"no such config field: {given[0]}.{hint}"


def with_default_config(arguments: list[str], default: str) -> None:
    """Puts --config, or else its default, first: before the flags that change its fields."""
    arguments.insert(1, f"--config={take_flag(arguments, 'config') or default}")


def take_flag(arguments: list[str], name: str) -> str | None:
    """Removes a flag, given as `--name=value` or `--name value`, and returns its value."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            if not equals and index + 1 < len(arguments):
                value = arguments.pop(index + 1)
            del arguments[index]
            return value
    return None


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except OSError as error:  # from --config=<file>:<run>, or --config.<field> without a file
        sys.exit(f"Error: {error}")
    except (AttributeError, KeyError) as error:  # from --config.<field>
        found = unknown_field(error, arguments)
        sys.exit(f"Error: {found or f'--config cannot be read: {type(error).__name__}: {error}'}")
    except flags.Error as error:
        _, in_config, details = str(error).partition("whilst parsing config file:")
        if in_config:
            given = next(each for each in arguments if each.startswith("--config="))
            sys.exit(f"Error: {given} cannot be read: {details.strip().splitlines()[-1]}")
        return app.parse_flags_with_usage(arguments)  # which says the same, and how to get help
