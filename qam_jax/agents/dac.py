"""Diffusion actor-critic (DAC; Fang et al., arXiv 2405.20555).

A diffusion policy, cloned from the data, whose predicted noise is turned against the action
gradient of the critic, softly: `sqrt(1 - abar_t) grad Q(s, x_t) . eps_theta`.
"""

from ml_collections import ConfigDict

from qam_jax import diffusion
from qam_jax.agents import base, diffusion_policy, values

DISPLAY_NAME = "DAC"
CHANGES = diffusion_policy.CHANGES
RANGES = {"alpha": base.AT_LEAST_0}


def get_config() -> ConfigDict:
    """DAC with the settings of QAM's paper (arXiv 2601.14234)."""
    return values.critic_config(
        agent_name="dac",
        alpha=1.0,  # weight of behaviour cloning
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; it samples by posterior steps around the clipped clean action."""
    return diffusion_policy.make_diffusion_agent(
        config, diffusion.sample_ddpm, diffusion.soft_guidance_loss
    )
