"""FQL with the paper's settings; `alpha` weighs the distillation."""

from qam_jax.agents.fql import get_config

__all__ = ["get_config"]
