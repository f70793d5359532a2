"""TRQAM with the paper's settings; it is to start from `--bc_steps`, as `--preset=paper` does."""

from qam_jax.agents.trqam import get_config

__all__ = ["get_config"]
