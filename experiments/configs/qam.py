"""QAM with the paper's settings; the variants are `qam_e.py` and `qam_f.py`."""

from qam_jax.agents.qam import get_config

__all__ = ["get_config"]
