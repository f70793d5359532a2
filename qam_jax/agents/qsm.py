"""Q-score matching (QSM; Psenka et al., arXiv 2312.11752).

A diffusion policy whose score, the noise that it predicts, is regressed on the action gradient of
the critic: `||-inv_temp grad Q(s, x_t) - eps_theta||^2`. Behaviour cloning is added for data.
"""

from ml_collections import ConfigDict

from qam_jax import diffusion
from qam_jax.agents import base, diffusion_policy, values
from qam_jax.types import Array

DISPLAY_NAME = "QSM"
CHANGES = diffusion_policy.CHANGES
RANGES = {"inv_temp": base.AT_LEAST_0, "alpha": base.AT_LEAST_0}


def get_config() -> ConfigDict:
    """QSM with the settings of QAM's paper (arXiv 2601.14234)."""
    return values.critic_config(
        agent_name="qsm",
        inv_temp=10.0,  # inverse temperature
        alpha=10.0,  # weight of behaviour cloning
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it samples by jumps to the predicted clean action."""

    def guidance(
        _: diffusion.DiffusionSchedule, epsilon: Array, q_gradients: Array, __: Array
    ) -> Array:
        return diffusion.q_score_matching_loss(epsilon, q_gradients, config.inv_temp)

    return diffusion_policy.make_diffusion_agent(config, diffusion.sample_by_jumps, guidance)
