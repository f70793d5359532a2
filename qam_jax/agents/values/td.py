"""TD learning: the critics bootstrap from themselves, at the policy's next actions.

The target is `R + gamma^H m pool_k Qbar_k(s', a')`, where `pool_k` makes one value of the ensemble.
"""

from ml_collections import ConfigDict

from qam_jax.agents import base
from qam_jax.agents.base import AgentState, ParamsLoss
from qam_jax.agents.values import shared
from qam_jax.networks import CriticEnsemble
from qam_jax.types import Array, Batch, Key


def make(
    config: ConfigDict, critic: CriticEnsemble, pool: shared.PoolFn | None, _: bool
) -> shared.ValueLearning:
    """Builds the value learning; see `values.make_value_learning`."""

    def value_loss(
        state: AgentState, batch: Batch, next_actions: Array | None, _: Key
    ) -> ParamsLoss:
        actions = base.flat_actions(config, batch)
        next_values = shared.next_q_values(critic, state, batch, next_actions)
        targets = shared.bootstrap(config, batch, pool(next_values)[None] if pool else next_values)
        return lambda params: shared.critic_loss(critic, params["critic"], batch, actions, targets)

    return shared.ValueLearning(value_loss, needs_actions=True)
