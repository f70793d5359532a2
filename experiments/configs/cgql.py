"""CGQL with the paper's settings."""

from qam_jax.agents.cgql import get_config

__all__ = ["get_config"]
