"""ReBRAC with the paper's settings; `alpha_actor` weighs cloning."""

from qam_jax.agents.rebrac import get_config

__all__ = ["get_config"]
