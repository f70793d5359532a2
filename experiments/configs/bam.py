"""BAM with the paper's settings."""

from qam_jax.agents.bam import get_config

__all__ = ["get_config"]
