"""Trust-region Q-learning with adjoint matching (TRQAM; Dong et al., arXiv 2605.27079).

QAM whose inverse temperature is `1 / Lambda`, with `Lambda = lam_scale * lam`. The number `lam`
rises while the paths of the fine-tuned flow diverge from those of the base flow by more than the
budget `kl_budget`. It falls while they diverge by less. TRQAM is meant to start from a flow trained
by behaviour cloning alone.
"""

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.adjoint import adjoint_matching_loss
from qam_jax.agents import base, qam, values
from qam_jax.agents.base import AgentState, Loss
from qam_jax.flow import MemorylessPath, deviation_costs
from qam_jax.types import Array, Batch, Key, Metrics

DISPLAY_NAME = "TRQAM"
RANGES = {"kl_budget": base.AT_LEAST_0, "lam_scale": (1e-6, float("inf"))}

_LAM_RATE = 0.01
_LAM_RANGE = (0.01, 100.0)
_KL_RATE = 0.1  # of the moving average of the divergence


@base.state_dataclass
class TrustRegionState(AgentState):
    """Agent's state with the trust region, which the optimiser leaves alone.

    Attributes:
      lam: [], `Lambda / lam_scale`.
      kl_ema: [], moving average of the clipped divergence.
    """

    lam: Array
    kl_ema: Array


def get_config() -> ConfigDict:
    """TRQAM with the paper's settings, but for `kl_budget`.

    The paper tunes the budget for each domain, and does not publish the values.
    """
    return values.critic_config(
        agent_name="trqam",
        discount=0.995,
        kl_budget=1.0,  # divergence of paths allowed, per action of a chunk
        lam_scale=3.0,  # Lambda / lam; 1 / Lambda is the inverse temperature
    )


def scaled_matching_loss(
    velocities: Array, base_velocities: Array, adjoints: Array, temp: Array
) -> Array:
    """Adjoint matching with the noise scale `sigma_i / sqrt(temp)` in the loss, [T, B, D] -> [B].

    It equals `temp` times the plain loss with adjoints divided by `temp`.
    """
    return temp * adjoint_matching_loss(velocities, base_velocities, adjoints / temp)


def update_trust_region(lam: Array, kl_ema: Array, kl: Array, kl_budget: float) -> dict[str, Array]:
    """Moves `lam` up while paths diverge by more than the budget, else down."""
    kl_ema = (1 - _KL_RATE) * kl_ema + _KL_RATE * jnp.minimum(kl, 2 * kl_budget)
    lam = jnp.clip(lam + _LAM_RATE * (kl_ema - kl_budget), *_LAM_RANGE)
    return {"lam": lam, "kl_ema": kl_ema}


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it acts by the ODE under the fine-tuned flow."""

    def matching_loss(
        state: AgentState, path: MemorylessPath, velocities: Array, adjoints: Array
    ) -> Loss:
        """Matching loss, with the divergence of the paths that it is computed on."""
        assert isinstance(state, TrustRegionState)
        temp = config.lam_scale * state.lam
        loss = jnp.mean(scaled_matching_loss(velocities, path.base_velocities, adjoints, temp))
        costs = deviation_costs(velocities, path.base_velocities)
        kl = jnp.mean(jnp.sum(costs, axis=0)) / config.flow_steps / state.action_shape[0]
        return loss, {"adjoint_matching_loss": loss, "kl": kl}

    agent = qam.make_agent(config, matching_loss)

    def init(key: Key, example_observation: Array, example_action: Array) -> AgentState:
        state = agent.init(key, example_observation, example_action)
        return TrustRegionState(**vars(state), lam=jnp.ones(()), kl_ema=jnp.zeros(()))

    def update(state: AgentState, batch: Batch) -> tuple[AgentState, Metrics]:
        state, metrics = agent.update(state, batch)
        assert isinstance(state, TrustRegionState)
        moved = update_trust_region(state.lam, state.kl_ema, metrics["kl"], config.kl_budget)
        return dataclasses.replace(state, lam=moved["lam"], kl_ema=moved["kl_ema"]), metrics | moved

    return agent._replace(init=init, update=update)
