"""Parts that value learnings share: their shape, backups, and the loss of the critics."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents.base import AgentState, Loss, ParamsLoss
from qam_jax.critic import pessimistic_value, td_loss, td_target
from qam_jax.networks import CriticEnsemble, critic_values
from qam_jax.types import Array, Batch, Key, Metrics, Params

ValueLoss = Callable[[AgentState, Batch, Array | None, Key], ParamsLoss]
"""The critics' loss: `(state, batch, next actions [B, D], key) -> (params -> (loss, metrics))`.

The first call draws samples and computes targets, which the second call holds fixed.
"""

PoolFn = Callable[[Array], Array]
"""Makes one value [...] of the critics' values [K, ...]."""


class ValueLearning(NamedTuple):
    """Regression of the critics, for any way to extract a policy.

    Attributes:
      loss: the critics' loss; see `ValueLoss`.
      init: `(key, observation [O]) -> params` of networks of its own, by name.
      target_names: its own networks that have a moving average.
      needs_actions: whether `loss` takes actions of the policy in the next observations; else it
        gets None, and no actions are drawn.
    """

    loss: ValueLoss
    init: Callable[[Key, Array], Params] = lambda _, __: {}
    target_names: tuple[str, ...] = ()
    needs_actions: bool = False


def default_pool(config: ConfigDict) -> PoolFn:
    """`critic.pessimistic_value` with the config's `rho`."""
    return partial(pessimistic_value, rho=config.rho)


def next_q_values(
    critic: CriticEnsemble, state: AgentState, batch: Batch, actions: Array | None
) -> Array:
    """Values [K, B] of the target critics, of actions [B, D] in the next observations."""
    assert actions is not None  # of a value learning that needs them
    params, observations = state.target_params["critic"], batch.next_observations
    return critic_values(critic, params, observations, actions)


def bootstrap(config: ConfigDict, batch: Batch, next_values: Array) -> Array:
    """Targets [B] of the critics for values [K, B] of the next observations."""
    return td_target(
        batch.rewards,
        batch.masks,
        next_values,
        discount=config.discount,
        horizon_length=config.horizon_length,
        rho=config.get("rho", 0.0),
    )


def critic_loss(
    critic: CriticEnsemble, params: Params, batch: Batch, actions: Array, targets: Array
) -> Loss:
    """TD loss of the ensemble at actions [B, D], for targets [B], with its metrics."""
    q_values = critic_values(critic, params, batch.observations, actions)
    loss = td_loss(q_values, targets, batch.weights)
    return loss, critic_metrics(loss, q_values)


def critic_metrics(loss: Array, q_values: Array) -> Metrics:
    """Metrics of the critics' loss and values [K, B]."""
    return {
        "critic_loss": loss,
        "q_mean": jnp.mean(q_values),
        "q_min": jnp.min(q_values),
        "q_max": jnp.max(q_values),
    }
