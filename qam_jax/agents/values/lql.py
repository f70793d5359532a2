"""Long-horizon Q-learning (LQL, arXiv 2605.05812): TD learning with bounds from further along.

A batch holds windows of N consecutive chunks, one chunk per row. The TD loss of all chunks is
joined by two hinge penalties on every pair of chunks of a window; see `critic.window_hinges`.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import base
from qam_jax.agents.base import AgentState, Loss, ParamsLoss
from qam_jax.agents.values import shared
from qam_jax.critic import td_loss, window_hinges
from qam_jax.networks import CriticEnsemble, critic_values
from qam_jax.types import Array, Batch, Key, Params

FIELDS = {
    "lql_chunks": 4,  # N, consecutive chunks of a window; batch_size counts chunks
    "lql_hinge_weight": 1.0,  # lambda, weight of both hinge penalties
}
RANGES = {"lql_chunks": base.AT_LEAST_1, "lql_hinge_weight": base.AT_LEAST_0}


def make(
    config: ConfigDict, critic: CriticEnsemble, pool: shared.PoolFn | None, _: bool
) -> shared.ValueLearning:
    """Builds the value learning; see `values.make_value_learning`.

    Raises:
      ValueError: if batches do not hold whole windows, or chunks are longer than actions.
    """
    pool = pool or shared.default_pool(config)
    if config.batch_size % config.lql_chunks:
        raise ValueError(
            "config field 'batch_size' must be a multiple of 'lql_chunks' "
            f"({config.lql_chunks}), for whole windows, got {config.batch_size}."
        )
    if config.horizon_length > 1 and not config.action_chunking:
        raise ValueError(
            "value_learning 'lql' bounds the value of all actions between two observations: set "
            "action_chunking to True, or horizon_length to 1."
        )

    def value_loss(
        state: AgentState, batch: Batch, next_actions: Array | None, _: Key
    ) -> ParamsLoss:
        actions = base.flat_actions(config, batch)
        following = pool(shared.next_q_values(critic, state, batch, next_actions))
        targets = shared.bootstrap(config, batch, following[None])
        present = jnp.maximum(jnp.mean(batch.weights), 1 / config.batch_size)  # share of chunks

        def windows(array: Array) -> Array:
            return array.reshape(*array.shape[:-1], -1, config.lql_chunks)

        fixed = map(windows, (targets, following, batch.rewards, batch.masks, batch.weights))
        inputs, discount = tuple(fixed), config.discount**config.horizon_length

        def loss(params: Params) -> Loss:
            q_values = critic_values(critic, params["critic"], batch.observations, actions)
            chunk_loss = td_loss(q_values, targets, batch.weights) / present
            lower, upper = window_hinges(windows(q_values), *inputs, discount=discount)
            metrics = shared.critic_metrics(chunk_loss, q_values)
            metrics |= {"lower_hinge": lower, "upper_hinge": upper}
            return chunk_loss + config.lql_hinge_weight * (lower + upper), metrics

        return loss

    return shared.ValueLearning(value_loss, needs_actions=True)
