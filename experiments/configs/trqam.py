"""TRQAM with the paper's settings; start it with --bc_steps."""

from qam_jax.agents.trqam import get_config

__all__ = ["get_config"]
