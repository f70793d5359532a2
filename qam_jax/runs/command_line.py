"""Command line of the entry points: flags, log lines and errors without a traceback."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags
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
    """Parses the flags and calls the program; a mistake in a flag ends it with one line."""
    app.run(main, flags_parser=_parse_flags)


def run_with_config(main: Callable[[list[str]], None], default: Path) -> None:
    """`run_main` with a flag --config, which stands first, before the flags of its fields.

    Args:
      main: the program.
      default: the config's file where --config is not given.
    """
    arguments = list(sys.argv)
    config = _config_file(pop_flag(arguments, "config") or str(default))
    arguments.insert(1, f"--config={config}")
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File with the algorithm and its hyperparameters; --config.<field>=<value> changes one.",
        sys_argv=arguments,
        lock_config=False,
        accept_new_attributes=True,  # the algorithm says which field it does not know
    )
    app.run(main, argv=arguments, flags_parser=_parse_flags)


def _config_file(config: str) -> str:
    """Value of --config that finds `<method>.py` without such a file: `default.py:<method>`."""
    path = Path(config.partition(":")[0])
    shared = path.with_name("default.py")
    return config if path.exists() or not shared.exists() else f"{shared}:{path.stem}"


def pop_flag(arguments: list[str], name: str) -> str | None:
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
    except flags.Error as error:
        sys.exit(f"Error: {error}\nThe flags are listed by: python {arguments[0]} --help")
    except (OSError, ValueError, AttributeError, KeyError) as error:  # of the config's file
        given = next((each for each in arguments if each.startswith("--config=")), "--config")
        sys.exit(f"Error: {given} cannot be read: {error}")
