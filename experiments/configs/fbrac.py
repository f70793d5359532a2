"""FBRAC with the paper's settings; `alpha` weighs cloning."""

from qam_jax.agents.fbrac import get_config

__all__ = ["get_config"]
