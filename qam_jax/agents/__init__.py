"""Algorithms, by name. Each file holds one: its config, its losses, its policy.

A file of this folder is an algorithm if it has the functions `get_config` and `make_agent`; its
name is the `agent_name`. It may also say:

- `DISPLAY_NAME`: the name in tables; by default the `agent_name`.
- `RANGES`: lowest and highest value of its own config fields, `{field: (low, high)}`.
- `ACTS_BY_BEHAVIOR`: True if the behaviour flow is the policy itself.
- `CRITIC`: class of its critics, by default `CriticEnsemble`; None if they value more than actions.
- `CHANGES`: changes by which runs of earlier versions are not trained on, as `base.Change`s.
- `LATER_FIELDS`: fields that are newer than some saved runs, with the values by which those
  computed, `{field: value}`. The fields of value learnings are, without a word.
- `NO_VALUE_LEARNING`: why other value learnings than its own make no sense. Algorithms without it
  have the fields of `values.critic_config`, which choose one.
- `VARIANTS`: other configs under names of their own, `{agent_name: (display name, get_config)}`.
- `VARIANT_FIELDS`: fields that make the algorithm a variant where they are above 0,
  `{field: agent_name of the variant}`.
"""

import difflib
import functools
import importlib.util
import numbers
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from qam_jax.agents import base, qgf, values
from qam_jax.agents.base import Agent, AgentState, Change, parameter_count
from qam_jax.networks import CriticEnsemble

_LATER_FIELDS = {"compute_dtype": "float32", "matmul_precision": "default"}  # of all algorithms

__all__ = [
    "Agent",
    "AgentState",
    "acts_by_behavior",
    "algorithm_names",
    "cloning_config",
    "complete_config",
    "display_name",
    "get_config",
    "later_changes",
    "later_fields",
    "make_agent",
    "make_guided_agent",
    "parameter_count",
    "variant_fields",
    "variant_name",
]


def algorithm_names() -> list[str]:
    """Names of the package's algorithms, as `config.agent_name` takes them."""
    return sorted(_ALGORITHMS)


def get_config(agent_name: str) -> ConfigDict:
    """Default config of an algorithm, with the paper's settings.

    Args:
      agent_name: one of `algorithm_names()`, or the name of a module of your own that can be
        imported and has the functions `get_config` and `make_agent`.

    Raises:
      ValueError: if there is no such algorithm, or your own module does not fit.
    """
    return _find_algorithm(agent_name).get_config()


def make_agent(config: ConfigDict) -> Agent:
    """Builds the algorithm named by `config.agent_name`.

    Args:
      config: `get_config(agent_name)` with some fields changed.

    Returns:
      The agent's pure functions; see `Agent`.

    Raises:
      ValueError: if the algorithm is unknown, a field is unknown, missing or out of range, or
        the fields contradict each other. The message names the field and the reason.
    """
    _check_config(config)
    return _with_precision(config, _find_algorithm(config.agent_name).make_agent(config))


def make_guided_agent(config: ConfigDict, state: AgentState, weight: float) -> Agent:
    """Agent that acts by its behaviour flow, guided by its critics (QGF, arXiv 2606.11087).

    The lowest target critic guides, see `qgf.guided_policy`, and chooses the best of n.

    Args:
      config: of the algorithm.
      state: that the agent will act in.
      weight: of the critic's gradient, at least 0; with 0 the behaviour flow acts alone.

    Raises:
      ValueError: if the weight is out of range, or the state has no behaviour flow or no critic
        of actions.
    """
    agent, network = make_agent(config), _find_algorithm(config.agent_name).critic
    if not 0 <= weight < float("inf"):
        raise ValueError(f"the weight of guidance must be finite and at least 0, got {weight}.")
    has_both = "behavior" in state.params and "critic" in state.target_params
    if network is None or not has_both:
        raise ValueError(
            "guidance takes a behaviour flow and a critic that values actions alone; "
            f"{config.agent_name!r} does not have both at this step."
        )
    flow, critic = base.make_flow(config), base.make_critic(config, network)
    sampler = qgf.lowest_sampler(config, critic, qgf.guided_policy(config, flow, critic, weight))
    return _with_precision(config, agent._replace(sample_actions=sampler))


def display_name(agent_name: str) -> str:
    """Name of an algorithm in tables; a module of your own appears under its `agent_name`."""
    return _ALGORITHMS[agent_name].display_name if agent_name in _ALGORITHMS else agent_name


def variant_name(fields: Mapping[str, Any]) -> str:
    """Name of the variant that the fields of a config describe; else its `agent_name`."""
    name = fields["agent_name"]
    variants = variant_fields(name).items()
    return next((variant for field, variant in variants if fields.get(field, 0) > 0), name)


def variant_fields(agent_name: str) -> Mapping[str, str]:
    """Fields that make an algorithm a variant where they are above 0, with the variant's name."""
    return _ALGORITHMS[agent_name].variant_fields if agent_name in _ALGORITHMS else {}


def acts_by_behavior(agent_name: str) -> bool:
    """Whether the behaviour flow of an algorithm is its policy."""
    return _find_algorithm(agent_name).acts_by_behavior


def cloning_config(config: ConfigDict) -> ConfigDict:
    """Config of behaviour cloning, with the values that it shares with another algorithm's."""
    cloning = get_config("bc")
    cloning.update({name: config[name] for name in cloning if name in config})
    cloning.agent_name = "bc"
    return cloning


def complete_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an earlier version's config, with the fields that have been added since."""
    return {**later_fields(fields["agent_name"]), **fields}


def later_fields(agent_name: str) -> Mapping[str, Any]:
    """Fields that are newer than some saved runs, with the values by which those computed."""
    algorithm = _find_algorithm(agent_name)
    later = {**_LATER_FIELDS, **algorithm.later_fields}
    if "value_learning" in algorithm.get_config():
        own = {**algorithm.ranges, **later}
        later |= {name: value for name, value in values.FIELDS.items() if name not in own}
    return later


def later_changes(config: ConfigDict, version: str | None) -> list[Change]:
    """Changes of an algorithm since a version of this package.

    None is a version before 0.2.0, when runs need not have stored it.
    """
    since = _as_numbers(version or "0")
    changes = _find_algorithm(config.agent_name).changes
    later = (change for change in changes if _as_numbers(change.version) > since)
    return [change for change in later if change.concerns(config)]


class _Algorithm(NamedTuple):
    """What the file of an algorithm says; see the text at the top of this file."""

    display_name: str
    get_config: Callable[[], ConfigDict]
    make_agent: Callable[[ConfigDict], Agent]
    ranges: Mapping[str, tuple[float, float]]
    acts_by_behavior: bool
    critic: type | None
    variant_fields: Mapping[str, str]
    changes: Sequence[Change]
    later_fields: Mapping[str, Any]
    no_value_learning: str


def _from_module(module: ModuleType, name: str) -> _Algorithm:
    return _Algorithm(
        getattr(module, "DISPLAY_NAME", name),
        module.get_config,
        module.make_agent,
        getattr(module, "RANGES", {}),
        getattr(module, "ACTS_BY_BEHAVIOR", False),
        getattr(module, "CRITIC", CriticEnsemble),
        getattr(module, "VARIANT_FIELDS", {}),
        getattr(module, "CHANGES", ()),
        getattr(module, "LATER_FIELDS", {}),
        getattr(module, "NO_VALUE_LEARNING", "its config has no such field"),
    )


def _discover() -> dict[str, _Algorithm]:
    """Algorithms of this folder, and their variants."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if not (hasattr(module, "get_config") and hasattr(module, "make_agent")):
            continue  # shared by several
        found[info.name] = algorithm = _from_module(module, info.name)
        for name, (label, config_fn) in getattr(module, "VARIANTS", {}).items():
            found[name] = algorithm._replace(display_name=label, get_config=config_fn)
    return found


def _find_algorithm(agent_name: str) -> _Algorithm:
    """Algorithm of this package, or else of a module of the user's own."""
    if agent_name in _ALGORITHMS:
        return _ALGORITHMS[agent_name]
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
    except Exception as error:
        raise ValueError(
            f"unknown algorithm {agent_name!r}: its module ({found.origin}) cannot be imported "
            f"({type(error).__name__}: {error})."
        ) from error
    for name in ("get_config", "make_agent"):
        if not callable(getattr(module, name, None)):
            raise ValueError(
                f"unknown algorithm {agent_name!r}: the module {module.__name__} "
                f"({found.origin}) has no function {name}."
            )
    own_name = module.get_config().get("agent_name")
    if own_name != agent_name:
        raise ValueError(
            f"get_config of the module {agent_name!r} must set agent_name to the module's name, by "
            f"which saved runs find the module again, but sets {own_name!r}."
        )
    return _from_module(module, agent_name)


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _with_precision(config: ConfigDict, agent: Agent) -> Agent:
    """The agent whose functions compute with the config's precision of float32 products."""
    if config.matmul_precision == "default":
        return agent  # `jax.default_matmul_precision` of the caller holds

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            with jax.default_matmul_precision(config.matmul_precision):
                return function(*args)

        return traced

    return Agent._make(function and wrap(function) for function in agent)


def _check_config(config: ConfigDict) -> None:
    if "agent_name" not in config:
        raise ValueError(
            f"the config has no agent_name; expected one of {', '.join(algorithm_names())}."
        )
    algorithm = _find_algorithm(config.agent_name)
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
        if not all(isinstance(width, int) and width > 0 for width in widths):
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
    for name in config:
        if name not in expected:
            close = difflib.get_close_matches(name, list(expected), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"unknown config field {name!r} for {config.agent_name!r}.{hint} "
                f"Its fields are {', '.join(sorted(expected))}."
            )
    for name in expected:
        if name not in config:
            raise ValueError(
                f"the config of {config.agent_name!r} lacks the field {name!r}; "
                f"start from get_config({config.agent_name!r})."
            )
    for name in base.CHOICES:
        if name not in config:
            raise ValueError(
                f"the config of {config.agent_name!r} lacks the field {name!r}, which every "
                "algorithm has: start from qam_jax.agents.base.base_config()."
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


_ALGORITHMS = _discover()
