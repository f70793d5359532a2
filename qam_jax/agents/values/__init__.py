"""Value learnings: what regresses the critics, apart from what extracts the policy.

Each file beside this one and `parts.py` holds one value learning.
"""

from ml_collections import ConfigDict

from qam_jax.agents.values import iql, td
from qam_jax.agents.values.parts import (
    Loss,
    PoolFn,
    ValueLearning,
    bootstrap,
    critic_metrics,
)
from qam_jax.networks import CriticEnsemble

__all__ = [
    "Loss",
    "PoolFn",
    "ValueLearning",
    "bootstrap",
    "critic_metrics",
    "make_value_learning",
]

_LEARNINGS = {"td": td, "iql": iql}


def make_value_learning(
    config: ConfigDict,
    critic: CriticEnsemble,
    name: str = "td",
    *,
    pool: PoolFn | None = None,
    weigh_values: bool = True,
) -> ValueLearning:
    """Builds the value learning of a name.

    Args:
      config: of the algorithm.
      critic: the ensemble.
      name: of the value learning.
      pool: makes one value of the target critics' values; by default
        `critic.pessimistic_value`.
      weigh_values: whether windows over an episode's end are left out of the loss of a state
        value too.
    """
    return _LEARNINGS[name].make(config, critic, pool, weigh_values)
