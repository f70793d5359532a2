"""Distributional implicit value learning (DIVL, arXiv 2605.00416): a quantile of a learned V.

`V(s)` is a distribution over fixed atoms, fitted to the pooled target critics at the data's
actions. The critics bootstrap from a quantile of its moving average `Vbar(s')`. The level of the
quantile is `clip(tau_0 - alpha_H H, tau_min, tau_max)`, where `H` is the entropy of `Vbar(s')`
relative to the uniform distribution's. So it is optimistic where the value is certain. There is no
official code.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import base
from qam_jax.agents.base import AgentState, Loss, ParamsLoss
from qam_jax.agents.values import shared
from qam_jax.critic import atom_quantile, project_to_atoms, relative_entropy
from qam_jax.networks import CriticEnsemble, ValueDistribution, critic_values
from qam_jax.types import Array, Batch, Key, Params

FIELDS = {
    "divl_atoms": 201,  # M, values that V is a distribution over
    "divl_support": (),  # lowest and highest atom; empty: by the discount, for rewards in [-1, 0]
    "divl_level": 0.6,  # tau_0, level of the quantile where V is certain
    "divl_entropy_weight": 0.3,  # alpha_H, by how much the level falls where V is uniform
    "divl_level_min": 0.0,  # lower bound of the level
    "divl_level_max": 1.0,  # upper bound of the level
}
RANGES = {
    "divl_atoms": (2, float("inf")),
    "divl_level": base.SHARE,
    "divl_entropy_weight": base.AT_LEAST_0,
    "divl_level_min": base.SHARE,
    "divl_level_max": base.SHARE,
}


def make(
    config: ConfigDict, critic: CriticEnsemble, pool: shared.PoolFn | None, weigh_values: bool
) -> shared.ValueLearning:
    """Builds the value learning; see `values.make_value_learning`.

    Raises:
      ValueError: if there is no such support, or the bounds of the level exclude each other.
    """
    pool = pool or shared.default_pool(config)
    network = ValueDistribution(**base.network_fields(config, "critic"))
    atoms, bounds = make_atoms(config), (config.divl_level_min, config.divl_level_max)
    if bounds[0] > bounds[1]:
        raise ValueError(
            "config field 'divl_level_min' must be at most 'divl_level_max', got "
            f"{bounds[0]} and {bounds[1]}."
        )

    def log_probabilities(params: Params, observations: Array) -> Array:
        variables = {"params": params["value_distribution"]}
        return jax.nn.log_softmax(network.apply(variables, observations, config.divl_atoms))

    def init(key: Key, observation: Array) -> Params:
        return {"value_distribution": network.init(key, observation, config.divl_atoms)["params"]}

    def value_loss(state: AgentState, batch: Batch, _: Array | None, __: Key) -> ParamsLoss:
        actions, observations = base.flat_actions(config, batch), batch.observations
        target_params = state.target_params
        probabilities = jnp.exp(log_probabilities(target_params, batch.next_observations))
        spread = config.divl_entropy_weight * relative_entropy(probabilities)
        levels = jnp.clip(config.divl_level - spread, *bounds)
        targets = shared.bootstrap(config, batch, atom_quantile(probabilities, atoms, levels)[None])
        pooled = pool(critic_values(critic, target_params["critic"], observations, actions))
        projected = project_to_atoms(pooled, atoms)
        weights = batch.weights if weigh_values else jnp.ones_like(batch.weights)
        outside = (pooled < atoms[0]) | (pooled > atoms[-1])

        def loss(params: Params) -> Loss:
            td_loss, metrics = shared.critic_loss(critic, params["critic"], batch, actions, targets)
            log_probs = log_probabilities(params, observations)
            value_loss = -jnp.mean(weights * jnp.sum(projected * log_probs, axis=-1))
            metrics |= {
                "divl_loss": value_loss,
                "divl_mean": jnp.mean(jnp.sum(jnp.exp(log_probs) * atoms, axis=-1)),
                "divl_level": jnp.mean(levels),
                "divl_outside_support": jnp.mean(outside),
            }
            return td_loss + value_loss, metrics

        return loss

    return shared.ValueLearning(value_loss, init, ("value_distribution",))


def make_atoms(config: ConfigDict) -> Array:
    """Equally spaced atoms [M] over the support.

    Raises:
      ValueError: if the support is not two increasing numbers, or missing where there is no
        discount.
    """
    support = tuple(config.divl_support)
    if not support:
        if config.discount == 1:
            raise ValueError(
                "config field 'divl_support' must be given where 'discount' is 1: the lowest and "
                "the highest value that there can be, such as (-100.0, 0.0)."
            )
        lowest = -1 / (1 - config.discount)
        support = 1.1 * lowest, -0.1 * lowest
    if len(support) != 2 or not support[0] < support[1]:
        raise ValueError(
            "config field 'divl_support' must hold the lowest and the highest atom, such as "
            f"(-110.0, 10.0), got {support}."
        )
    return jnp.linspace(*support, config.divl_atoms)
