"""Algorithms, by name. Each file holds one: its config, its losses, its policy.

A file of this folder is an algorithm if it has the functions `get_config` and `make_agent`; its
name is the `agent_name`. It may also say:

- `DISPLAY_NAME`: the name in tables; by default the `agent_name`.
- `RANGES`: lowest and highest value of its own config fields, `{field: (low, high)}`.
- `ACTS_BY_BEHAVIOR`: True if the behaviour flow is the policy itself.
- `CRITIC`: class of its critics, by default `CriticEnsemble`; None if they take further inputs.
- `CHANGES`: each `base.Change` after which runs of earlier versions cannot be trained further.
- `LATER_FIELDS`: fields that some saved runs lack, `{field: value that these runs computed with}`.
  Fields of value learnings need not be listed.
- `NO_VALUE_LEARNING`: why no value learning but its own makes sense. Other algorithms have the
  fields of `values.critic_config`.
- `VARIANTS`: other configs under names of their own, `{agent_name: (display name, get_config)}`.
- `VARIANT_FIELDS`: fields that make the algorithm a variant where they are above 0,
  `{field: agent_name of the variant}`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from qam_jax.agents import base, qgf, values
from qam_jax.agents.base import Agent, AgentState, Change, parameter_count
from qam_jax.agents.registry import ALGORITHMS, algorithm_names, check_config, find_algorithm

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


def get_config(agent_name: str) -> ConfigDict:
    """Default config of an algorithm, with the paper's settings.

    Args:
      agent_name: one of `algorithm_names()`, or the name of a module of your own that can be
        imported and has the functions `get_config` and `make_agent`.

    Raises:
      ValueError: if there is no such algorithm, or your own module does not fit.
    """
    return find_algorithm(agent_name).get_config()


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
    check_config(config)
    agent = find_algorithm(config.agent_name).make_agent(config)
    if not isinstance(agent, Agent):
        raise ValueError(
            f"make_agent of the algorithm {config.agent_name!r} must return an "
            f"qam_jax.agents.Agent, got {type(agent).__name__}."
        )
    return _with_precision(config, agent)


def make_guided_agent(config: ConfigDict, state: AgentState, weight: float) -> Agent:
    """Agent that acts by its behaviour flow, guided by its critics (QGF, arXiv 2606.11087).

    The lowest target critic guides, see `qgf.guided_policy`, and chooses the best of n.

    Args:
      config: of the algorithm.
      state: a state of the agent, for its networks' names.
      weight: factor of the critic's gradient, at least 0; with 0 the behaviour flow acts alone.

    Raises:
      ValueError: if the weight is out of range, or the state has no behaviour flow or no critic
        of actions.
    """
    agent, network = make_agent(config), find_algorithm(config.agent_name).critic
    if not 0 <= weight < float("inf"):
        raise ValueError(f"the weight of guidance must be finite and at least 0, got {weight}.")
    lacks = "has no behaviour flow" if "behavior" not in state.params else ""
    if "critic" not in state.target_params:
        lacks = "has no critic at this step"
    if network is None:
        lacks = "has critics that take more than an action"
    if lacks or network is None:
        raise ValueError(
            "guidance takes a behaviour flow and a critic that values actions alone, but "
            f"{config.agent_name!r} {lacks}."
        )
    flow, critic = base.make_flow(config), base.make_critic(config, network)
    policy = qgf.guided_policy(config, flow, critic, weight)
    acting = base.acting_by(policy, functools.partial(qgf.choose_lowest, config, critic))
    return _with_precision(config, agent._replace(**acting))


def display_name(agent_name: str) -> str:
    """Name of an algorithm in tables; a module of your own appears under its `agent_name`."""
    return ALGORITHMS[agent_name].display_name if agent_name in ALGORITHMS else agent_name


def variant_name(fields: Mapping[str, Any]) -> str:
    """Name of the variant that the fields of a config describe; else its `agent_name`."""
    name = fields["agent_name"]
    variants = variant_fields(name).items()
    return next((variant for field, variant in variants if fields.get(field, 0) > 0), name)


def variant_fields(agent_name: str) -> Mapping[str, str]:
    """Fields that make an algorithm a variant where they are above 0, with the variant's name."""
    return ALGORITHMS[agent_name].variant_fields if agent_name in ALGORITHMS else {}


def acts_by_behavior(agent_name: str) -> bool:
    """Whether the behaviour flow of an algorithm is its policy."""
    return find_algorithm(agent_name).acts_by_behavior


def cloning_config(config: ConfigDict) -> ConfigDict:
    """Config of behaviour cloning, with another algorithm's values of the fields that both have."""
    cloning = get_config("bc")
    cloning.update({name: config[name] for name in cloning if name in config})
    cloning.agent_name = "bc"
    return cloning


def complete_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an earlier version's config, with the fields that have been added since."""
    return {**later_fields(fields["agent_name"]), **fields}


def later_fields(agent_name: str) -> Mapping[str, Any]:
    """Fields that some saved runs lack, with the values that these runs computed with."""
    algorithm = find_algorithm(agent_name)
    later = {**_LATER_FIELDS, **algorithm.later_fields}
    if "value_learning" in algorithm.get_config():
        own = {**algorithm.ranges, **later}
        later |= {name: value for name, value in values.FIELDS.items() if name not in own}
    return later


def later_changes(config: ConfigDict, version: str | None) -> list[Change]:
    """Changes of an algorithm since a version of this package.

    The version None stands for versions before 0.2.0, which some runs did not store.
    """
    since = _as_numbers(version or "0")
    changes = find_algorithm(config.agent_name).changes
    later = (change for change in changes if _as_numbers(change.version) > since)
    return [change for change in later if change.concerns(config)]


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
