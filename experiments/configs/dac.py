"""DAC with the settings of QAM's paper."""

from qam_jax.agents.dac import get_config

__all__ = ["get_config"]
