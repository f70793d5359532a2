"""QAM with the paper's settings; QAM-F by `fql_alpha`, QAM-E by `edit_scale`."""

from qam_jax.agents.qam import get_config

__all__ = ["get_config"]
