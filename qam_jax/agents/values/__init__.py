"""Value learnings, which regress the critics, whatever extracts the policy.

Each file holds one value learning; `shared.py` holds what they share.
"""

from typing import Any

from ml_collections import ConfigDict

from qam_jax.agents import base
from qam_jax.agents.values import divl, iql, lql, td
from qam_jax.agents.values.shared import (
    PoolFn,
    ValueLearning,
    bootstrap,
    critic_metrics,
)
from qam_jax.networks import CriticEnsemble

__all__ = [
    "FIELDS",
    "RANGES",
    "PoolFn",
    "ValueLearning",
    "bootstrap",
    "critic_config",
    "critic_metrics",
    "make_value_learning",
    "num_consecutive",
]

_LEARNINGS = {"td": td, "iql": iql, "divl": divl, "lql": lql}

FIELDS = {
    "value_learning": "td",  # what regresses the critics: td, iql, divl or lql
    **iql.FIELDS,
    **divl.FIELDS,
    **lql.FIELDS,
}
"""Fields of the value learnings; runs from before these fields computed with the same values."""

RANGES = {**iql.RANGES, **divl.RANGES, **lql.RANGES}
"""Lowest and highest value of these fields."""


def critic_config(**own: Any) -> ConfigDict:
    """`base.critic_config` with the fields of all value learnings."""
    return base.critic_config(**{**FIELDS, **own})


def num_consecutive(config: ConfigDict) -> int:
    """Consecutive windows of data that the algorithm takes as one; see `data.sample_windows`."""
    return config.lql_chunks if config.get("value_learning") == "lql" else 1


def make_value_learning(
    config: ConfigDict,
    critic: CriticEnsemble,
    *,
    pool: PoolFn | None = None,
    weigh_values: bool = True,
) -> ValueLearning:
    """Builds the value learning named by `config.value_learning`, or else TD learning.

    Args:
      config: of the algorithm.
      critic: network of the critics.
      pool: makes one value of the critics' values; by default `critic.pessimistic_value`.
      weigh_values: whether the loss of a state value, too, leaves out windows that cross the end
        of an episode.

    Raises:
      ValueError: if there is no such value learning, or its fields contradict each other.
    """
    name = config.get("value_learning", "td")
    if name not in _LEARNINGS:
        raise ValueError(
            f"config field 'value_learning' must be one of {', '.join(_LEARNINGS)}, got {name!r}."
        )
    return _LEARNINGS[name].make(config, critic, pool, weigh_values)
