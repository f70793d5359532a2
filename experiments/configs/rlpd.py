"""RLPD with the paper's settings; `--preset=paper` adds balanced sampling and no offline stage."""

from qam_jax.agents.rlpd import get_config

__all__ = ["get_config"]
