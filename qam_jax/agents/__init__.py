"""Algorithms, by name. Each file holds one: its config, its losses, its policy."""

import difflib
import functools
import importlib.util
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
from ml_collections import ConfigDict

from qam_jax.agents import (
    bam,
    base,
    bc,
    cgql,
    dac,
    dsrl,
    fawac,
    fbrac,
    fedit,
    fql,
    ifql,
    qam,
    qsm,
    rebrac,
    rlpd,
    trqam,
)
from qam_jax.agents.base import Agent, AgentState, parameter_count
from qam_jax.products import COMPUTE_DTYPES


def _qam_variant(agent_name: str, field: str, default: float, other_field: str) -> SimpleNamespace:
    """QAM under the name of a variant, whose config lacks the field of the other variant."""

    def get_config() -> ConfigDict:
        fields = {name: value for name, value in qam.get_config().items() if name != other_field}
        return ConfigDict({**fields, "agent_name": agent_name, field: default})

    def make_agent(config: ConfigDict) -> Agent:
        return qam.make_agent(ConfigDict({**config, other_field: 0.0}))

    return SimpleNamespace(get_config=get_config, make_agent=make_agent)


_ALGORITHMS = {
    "bam": bam,
    "bc": bc,
    "cgql": cgql,
    "cgql_l": SimpleNamespace(get_config=cgql.get_linex_config, make_agent=cgql.make_agent),
    "cgql_m": SimpleNamespace(get_config=cgql.get_mse_config, make_agent=cgql.make_agent),
    "dac": dac,
    "dsrl": dsrl,
    "fawac": fawac,
    "fbrac": fbrac,
    "fedit": fedit,
    "fql": fql,
    "ifql": ifql,
    "qam": qam,
    "qam_e": _qam_variant("qam_e", "edit_scale", 0.1, "fql_alpha"),
    "qam_f": _qam_variant("qam_f", "fql_alpha", 300.0, "edit_scale"),
    "qsm": qsm,
    "rebrac": rebrac,
    "rlpd": rlpd,
    "trqam": trqam,
}

# Fields that came after runs had been made; their defaults are what those runs did.
LATER_FIELDS = ("compute_dtype", "matmul_precision")

__all__ = [
    "LATER_FIELDS",
    "Agent",
    "AgentState",
    "algorithm_names",
    "complete_config",
    "get_config",
    "make_agent",
    "parameter_count",
]


def algorithm_names() -> list[str]:
    """The names that `config.agent_name` can take."""
    return sorted(_ALGORITHMS)


def get_config(agent_name: str) -> ConfigDict:
    """The default config of an algorithm, with the paper's settings.

    Args:
      agent_name: one of `algorithm_names()`, or the name of a module of one's own that can be
        imported and has functions `get_config` and `make_agent`, as those of this package have.

    Raises:
      ValueError: if there is no such algorithm, or a module of one's own does not fit.
    """
    return _find_algorithm(agent_name).get_config()


def make_agent(config: ConfigDict) -> Agent:
    """Builds the algorithm named by `config.agent_name`.

    Args:
      config: that algorithm's config: `get_config(agent_name)` with some fields changed.

    Returns:
      The agent's pure functions; see `Agent`.

    Raises:
      ValueError: if the algorithm is unknown, a field is unknown, missing or out of range, or
        the fields contradict each other. The message says which and why.
    """
    _check_config(config)
    agent = _find_algorithm(config.agent_name).make_agent(config)
    if config.matmul_precision == "default":
        return agent  # what JAX is told elsewhere counts
    return Agent(*(_with_precision(function, config.matmul_precision) for function in agent))


def complete_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an earlier version, with the fields that there have been since.

    Args:
      fields: of the config, with `agent_name`.
    """
    defaults = get_config(fields["agent_name"])
    return {**{name: defaults[name] for name in LATER_FIELDS}, **fields}


def _find_algorithm(agent_name: str) -> Any:
    """What holds an algorithm's `get_config` and `make_agent`; modules of one's own come last."""
    if agent_name in _ALGORITHMS:
        return _ALGORITHMS[agent_name]
    try:
        found = importlib.util.find_spec(agent_name)
    except (ImportError, ValueError):  # no such package, or no name of a module
        found = None
    if found is None:
        raise ValueError(
            f"unknown algorithm {agent_name!r}: agent_name must be one of "
            f"{', '.join(algorithm_names())}, or name a module of your own (is its folder on "
            "PYTHONPATH?)."
        )
    module = importlib.import_module(agent_name)
    for name in ("get_config", "make_agent"):
        if not callable(getattr(module, name, None)):
            raise ValueError(
                f"unknown algorithm {agent_name!r}: the module {module.__name__} "
                f"({found.origin}) has no function {name}."
            )
    own_name = module.get_config().get("agent_name")
    if own_name != agent_name:
        raise ValueError(
            f"get_config of the module {agent_name!r} has to give the config that agent_name, by "
            f"which saved runs find the module again, but gives it {own_name!r}."
        )
    return module


def _with_precision(function: Callable[..., Any], precision: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*args)

    return traced


def _check_config(config: ConfigDict) -> None:
    if "agent_name" not in config:
        raise ValueError(
            f"the config has no agent_name; expected one of {', '.join(algorithm_names())}."
        )
    expected = get_config(config.agent_name)
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
    for name, choices in _CHOICES.items():
        if name not in config:
            raise ValueError(
                f"the config of {config.agent_name!r} lacks the field {name!r}, which every "
                "algorithm has: start from qam_jax.agents.base.base_config()."
            )
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
    shared = {*base.base_config(), *base.critic_config()}
    for name, (low, high) in _RANGES.items():
        if config.agent_name not in _ALGORITHMS and name not in shared:
            continue  # one's own field of this name may mean something else
        if name in config and not low <= config[name] <= high:
            raise ValueError(
                f"config field {name!r} must lie in [{low}, {high}], got {config[name]}."
            )


_CHOICES = {"compute_dtype": COMPUTE_DTYPES, "matmul_precision": ("default", "high", "highest")}
_INFINITY = float("inf")
_RANGES = {
    "actor_interval": (1, _INFINITY),
    "actor_noise": (0, _INFINITY),
    "alpha": (0, _INFINITY),
    "alpha_actor": (0, _INFINITY),
    "batch_size": (1, _INFINITY),
    "bc_alpha": (0, _INFINITY),
    "best_of_n": (1, _INFINITY),
    "clip_grad_norm": (0, _INFINITY),
    "discount": (0, 1),
    "edit_scale": (0, 2),
    "flow_steps": (1, _INFINITY),
    "fql_alpha": (0, _INFINITY),
    "guidance_coef": (0, _INFINITY),
    "horizon_length": (1, _INFINITY),
    "inv_temp": (0, _INFINITY),
    "kappa": (0, 1),
    "kl_budget": (0, _INFINITY),
    "lam_scale": (1e-6, _INFINITY),
    "lr": (0, _INFINITY),
    "noise_scale": (0, _INFINITY),
    "noisy_coef": (0, _INFINITY),
    "num_qs": (1, _INFINITY),
    "rho": (0, _INFINITY),
    "tau": (0, 1),
}
