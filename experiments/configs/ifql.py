"""IFQL with the paper's settings; `kappa` is the expectile."""

from qam_jax.agents.ifql import get_config

__all__ = ["get_config"]
