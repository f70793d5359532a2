"""Command line of the entry points: flags, log lines and errors without a traceback."""

import ast
import contextlib
import logging
import os
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from qam_jax import memory
from qam_jax.envs.pool import EnvFailure
from qam_jax.errors import explain, own_place
from qam_jax.runs.stopping import EXIT_CODE, Stopped, stop_signals

_logger = logging.getLogger("qam_jax")

_CONTINUES = "The same command continues."  # unless a program says otherwise


class _BesideBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def _start_logging() -> None:
    """Prints this package's log lines, as they are, and the warnings of the libraries."""
    details = flags.FLAGS.verbosity > 0
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)
    _logger.setLevel(logging.DEBUG if details else logging.INFO)
    _logger.propagate = False
    _logger.handlers = [_BesideBar()]


@contextlib.contextmanager
def plain_errors(stopped: str = _CONTINUES) -> Iterator[None]:
    """Ends the process with status 1 and a plain message where the user's input is at fault.

    The status is 75 where a signal stopped the program; `stopped` is then the rest of the message.
    """
    try:
        with stop_signals(at_once=True):
            yield
    except (Exception, SystemExit) as error:
        message = _plain_message(error)
        if not message:
            raise
        _logger.debug("Details of the error:", exc_info=True)
        sys.exit(f"Error: {message}")
    except Stopped as signal:
        print(f"Stopped by {signal}. {stopped}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command continues from the last checkpoint.")


def _plain_message(error: BaseException) -> str:
    """What the user has to know of an error; empty if it is a fault of this package."""
    if isinstance(error, MemoryError | RuntimeError) and memory.is_exhausted(error):
        return memory.explain(error)
    if own_place(error):
        return f"{explain(error)} (--verbosity=1 shows more)."
    if isinstance(error, ValueError | OSError | ImportError | EnvFailure):
        return str(error)
    return ""


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


def run_main(
    main: Callable[[list[str]], None],
    arguments: list[str] | None = None,
    hint: str = "--help lists the flags.",
    *,
    operands: bool = False,
    stopped: str = _CONTINUES,
) -> None:
    """Parses the flags of this process, or of `arguments`, and calls the program with the rest.

    A mistake in a flag ends it with one line, and the hint; so do arguments that are no flags,
    unless the program takes `operands`. Errors are as of `plain_errors`, with `stopped`.
    """

    def parse(given: list[str]) -> list[str]:
        try:
            return flags.FLAGS(given)
        except (flags.Error, UnicodeDecodeError) as error:  # of a --flagfile that is no text
            sys.exit(f"Error: {error} {hint}")
        except SystemExit:  # by --help, which absl ends as if it were a mistake
            if "config" in flags.FLAGS and "--helpxml" not in given:
                _print_fields(flags.FLAGS["config"].value)
            sys.exit(0)

    def checked_main(rest: list[str]) -> None:
        try:
            if rest[1:] and not operands:
                raise app.UsageError(
                    f"unexpected arguments {rest[1:]}; flags look like --name=value."
                )
            _start_logging()  # before the libraries, some of which log much
            with plain_errors(stopped):
                main(rest)
        except app.UsageError as error:  # before which absl prints the whole help
            sys.exit(f"Error: {error} {hint}")

    try:
        app.run(checked_main, arguments, flags_parser=parse)
    except SystemExit as ended:
        if ended.code == EXIT_CODE:  # everything is closed, but XLA may still be compiling:
            sys.stdout.flush()  # Python's own exit would wait for it, and then crash
            os._exit(EXIT_CODE)
        raise


def run_with_config(
    main: Callable[[list[str]], None],
    default: str | Path,
    *,
    stopped: str = _CONTINUES,
    **defaults: Any,
) -> None:
    """`run_main` with a flag --config, whose default is the file `default`.

    With that file the `defaults` are the values of flags that are not given.
    """
    arguments = list(sys.argv)
    given = pop_flag(arguments, "config") or str(default)
    config = _load_config(given)
    for name in defaults if Path(given).resolve() == Path(default).resolve() else ():
        flags.FLAGS.set_default(name, defaults[name])
    try:
        define_config(config, arguments)
    except (ValueError, flags.Error) as error:
        sys.exit(f"Error: {error}")
    flags.FLAGS["config"].default_as_str = given
    run_main(main, arguments, stopped=stopped)


def _print_fields(config: ConfigDict) -> None:
    """Prints the methods, and the fields of a config with their values."""
    from qam_jax.agents import algorithm_names

    print("\nMethods, for --config=experiments/configs/<method>.py:")
    print(textwrap.fill(", ".join(algorithm_names()), initial_indent="  ", subsequent_indent="  "))
    print(f"\nFields of {flags.FLAGS['config'].default_as_str}, and their values:")
    print(*(f"  --config.{name}={value}" for name, value in config.items()), sep="\n")


def define_config(
    config: ConfigDict, arguments: list[str], values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines a flag --config.<field> in `values` for each field that the arguments change.

    Raises ValueError if a field holds no other fields, or one with several values is given twice.
    """
    names = [argument.partition("=")[0].lstrip("-") for argument in arguments]
    for name in (f"config.{field}" for field in config if isinstance(config[field], tuple)):
        if names.count(name) > 1:
            raise ValueError(
                f"--{name} is given {names.count(name)} times: give it once, with all its values, "
                f"such as --{name}=(512,512)."
            )
    try:
        config_flags.DEFINE_config_dict(
            "config",
            config,
            "File with the algorithm and its hyperparameters; --config.<field>=<value> changes "
            "one.",
            flag_values=values,
            sys_argv=arguments,
            lock_config=False,
            accept_new_attributes=True,  # the algorithm says which field it does not know
        )
    except (AttributeError, KeyError) as error:  # a field of a field
        raise ValueError(f"--config.<field>.<field>: {error.args[0]}") from error


def pop_flag(arguments: list[str], name: str) -> str | None:
    """Removes a flag, and returns its value; None if it is not given."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    flags.DEFINE_string(name, None, "", flag_values=values)
    try:
        arguments[:] = values(arguments, known_only=True)
    except (flags.Error, UnicodeDecodeError) as error:  # of a --flagfile that is no text
        sys.exit(f"Error: {error}")
    return values[name].value


class _TupleParser(flags.ArgumentParser):
    """Refuses a single value, of which ml_collections would make a tuple."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        try:
            value = ast.literal_eval(argument) if isinstance(argument, str) else argument
        except (SyntaxError, ValueError):
            value = argument
        if not isinstance(value, tuple | list):
            raise ValueError("expected values in brackets, such as (512,512), or (512,) for one.")
        return tuple(value)


config_flags.register_flag_parser_for_type(tuple, _TupleParser())


def _load_config(given: str) -> ConfigDict:
    """Reads --config; `<method>.py` without such a file stands for `default.py:<method>`."""
    name, *arguments = given.split(":", 1)
    path = Path(name)
    shared = path.parent / "default.py"
    if not os.path.exists(path) and shared.exists():
        path, arguments = shared, [path.stem, *arguments]
    if not os.path.isfile(path):  # which is also False for a name that is too long
        sys.exit(
            f"Error: --config={given}: there is no file {path}. Give "
            "experiments/configs/<method>.py, or a file of your own."
        )
    try:
        functions = runpy.run_path(str(path))
        if "get_config" not in functions:
            raise ValueError("it has no function get_config.")
        config = functions["get_config"](*arguments)
        if not isinstance(config, ConfigDict):
            raise ValueError(f"get_config must return a ConfigDict, got {type(config).__name__}.")
        return config
    except (Exception, SystemExit) as error:  # of whatever stands in the file
        plain = isinstance(error, ValueError | OSError | ImportError | TypeError | SyntaxError)
        own = own_place(error) or not plain
        sys.exit(f"Error: --config={given}: {explain(error) if own else error}")
