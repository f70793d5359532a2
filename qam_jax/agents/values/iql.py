"""Implicit Q-learning (IQL, arXiv 2110.06169): critics and a value learn from data alone.

The critics bootstrap from `V(s')`. `V(s)` is the expectile `kappa` of the pooled target critics at
the data's actions.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import base
from qam_jax.agents.base import AgentState, Loss, ParamsLoss
from qam_jax.agents.values import shared
from qam_jax.critic import expectile_loss
from qam_jax.networks import CriticEnsemble, StateValue, critic_values
from qam_jax.types import Array, Batch, Key, Params

FIELDS = {
    "kappa": 0.9,  # expectile of the value of iql; 0.5 is the mean
}
RANGES = {"kappa": base.SHARE}


def make(
    config: ConfigDict, critic: CriticEnsemble, pool: shared.PoolFn | None, weigh_values: bool
) -> shared.ValueLearning:
    """Builds the value learning; see `values.make_value_learning`."""
    pool = pool or shared.default_pool(config)
    network = StateValue(**base.network_fields(config, "critic"))

    def value(params: Params, observations: Array) -> Array:
        return network.apply({"params": params["value"]}, observations)

    def init(key: Key, observation: Array) -> Params:
        return {"value": network.init(key, observation)["params"]}

    def value_loss(state: AgentState, batch: Batch, _: Array | None, __: Key) -> ParamsLoss:
        actions, observations = base.flat_actions(config, batch), batch.observations
        targets = shared.bootstrap(
            config, batch, value(state.params, batch.next_observations)[None]
        )
        target_critic = state.target_params["critic"]
        pooled = pool(critic_values(critic, target_critic, observations, actions))
        weights = batch.weights if weigh_values else jnp.ones_like(batch.weights)

        def loss(params: Params) -> Loss:
            td_loss, metrics = shared.critic_loss(critic, params["critic"], batch, actions, targets)
            values = value(params, observations)
            value_loss = jnp.mean(weights * expectile_loss(pooled - values, config.kappa))
            metrics |= {"value_loss": value_loss, "v_mean": jnp.mean(values)}
            return td_loss + value_loss, metrics

        return loss

    return shared.ValueLearning(value_loss, init)
