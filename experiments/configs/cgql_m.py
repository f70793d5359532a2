"""CGQL-M with the paper's settings."""

from qam_jax.agents.cgql import get_mse_config as get_config

__all__ = ["get_config"]
