"""CGQL-L with the paper's settings."""

from qam_jax.agents.cgql import get_linex_config as get_config

__all__ = ["get_config"]
