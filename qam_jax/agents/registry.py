"""Finds algorithms by name, in this folder or in modules of the user's own, and checks configs."""

import difflib
import importlib.util
import numbers
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from qam_jax.agents import base, values
from qam_jax.agents.base import Agent, Change
from qam_jax.errors import explain
from qam_jax.networks import CriticEnsemble


def algorithm_names() -> list[str]:
    """Names of the package's algorithms, as `config.agent_name` takes them."""
    return sorted(ALGORITHMS)


class Algorithm(NamedTuple):
    """What the file of an algorithm says, by functions and by constants named in capitals.

    `qam_jax.agents` describes each of them.
    """

    get_config: Callable[[], ConfigDict]
    make_agent: Callable[[ConfigDict], Agent]
    display_name: str
    ranges: Mapping[str, tuple[float, float]] = {}
    acts_by_behavior: bool = False
    critic: type | None = CriticEnsemble
    variant_fields: Mapping[str, str] = {}
    changes: Sequence[Change] = ()
    later_fields: Mapping[str, Any] = {}
    no_value_learning: str = "its config has no such field"


def _from_module(module: ModuleType, name: str) -> Algorithm:
    said = vars(module)
    fields = {field: said[field.upper()] for field in Algorithm._fields if field.upper() in said}
    return Algorithm(module.get_config, module.make_agent, **{"display_name": name, **fields})


def _discover() -> dict[str, Algorithm]:
    """Algorithms of this folder, and their variants."""
    found = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{__package__}.{info.name}")
        if not (hasattr(module, "get_config") and hasattr(module, "make_agent")):
            continue  # shared by several
        found[info.name] = algorithm = _from_module(module, info.name)
        for name, (label, config_fn) in getattr(module, "VARIANTS", {}).items():
            found[name] = algorithm._replace(display_name=label, get_config=config_fn)
    return found


def find_algorithm(agent_name: str) -> Algorithm:
    """Algorithm of this package, or else of a module of the user's own.

    Raises ValueError, with the reason, if there is none.
    """
    if agent_name in ALGORITHMS:
        return ALGORITHMS[agent_name]
    try:
        found = importlib.util.find_spec(agent_name)
    except (ImportError, ValueError, AttributeError):  # no such package, or no name of a module
        found = None
    if found is None:
        raise ValueError(
            f"unknown algorithm {agent_name!r}: agent_name must be one of "
            f"{', '.join(algorithm_names())}, or name a module of your own (is its folder on "
            "PYTHONPATH?)."
        )
    try:
        module = importlib.import_module(agent_name)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"unknown algorithm {agent_name!r}: its module ({found.origin}) cannot be imported "
            f"({explain(error)})."
        ) from error
    for name in ("get_config", "make_agent"):
        if not callable(getattr(module, name, None)):
            raise ValueError(
                f"unknown algorithm {agent_name!r}: the module {module.__name__} "
                f"({found.origin}) has no function {name}."
            )
    config = module.get_config()
    own_name = config.get("agent_name") if isinstance(config, ConfigDict) else config
    if own_name != agent_name:
        raise ValueError(
            f"get_config of the module {agent_name!r} must set agent_name to the module's name, by "
            f"which saved runs find the module again, in a ConfigDict, but sets {own_name!r}."
        )
    return _from_module(module, agent_name)


def check_config(config: ConfigDict) -> None:
    """Raises ValueError, naming the field, for a config that its algorithm cannot take."""
    if "agent_name" not in config:
        raise ValueError(
            f"the config has no agent_name; expected one of {', '.join(algorithm_names())}."
        )
    algorithm = find_algorithm(config.agent_name)
    expected = algorithm.get_config()
    if "value_learning" in config and "value_learning" not in expected:
        raise ValueError(
            f"{config.agent_name!r} has no choice of value_learning: {algorithm.no_value_learning}."
        )
    _check_names(config, expected)
    _check_types(config, expected)
    for name, choices in base.CHOICES.items():
        if config[name] not in choices:
            raise ValueError(
                f"config field {name!r} must be one of {', '.join(choices)}, got {config[name]!r}."
            )
    for name in ("actor_hidden_dims", "critic_hidden_dims"):
        widths = config.get(name, ())
        if not all(type(width) is int and width > 0 for width in widths):
            raise ValueError(
                f"config field {name!r} must hold whole numbers above 0, got {tuple(widths)}."
            )
    shared = base.RANGES | (values.RANGES if "value_learning" in config else {})
    for name, (low, high) in {**shared, **algorithm.ranges}.items():
        if name in config and not low <= config[name] <= high:
            raise ValueError(
                f"config field {name!r} must lie in [{low:g}, {high:g}], got {config[name]}."
            )


def _check_names(config: ConfigDict, expected: Iterable[str]) -> None:
    """Raises ValueError for a field that should not be there, and for a field that is missing."""
    name = config.agent_name
    for unknown in sorted(set(config) - set(expected)):
        close = difflib.get_close_matches(unknown, list(expected), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown config field {unknown!r} for {name!r}.{hint} "
            f"Its fields are {', '.join(sorted(expected))}."
        )
    for missing in sorted(set(expected) - set(config)):
        raise ValueError(
            f"the config of {name!r} lacks the field {missing!r}; start from get_config({name!r})."
        )
    for missing in sorted(set(base.CHOICES) - set(config)):
        raise ValueError(
            f"the config of {name!r} lacks the field {missing!r}, which every algorithm has: "
            "start from qam_jax.agents.base.base_config()."
        )


def _check_types(config: ConfigDict, expected: ConfigDict) -> None:
    """Raises ValueError for a value of another type than the default; `ConfigDict` allows some."""
    kinds: dict[type, Any] = {float: numbers.Real, int: numbers.Integral, tuple: (tuple, list)}
    for name, default in expected.items():
        value, kind = config[name], type(default)
        fits = isinstance(value, kinds.get(kind, kind))
        if isinstance(value, bool) and kind is not bool:  # which is an integer to Python
            fits = False
        if default is not None and not fits:
            raise ValueError(
                f"config field {name!r} must be of type {kind.__name__}, such as {default!r}; got "
                f"{value!r}."
            )


ALGORITHMS = _discover()
