"""QSM with the settings of QAM's paper."""

from qam_jax.agents.qsm import get_config

__all__ = ["get_config"]
